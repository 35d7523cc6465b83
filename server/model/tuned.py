"""The tuned model: a bundle's weights and the steps of a run, replayed on them.

A run stores no weights, and needs none: the bundle and the integer steps give every bit of them,
after the last round or after any other.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from edge_runtime.bundle import (
    GRAPH_FILES,
    MANIFEST_FILE,
    PAYLOAD_FILES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Bundle,
    file_digest,
    open_bundle,
    write_manifest,
)
from edge_runtime.families import OPT
from edge_runtime.parameters import ParameterStore
from edge_runtime.task_spec import TaskSpec
from edge_runtime.tasks import label_token_ids, load_tokenizer
from server.errors import ConfigurationError, RunStoreError
from server.export.families import architecture_from
from server.export.source_tokenizer import OPT_SPECIAL_TOKENS
from server.files import new_folder, to_json, write_tensors
from server.run.accounts import epsilon_spent
from server.run.data import bundle_folder
from server.store.records import best_evaluation
from server.store.run_store import STORE_FILE, RunStore

BUNDLE_FOLDER = "bundle"
HUGGING_FACE_FOLDER = "hugging_face"


@dataclass(frozen=True, slots=True)
class TunedModel:
    """A model ready to be used.

    Attributes:
        bundle: graph; of the weights only the lattice counts.
        tokenizer: the bundle's.
        weights: after ``num_rounds`` rounds.
        task: what it was tuned for.
        max_tokens: longest prompt that is fed whole.
        num_rounds: steps taken; 0 for a bundle.
        origin: what a person may want to know of where it comes from; no path.
    """

    bundle: Bundle
    tokenizer: Tokenizer
    weights: ParameterStore
    task: TaskSpec
    max_tokens: int
    num_rounds: int
    origin: dict[str, Any]

    @property
    def label_token_ids(self) -> tuple[int, ...]:
        """The token of each label's word, in class order."""
        return label_token_ids(self.task, self.tokenizer)


def load_model(folder: Path, *, num_rounds: int | None = None, best: bool = False) -> TunedModel:
    """The model of a run folder, or of a bundle.

    Args:
        folder: either.
        num_rounds: the weights after so many rounds of the run; None takes all there are.
        best: the weights of the evaluation with the highest accuracy instead.

    Raises:
        ConfigurationError: neither a run nor a bundle, or no such round.
        RunStoreError: the run's bundle is not the one it was started with, or its steps do not
            give the weights it ended with.
        BundleError: the bundle is damaged.
    """
    if (folder / STORE_FILE).is_file():
        return _of_run(folder, num_rounds, best)
    if not (folder / MANIFEST_FILE).is_file():
        raise ConfigurationError(
            f"{folder}: neither a run (no {STORE_FILE}) nor a bundle (no {MANIFEST_FILE})."
        )
    if num_rounds is not None or best:
        raise ConfigurationError(f"{folder}: a bundle has no rounds to choose from.")
    bundle = open_bundle(folder)
    return TunedModel(
        bundle=bundle,
        tokenizer=load_tokenizer(bundle.tokenizer_path),
        weights=ParameterStore.from_bundle(bundle, None),
        task=bundle.manifest.task,
        max_tokens=int(bundle.manifest.architecture["max_position_embeddings"]),
        num_rounds=0,
        origin={"base_model": bundle.manifest.source_model},
    )


def _of_run(folder: Path, num_rounds: int | None, best: bool) -> TunedModel:
    store = RunStore.open_to_read(folder)
    try:
        config, run_id = store.config(), str(store.meta("run_id"))
        results = list(store.results(run_id))
        if best:
            evaluation = best_evaluation(store.evaluations())
            if evaluation is None:
                raise ConfigurationError(f"{folder}: nothing was evaluated, so nothing is best.")
            num_rounds = evaluation.num_rounds
        count = len(results) if num_rounds is None else num_rounds
        if not 0 <= count <= len(results):
            raise ConfigurationError(
                f"--rounds: got {count}, the run has finished {len(results)} rounds."
            )
        bundle = open_bundle(bundle_folder(config.model.bundle))
        if bundle.digest != store.meta("bundle_digest"):
            raise RunStoreError(
                f"{bundle.folder}: not the bundle that the run was started with. Its steps belong "
                "to other weights; put the bundle back."
            )
        weights = ParameterStore.from_bundle(bundle, config.model.trainable)
        weights.replay(results[:count])
        wanted = store.meta("parameter_digest")
        if wanted is not None and count == len(results) and weights.digest() != wanted:
            raise RunStoreError(
                f"{store.path}: its steps do not give the weights that the run ended with. The "
                "store was changed; restore it from a copy."
            )
        privacy = config.privacy
        return TunedModel(
            bundle=bundle,
            tokenizer=load_tokenizer(bundle.tokenizer_path),
            weights=weights,
            task=store.meta("task"),
            max_tokens=config.task.max_tokens,
            num_rounds=count,
            origin={
                "base_model": bundle.manifest.source_model,
                "run_id": run_id,
                "rounds": count,
                # What the whole run spent, whatever round is taken: all of it was heard.
                "epsilon": epsilon_spent(store, config),
                "delta": privacy.delta if privacy.enabled else None,
                "noise_source": privacy.noise_source if privacy.enabled else None,
            },
        )
    finally:
        store.close()


def save_model(model: TunedModel, out: Path) -> Path:
    """Write a model into the new folder ``out``: as a bundle, and for transformers.

    Guarantees: the bundle holds the very bits of the weights, in the form in which they were kept,
    and the other folder these as float32; ``out`` appears whole or not at all.

    Raises:
        ConfigurationError: something is there already, or the disk would not take it.
    """
    with new_folder(out, ConfigurationError) as folder:
        (folder / BUNDLE_FOLDER).mkdir()
        (folder / HUGGING_FACE_FOLDER).mkdir()
        _write_bundle(model, folder / BUNDLE_FOLDER)
        _write_hugging_face(model, folder / HUGGING_FACE_FOLDER)
    return out


def _write_bundle(model: TunedModel, folder: Path) -> None:
    for name in (*GRAPH_FILES, TOKENIZER_FILE):
        shutil.copyfile(model.bundle.folder / name, folder / name)
    write_tensors(folder / WEIGHTS_FILE, model.weights.as_kept())
    shutil.copymode(folder / TOKENIZER_FILE, folder / WEIGHTS_FILE)
    manifest = model.bundle.manifest
    write_manifest(
        folder,
        msgspec.structs.replace(
            manifest,
            source_model=_name(model),
            task=model.task,
            label_token_ids=model.label_token_ids,
            # The lattice stays: on another one the weights would be rounded once more.
            tensors=tuple(
                msgspec.structs.replace(entry, stored_dtype=entry.kept_as)
                for entry in manifest.tensors
            ),
            digests={name: file_digest(folder / name) for name in PAYLOAD_FILES},
            created_with={**manifest.created_with, "pairzero": version("pairzero")},
        ),
    )


def _write_hugging_face(model: TunedModel, folder: Path) -> None:
    """Config, weights and tokenizer as transformers' ``from_pretrained`` reads them."""
    manifest = model.bundle.manifest
    shutil.copyfile(model.bundle.tokenizer_path, folder / TOKENIZER_FILE)
    tensors = {entry.name: model.weights.as_float32(entry.name) for entry in model.weights.entries}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    shutil.copymode(folder / TOKENIZER_FILE, folder / "model.safetensors")
    tokens = {
        name: token
        for name, token in OPT_SPECIAL_TOKENS.items()
        if manifest.family == OPT.name and model.tokenizer.token_to_id(token) is not None
    }
    ids = {f"{n}_id": model.tokenizer.token_to_id(t) for n, t in tokens.items() if n != "unk_token"}
    architecture = architecture_from(manifest.family, manifest.architecture)
    _write_json(
        folder / "config.json",
        {
            "model_type": architecture.family.name,
            "architectures": [architecture.network],
            "torch_dtype": "float32",
            **architecture.to_config(),
            **ids,
        },
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": architecture.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        # Older versions of transformers add token types, which no OPT takes.
        "model_input_names": ["input_ids", "attention_mask"],
        **tokens,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", tokens)
    # How it was tuned, and how to ask it: prompt, then separator, then one of the words.
    _write_json(folder / "pairzero.json", {**model.origin, "task": model.task.without_paths()})


def _name(model: TunedModel) -> str:
    base = model.bundle.manifest.source_model
    run_id = model.origin.get("run_id")
    return base if run_id is None else f"{base} tuned by {run_id}, {model.num_rounds} rounds"


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(to_json(document) + "\n", encoding="utf-8")
