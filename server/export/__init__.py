"""Export: a Hugging Face model of a known family becomes a bundle that a device can load.

The only place where torch, transformers, onnx and optimum are used, and they are imported when an
export starts, not before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from server.errors import ExportError
from server.files import check_is_free

if TYPE_CHECKING:
    from edge_runtime.task_spec import TaskSpec

__all__ = ["VIA_NATIVE", "VIA_OPTIMUM", "export_bundle"]

logger = logging.getLogger(__name__)

VIA_NATIVE = "native"
VIA_OPTIMUM = "optimum"

SELF_CHECK_SEED = 0


def export_bundle(
    model: str | Path,
    out: str | Path,
    *,
    task: TaskSpec,
    via: str = VIA_NATIVE,
    texts: Sequence[str] = (),
    store: str = "float32",
    trainable: Sequence[str] = (),
) -> Path:
    """Export ``model`` into the new folder ``out`` and return it.

    Args:
        model: hub id (facebook/opt-125m) or Hugging Face folder of an OPT or a Llama; a GGUF file
            of a Llama, or the name of an installed package with one
            (`server.export.gguf_file.PACKAGES`).
        out: the bundle; must not exist yet, or be empty.
        task: gives the label words; each must be one token of this model.
        via: "native" generates the graphs from the dimensions, "optimum" uses the ecosystem's
            exporter (OPT alone).
        texts: some texts of the task's data; the tokens of their prompts are compared with those
            of the source's tokenizer.
        store: form of the weights: "float32", or matrices in "int16" or "int8"
            (`server.export.storing`).
        trainable: where that is int8, patterns of the tensors that shall be trained: they get 16.

    Guarantees: a bundle that appears has passed the self-check (`server.export.self_check`); on
    any error nothing is written.

    Raises:
        ExportError: the model cannot be loaded or exported, or the self-check fails.
        TaskError: a label word is not exactly one token.
    """
    from edge_runtime.tasks import label_token_ids, warn_if_merged
    from server.export import bundle_writer, gguf_file, hugging_face, self_check, storing
    from server.export.stored_check import check_stored

    if via not in (VIA_NATIVE, VIA_OPTIMUM):
        raise ExportError(f"via: got {via!r}, wanted {VIA_NATIVE!r} or {VIA_OPTIMUM!r}.")
    storing.check_form(store, trainable)
    out = Path(out)
    check_is_free(out, ExportError)

    file = gguf_file.find_gguf(model)
    source = hugging_face.load_model(model) if file is None else gguf_file.load_gguf(file)
    tokenizer = source.tokenizer.bundled
    first_word = next(iter(task.label_words.values()))
    source.tokenizer.check([task.answered(text, first_word) for text in texts])
    label_ids = label_token_ids(task, tokenizer)
    warn_if_merged(task, tokenizer)
    stored = source.stored_weights()
    if {name: array.shape for name, array in stored.items()} != source.architecture.tensor_shapes():
        raise ExportError(
            f"{model}: its tensors are not those of a model with these dimensions. "
            "It was changed (adapters, extra heads?): export the plain model."
        )

    if via == VIA_NATIVE:
        graphs = source.architecture.build_graphs()
    else:
        from server.export.families.opt import OptArchitecture
        from server.export.via_optimum import build_graphs_via_optimum

        if not isinstance(source.architecture, OptArchitecture):
            raise ExportError(
                f"via: {VIA_OPTIMUM!r} takes OPT apart, and {model} is of the family "
                f"{source.architecture.family.name!r}. Export with via={VIA_NATIVE!r}."
            )
        graphs = build_graphs_via_optimum(source.model.config, source.architecture)

    # The check moves these copies about; what is written are the weights as they were stored.
    working = {name: array.astype(np.float32) for name, array in stored.items()}
    reference = self_check.torch_reference(source.model, working)
    report = self_check.check_graphs(
        graphs,
        source.architecture,
        working,
        reference,
        label_token_ids=label_ids,
        rng=np.random.default_rng(SELF_CHECK_SEED),
    )
    contents = bundle_writer.BundleContents(
        source_model=source.name,
        architecture=source.architecture,
        task=task,
        label_token_ids=label_ids,
        graphs={n: graph.SerializeToString(deterministic=True) for n, graph in graphs.items()},
        weights=stored,
        tokenizer_json=tokenizer.to_str(pretty=False),
        store=store,
        trainable=trainable,
    )

    def check(folder: Path) -> None:
        rng = np.random.default_rng(SELF_CHECK_SEED)
        worst = check_stored(folder, source.architecture, working, reference, rng)
        logger.info("%s: as stored it agrees with torch to %.1e", out, worst)

    bundle_writer.write_bundle(out, contents, check if store != "float32" else lambda folder: None)
    logger.info(
        "%s: exported via %s to %s; agrees with torch to %.1e",
        source.name, via, out, report.max_relative_error,
    )  # fmt: skip
    return out
