"""How was the bundled OPT made? This script pretrains it, from nothing, on texts that may ship.

A real ``OPTForCausalLM`` with small dimensions learns next-token prediction on two streams:

* books: Project Gutenberg texts (public domain), cut into chunks of ``--chunk`` tokens;
* commands: CLINC150 (CC BY 3.0), each with its own intent written out as text,
  ``play some jazz Intent: play music``, so that the prompt "Intent:" means something to the model.

Left out on purpose: Snips, MR and Banking77. They are fine-tuned later, and a model that has seen
the data it is tuned on would make every accuracy a lie (docs/decisions/0004).

    python benchmarks/pretrain_bundled_opt.py --data DIR --out MODEL_DIR --updates 8000

``DIR`` holds ``gutenberg/*.txt`` and ``clinc150/data_full.json``. Needs the ``[export]`` extra.
Writes a Hugging Face folder (float16) and ``pretraining.json`` with settings and loss curve.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]  # OPT's ids 0..3
PAD_ID, END_ID = 1, 2


def read_books(data: Path) -> list[str]:
    """The books, with hard line breaks inside paragraphs undone."""
    books = []
    for path in sorted((data / "gutenberg").glob("*.txt")):
        try:
            text = path.read_text(encoding="ascii")
        except UnicodeDecodeError:
            text = path.read_text(encoding="cp1252")
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
        books.append("\n".join(p for p in paragraphs if p))
    return books


def read_commands(data: Path) -> list[tuple[str, str]]:
    """``(command, intent in words)`` of every CLINC150 split; out-of-scope ones have no intent."""
    splits = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    commands = []
    for rows in splits.values():
        for text, intent in rows:
            commands.append((text, "" if intent == "oos" else intent.replace("_", " ")))
    return commands


def write_command(
    text: str, intent: str, rng: np.random.Generator, book_words: Sequence[str] = ()
) -> str:
    """One training line, varied as real commands are.

    Case and final punctuation differ, a word may be missing, and a few words out of a book may
    stand anywhere in it, as titles and names do: they say nothing about the intent.
    """
    words = text.split()
    if book_words and len(words) > 3 and rng.random() < 0.2:
        del words[rng.integers(len(words))]
    if book_words and rng.random() < 0.3:
        start = rng.integers(len(book_words) - 4)
        at = rng.integers(len(words) + 1)
        words[at:at] = book_words[start : start + rng.integers(1, 5)]
    text = " ".join(words)
    if rng.random() < 0.4:
        text = text[:1].upper() + text[1:]
    if rng.random() < 0.3:
        text += "?" if words[0].lower() in QUESTION_WORDS else "."
    return f"{text} Intent: {intent}" if intent else text


QUESTION_WORDS = {
    "what", "who", "when", "where", "why", "how", "which",
    "is", "are", "do", "does", "can", "could", "will", "would",
}  # fmt: skip


def train_tokenizer(books: list[str], commands: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with OPT's special tokens and OPT's habit of starting with ``</s>``."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Commands count four times: they are few, and their words should be whole tokens.
    tokenizer.train_from_iterator([*books, *(commands * 4)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", END_ID)]
    )
    return tokenizer


def pad_batch(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD_ID] * (width - len(row)) for row in rows])


def next_token_loss(
    model: OPTForCausalLM, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=(ids != PAD_ID).long()).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        ids[:, 1:].reshape(-1),
        reduction="none",
    )
    weights = weights[:, 1:].reshape(-1)
    return (loss * weights).sum() / weights.sum()


class WeightNoise:
    """Adds Gaussian noise to every weight for one forward and backward pass, then takes it away.

    The gradient is then that of E[L(w + noise)] = L(w) + std^2/2 tr(H) + ..., so training seeks
    weights around which the loss is flat. A zeroth-order step pays for tr(H), the curvature in all
    directions; large pretrained models have little of it for their size, and this is how a small
    one comes to resemble them (docs/decisions/0004).
    """

    def __init__(self, model: torch.nn.Module, std: float) -> None:
        self._parameters = list(model.parameters())
        self._std = std
        self._noise: list[torch.Tensor] = []

    def __enter__(self) -> None:
        self._noise = [self._std * torch.randn_like(p) for p in self._parameters]
        with torch.no_grad():
            for parameter, noise in zip(self._parameters, self._noise, strict=True):
                parameter.add_(noise)

    def __exit__(self, *exc_info: object) -> None:
        with torch.no_grad():
            for parameter, noise in zip(self._parameters, self._noise, strict=True):
                parameter.sub_(noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=8_000)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=96)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight-noise", type=float, default=0.01)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    books, commands = read_books(args.data), read_commands(args.data)
    tokenizer = train_tokenizer(
        books, [write_command(*command, rng) for command in commands], args.vocab
    )
    book_ids = np.concatenate([tokenizer.encode(b, add_special_tokens=False).ids for b in books])
    intent_mark = tokenizer.encode(" Intent:", add_special_tokens=False).ids

    book_words = " ".join(books).split()

    config = OPTConfig(
        vocab_size=args.vocab, hidden_size=args.hidden, word_embed_proj_dim=args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, ffn_dim=4 * args.hidden,
        max_position_embeddings=128, dropout=args.dropout, attention_dropout=0.0,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.learning_rate, (0.9, 0.98), weight_decay=0.05
    )
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(book_ids):,} book tokens"
    )

    started, curve = time.monotonic(), []
    for update in range(args.updates):
        progress = update / args.updates
        warmup = min(1.0, (update + 1) / 300)
        for group in optimizer.param_groups:
            group["lr"] = (
                args.learning_rate * warmup * (0.5 * (1 + np.cos(np.pi * progress)) + 0.01)
            )

        starts = rng.integers(0, len(book_ids) - args.chunk, size=6)
        book_batch = pad_batch([[END_ID, *book_ids[s : s + args.chunk]] for s in starts])
        picked = rng.integers(0, len(commands), size=48)
        lines = [write_command(*commands[i], rng, book_words) for i in picked]
        rows = [[*tokenizer.encode(line).ids, END_ID] for line in lines]
        command_batch = pad_batch(rows)
        command_weights = (command_batch != PAD_ID).float()
        for i, row in enumerate(rows):  # the words of the intent count four times
            for j in range(len(row) - len(intent_mark)):
                if row[j : j + len(intent_mark)] == intent_mark:
                    command_weights[i, j + len(intent_mark) : len(row)] = 4.0

        optimizer.zero_grad()
        with WeightNoise(model, args.weight_noise * warmup):
            book_loss = next_token_loss(model, book_batch, torch.ones_like(book_batch).float())
            command_loss = next_token_loss(model, command_batch, command_weights)
            (0.5 * book_loss + command_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % 250 == 0:
            curve.append((update, round(book_loss.item(), 4), round(command_loss.item(), 4)))
            print(
                f"{time.monotonic() - started:6.0f} s  update {update:6d}  "
                f"books {book_loss.item():.3f}  commands {command_loss.item():.3f}",
                flush=True,
            )

    args.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    ).save_pretrained(args.out)
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("data", "out")}
    (args.out / "pretraining.json").write_text(
        json.dumps({"settings": settings, "loss_curve": curve}, indent=1)
    )


if __name__ == "__main__":
    main()
