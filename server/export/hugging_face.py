"""Loads a Hugging Face OPT, from the hub or a local folder, with its tokenizer.

Weights keep the precision the model's author declared (``torch_dtype="auto"``). The tokenizer
always becomes one ``tokenizers`` file, whether the source has tokenizer.json or only vocab.json and
merges.txt, and always starts a text with the model's first token: ``</s>``, as OPT was trained.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import ExportError
from server.export.architecture import UNTIED_HEAD, OptArchitecture
from server.export.dependencies import load

logger = logging.getLogger(__name__)

OPT_SPECIAL_TOKENS = {
    "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OptSource:
    """A loaded model.

    Attributes:
        name: hub id, or the folder's own name (never its path: bundles travel).
        architecture: its dimensions.
        model: the ``transformers.OPTForCausalLM``, in evaluation mode.
        tokenizer: the ``tokenizers.Tokenizer``, without padding or truncation.
    """

    name: str
    architecture: OptArchitecture
    model: Any
    tokenizer: Any

    def stored_weights(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, in torch's order, float16 or float32. float16 and float32 are views.

        bfloat16 becomes float32, exactly. float64 becomes float32, rounded.
        """
        torch = load("torch")
        weights = {}
        for name, parameter in self.model.named_parameters():
            tensor = parameter.detach()
            if tensor.dtype not in (torch.float16, torch.float32):
                tensor = tensor.to(torch.float32)
            weights[name] = tensor.contiguous().numpy()
        return weights


def load_opt(model: str | Path) -> OptSource:
    """Load model and tokenizer.

    Raises:
        ExportError: not found, not reachable, not an OPT, weights missing or not finite, or no
            tokenizer that fits.
    """
    transformers = load("transformers")
    name = Path(model).resolve().name if Path(model).exists() else str(model)
    config = _load_config(transformers, model)
    architecture = OptArchitecture.from_config(config)
    # transformers 4.56 renamed the argument, and warns about the old name.
    dtype_argument = "dtype" if hasattr(config, "dtype") else "torch_dtype"
    try:
        network, info = transformers.OPTForCausalLM.from_pretrained(
            str(model), config=config, output_loading_info=True, **{dtype_argument: "auto"}
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"{model}: the weights could not be read ({_first_line(error)}). "
            "Download the model again, or check the connection to the hub."
        ) from error
    # transformers fills what a checkpoint lacks with random numbers and a warning.
    lacking = sorted(set(info["missing_keys"]) - {UNTIED_HEAD})
    if UNTIED_HEAD in info["missing_keys"] and not architecture.tie_word_embeddings:
        lacking.append(UNTIED_HEAD)
    if lacking:
        raise ExportError(
            f"{model}: the checkpoint lacks {len(lacking)} tensors ({', '.join(lacking[:3])}, ...) "
            "that its config.json asks for. Download the model again."
        )
    network.eval().requires_grad_(False)
    for tensor_name, parameter in network.named_parameters():
        if not np.isfinite(float(parameter.abs().max())):
            raise ExportError(
                f"{model}: {tensor_name} holds NaN or infinity. Choose another checkpoint."
            )
    tokenizer = load_tokenizer(model, config)
    return OptSource(name=name, architecture=architecture, model=network, tokenizer=tokenizer)


def load_tokenizer(model: str | Path, config: Any) -> Any:
    """The model's tokenizer as a ``tokenizers.Tokenizer`` that puts the first token in place.

    Raises:
        ExportError: there is none, or it has tokens the model has no embedding for.
    """
    transformers, tokenizers = load("transformers"), load("tokenizers")
    # Bare vocab.json and merges.txt do not say which tokens are special; transformers would add
    # GPT-2's, for which OPT has no embedding.
    is_bare = Path(model).is_dir() and not (Path(model) / "tokenizer_config.json").is_file()
    try:
        fast = transformers.AutoTokenizer.from_pretrained(
            str(model), config=config, use_fast=True, **(OPT_SPECIAL_TOKENS if is_bare else {})
        )
        # A Tokenizer of our own: setting a post-processor must not reach into transformers'.
        tokenizer = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    except Exception as error:  # transformers raises OSError, TypeError, AttributeError, ... here
        raise ExportError(
            f"{model}: no usable tokenizer there ({_first_line(error)}). Put tokenizer.json, or "
            "vocab.json and merges.txt, beside the weights."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.get_vocab_size() <= len(tokenizer.get_added_tokens_decoder()):
        raise ExportError(
            f"{model}: the tokenizer knows special tokens only. Put tokenizer.json, or "
            "vocab.json and merges.txt, beside the weights."
        )
    largest_id = max(tokenizer.get_vocab().values())
    if largest_id >= config.vocab_size:
        raise ExportError(
            f"{model}: the tokenizer has token id {largest_id}, the model's vocab_size is "
            f"{config.vocab_size}. Model and tokenizer do not belong together."
        )
    first_token = tokenizer.id_to_token(config.bos_token_id)
    if first_token is None:
        raise ExportError(
            f"{model}: bos_token_id is {config.bos_token_id}, which the tokenizer does not know. "
            "Model and tokenizer do not belong together."
        )
    if tokenizer.encode("a").ids[:1] != [config.bos_token_id]:
        logger.info("%s: tokenizer set to put %r first, as OPT was trained.", model, first_token)
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first_token} $A", special_tokens=[(first_token, config.bos_token_id)]
        )
    return tokenizer


def _load_config(transformers: Any, model: str | Path) -> Any:
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ExportError(
            f"{model}: no config.json there, wanted a Hugging Face model folder (config.json, "
            "model.safetensors, tokenizer files)."
        )
    if Path(model).is_file():
        raise ExportError(f"{model}: a file, wanted a Hugging Face model folder or a hub id.")
    try:
        config = transformers.AutoConfig.from_pretrained(str(model))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{model}: neither a model folder here nor a model the hub would give "
            f"({_first_line(error)}). Check the name (for example facebook/opt-125m) and the "
            "connection, or give the path of a downloaded folder."
        ) from error
    if config.model_type != "opt":
        raise ExportError(
            f"{model}: model_type is {config.model_type!r}, wanted 'opt'. pairzero trains OPT "
            "models; try facebook/opt-125m."
        )
    return config


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
