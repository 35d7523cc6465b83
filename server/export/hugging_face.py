"""Loads a Hugging Face model of a known family, from the hub or a local folder, with its tokenizer.

Weights keep the precision the model's author declared (``torch_dtype="auto"``). A checkpoint is
taken as a whole or not at all: a tensor that is missing, left over or not finite is refused by
name, and so is what is no plain model (a Git LFS pointer, a quantised checkpoint, an adapter).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.errors import ExportError
from server.export.dependencies import load
from server.export.families import Architecture, architecture_of
from server.export.families.opt import UNTIED_HEAD
from server.export.source_tokenizer import SourceTokenizer, first_line, load_tokenizer

logger = logging.getLogger(__name__)

_LFS_POINTER = b"version https://git-lfs"
_LARGEST_POINTER_BYTES = 1024
_PAYLOAD_SUFFIXES = (".safetensors", ".bin", ".json", ".txt")
_COMPILED = "_orig_mod."  # what torch.compile puts before every name
# Written by the first ports of OPT, read by nothing.
_HARMLESS_LEFTOVERS = ("decoder.version", "model.decoder.version")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A loaded model.

    Attributes:
        name: hub id, or the folder's own name (never its path: bundles travel).
        architecture: its dimensions.
        model: the network of transformers, in evaluation mode.
        tokenizer: its tokenizer and the one that goes into the bundle.
    """

    name: str
    architecture: Architecture
    model: Any
    tokenizer: SourceTokenizer

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


def load_model(model: str | Path) -> ModelSource:
    """Load model and tokenizer.

    Raises:
        ExportError: not found, not reachable, not a plain model of a known family, weights
            missing, left over or not finite, or no tokenizer that fits.
    """
    transformers = load("transformers")
    with silent(transformers):
        return _load(transformers, model)


@contextmanager
def silent(transformers: Any) -> Iterator[None]:
    """Without its warnings: what they are about is refused here by name, or does not matter."""
    said = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(said)


def _load(transformers: Any, model: str | Path) -> ModelSource:
    name = Path(model).resolve().name if Path(model).exists() else str(model)
    _refuse_pointers(model)
    config = _load_config(transformers, model)
    architecture = architecture_of(model, config)
    # transformers 4.56 renamed the argument, and warns about the old name.
    dtype_argument = "dtype" if hasattr(config, "dtype") else "torch_dtype"
    try:
        network, info = getattr(transformers, architecture.network).from_pretrained(
            str(model), config=config, output_loading_info=True,
            attn_implementation="eager",  # plain torch, whatever the source was run with
            **{dtype_argument: "auto"},
        )  # fmt: skip
    except Exception as error:  # safetensors and pickle raise classes of their own for damage
        raise ExportError(
            f"{model}: the weights could not be read ({first_line(error)}). "
            "Download the model again, or check the connection to the hub."
        ) from error
    compiled = [name for name in info["unexpected_keys"] if name.startswith(_COMPILED)]
    if compiled:
        raise ExportError(
            f"{model}: the tensors are called {compiled[0]} and so on: the checkpoint was saved "
            f"from a compiled model. Save it again without {_COMPILED!r}: "
            "model._orig_mod.save_pretrained(FOLDER)."
        )
    # transformers fills what a checkpoint lacks with random numbers and a warning.
    lacking = sorted(set(info["missing_keys"]) - {UNTIED_HEAD})
    if UNTIED_HEAD in info["missing_keys"] and not architecture.tie_word_embeddings:
        lacking.append(UNTIED_HEAD)
    if lacking:
        raise ExportError(
            f"{model}: the checkpoint lacks {len(lacking)} tensors ({', '.join(lacking[:3])}, ...) "
            "that its config.json asks for. Download the model again."
        )
    left_over = sorted(set(info["unexpected_keys"]) - {UNTIED_HEAD, *_HARMLESS_LEFTOVERS})
    if left_over:
        raise ExportError(
            f"{model}: a model of its config.json has no place for {len(left_over)} tensors of the "
            f"checkpoint ({', '.join(left_over[:3])}, ...). Without them it is another model: "
            "merge adapters into the weights, or mend config.json (num_hidden_layers?)."
        )
    freeze(network, model, "Choose another checkpoint.")
    tokenizer = load_tokenizer(model, config)
    return ModelSource(name=name, architecture=architecture, model=network, tokenizer=tokenizer)


def freeze(network: Any, model: str | Path, remedy: str) -> None:
    """No dropout, no gradients; ExportError with a remedy if a weight is no finite number."""
    network.eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not np.isfinite(float(parameter.abs().max())):
            raise ExportError(f"{model}: {name} holds NaN or infinity. {remedy}")


def _refuse_pointers(model: str | Path) -> None:
    """A clone without Git LFS has small text files where the weights should be."""
    folder = Path(model)
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").is_file():
        raise ExportError(
            f"{folder / 'adapter_config.json'}: the folder holds an adapter (LoRA and its like). "
            "Merge it into the model first (merge_and_unload in peft) and export the result."
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in _PAYLOAD_SUFFIXES and path.stat().st_size <= _LARGEST_POINTER_BYTES:
            if path.read_bytes().startswith(_LFS_POINTER):
                raise ExportError(
                    f"{path}: a Git LFS pointer, not the file itself. Fetch it: git lfs pull"
                )


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
    except Exception as error:  # OSError, ValueError, and what a damaged file makes of them
        raise ExportError(
            f"{model}: neither a model folder here nor a model the hub would give "
            f"({first_line(error)}). Check the name (for example facebook/opt-125m) and the "
            "connection, or give the path of a downloaded folder."
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise ExportError(
            f"{model}: the checkpoint is quantised (quantization_config in config.json). A bundle "
            "is made from the model's own weights: export the unquantised checkpoint."
        )
    return config
