"""The ecosystem's road: optimum's exporter, then surgery to the bundle's interface.

Slower and larger than `server.export.families.opt_graph`, but it follows torch's own code, so it
knows every variant of OPT that transformers knows, and serves as an independent witness for the
native road.

The surgery, in order: attention_mask and position_ids are computed from input_ids instead of being
asked for; the vocabulary logits give way to the loss head at the answer positions; the graph is cut
where one layer hands over to the next; every weight moves from inside the graphs to their inputs.

Only the graph's structure is taken from the exporter. It is given other weights on purpose, all
different: it merges tensors of equal value (every bias that starts at zero), and merged
tensors could not be trained apart.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from edge_runtime.bundle import (
    EMBEDDING_FILE,
    HIDDEN_INPUT,
    HIDDEN_OUTPUT,
    LAST_LAYER_FILE,
    LAYER_FILE,
)
from edge_runtime.families import OPT
from server.errors import ExportError
from server.export.dependencies import load
from server.export.families.opt import POSITIONS, UNTIED_HEAD, OptArchitecture
from server.export.interface import OPSET, assemble, interfaces, loss_head

logger = logging.getLogger(__name__)

FLAT_AXIS = 2
STRUCTURE_SEED = 0
STRUCTURE_LAYERS = 2
"""All layers are alike, so two of them show what one does and how it hands over."""


def build_graphs_via_optimum(config: Any, architecture: OptArchitecture) -> dict[str, Any]:
    """File name -> ``onnx.ModelProto``, made from optimum's export of ``config``.

    Raises:
        ExportError: optimum is missing or fails, or its graph has a form the surgery does not know.
    """
    exported = _export_structure(config)
    graph = exported.graph
    nodes = list(graph.node)

    asked = {i.name for i in graph.input} - {i.name for i in graph.initializer}
    unknown = asked - {"input_ids", "attention_mask", "position_ids"}
    if unknown:
        raise ExportError(
            f"optimum's graph asks for {', '.join(sorted(unknown))}, which the surgery does not "
            "know. Export with via='native', or use optimum-onnx 0.1."
        )
    structure = dataclasses.replace(architecture, num_hidden_layers=STRUCTURE_LAYERS)
    constants = [i for i in graph.initializer if i.name not in structure.tensor_shapes()]
    if architecture.tie_word_embeddings:
        # Without accelerate, optimum writes the tied matrix twice.
        constants = [c for c in constants if c.name != UNTIED_HEAD]
        nodes = _renamed(nodes, {UNTIED_HEAD: architecture.head_weight})
    front_nodes, front_constants = _mask_and_positions(asked)
    hidden, head_input_nodes = _cut_off_logits(nodes)
    head_nodes, head_constants = loss_head(hidden, architecture.head_weight)
    whole = front_nodes + nodes + head_input_nodes + head_nodes
    constants += front_constants + head_constants
    cut = _Cut(whole, structure)
    parts = {
        EMBEDDING_FILE: cut.upto(0, whole),
        LAYER_FILE: cut.upto(1, cut.layer_from(0)),
        LAST_LAYER_FILE: cut.layer_from(1),
    }
    wanted = interfaces(architecture)
    return {
        name: assemble(part, [*constants, *cut.constants], wanted[name], name)
        for name, part in parts.items()
    }


class _Cut:
    """Takes the graph of a two-layer OPT apart, where one layer hands over to the next.

    The state handed to a layer is the one value that the position table has reached and no weight
    of this layer or a later one, and that a node reads whose output these weights reach. Shapes
    hand nothing over: what only reads the shape of an earlier value is given the handed state.
    """

    def __init__(self, nodes: list[Any], structure: OptArchitecture) -> None:
        self._nodes = nodes
        self._structure = structure
        self._reached_by: dict[str, set[str]] = {n: {n} for n in structure.tensor_shapes()}
        for node in nodes:
            reach = [self._reach(n) for n in node.input] if node.op_type != "Shape" else []
            self._reached_by |= {output: set().union(*reach) for output in node.output}
        self._handed = [self._state_into(layer) for layer in range(STRUCTURE_LAYERS)]
        onnx = load("onnx")
        width = onnx.helper.make_tensor(
            "cut/width", onnx.TensorProto.INT64, [1], [structure.hidden_size]
        )
        self.constants = [width]

    def _reach(self, value: str) -> set[str]:
        return self._reached_by.get(value, set())

    def _own_and_later(self, layer: int) -> set[str]:
        names = self._structure.layer_shapes()
        return {OPT.layer_tensor(n, name) for n in range(layer, STRUCTURE_LAYERS) for name in names}

    def _state_into(self, layer: int) -> str:
        later = self._own_and_later(layer)
        states = {
            value
            for node in self._nodes
            for value in node.input
            if POSITIONS in self._reach(value)
            and not self._reach(value) & later
            and any(self._reach(output) & later for output in node.output)
        }
        if len(states) != 1:
            raise ExportError(
                f"optimum's graph hands {len(states)} values to layer {layer}, wanted one hidden "
                "state, so it cannot be cut into layers. Export with via='native'."
            )
        return states.pop()

    def upto(self, layer: int, nodes: list[Any]) -> list[Any]:
        """The nodes, ending in what is handed to a layer."""
        flatten = load("onnx").helper.make_node(
            "Flatten", [self._handed[layer]], [HIDDEN_OUTPUT], axis=FLAT_AXIS
        )
        return [*nodes, flatten]

    def layer_from(self, layer: int) -> list[Any]:
        """The nodes, beginning with what is handed to a layer, its weights by their own names."""
        make, state = load("onnx").helper.make_node, self._handed[layer]
        later = self._own_and_later(layer)
        front = [
            make("Shape", ["input_ids"], ["cut/ids"]),
            make("Concat", ["cut/ids", "cut/width"], ["cut/shape"], axis=0),
            make("Reshape", [HIDDEN_INPUT, "cut/shape"], [state]),
        ]
        own = {OPT.layer_tensor(layer, name): name for name in self._structure.layer_shapes()}
        rest = _renamed([node for node in self._nodes if state not in node.output], own)
        for node in rest:
            reach = self._reach(node.input[0]) if node.op_type == "Shape" else set()
            if reach and reach.isdisjoint(later):
                node.input[0] = state
        return front + rest


def _export_structure(config: Any) -> Any:
    """Optimum's ONNX graph of an OPT with this config; the values of its weights are arbitrary."""
    onnx, torch, transformers = load("onnx"), load("torch"), load("transformers")
    exporter = load("optimum.exporters.onnx")
    load("accelerate")
    config = copy.deepcopy(config)
    config.num_hidden_layers = STRUCTURE_LAYERS
    # A fork of the generator, so that exporting leaves the caller's random state alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(STRUCTURE_SEED)
        with _skipped_initialisation(transformers):
            model = transformers.OPTForCausalLM(config).to(torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-0.02, 0.02)
    # ignore_cleanup_errors: on some systems the exporter still maps its file when it returns.
    with (
        tempfile.TemporaryDirectory(prefix="pairzero-", ignore_cleanup_errors=True) as folder,
        warnings.catch_warnings(),
    ):
        # The tracer warns about every Python branch in transformers' code; whether a branch was
        # frozen wrongly is decided by the self-check, at several lengths, not by the warning.
        warnings.simplefilter("ignore")
        try:
            exporter.onnx_export_from_model(
                model,
                folder,
                task="text-generation",
                opset=OPSET,
                do_validation=False,
                do_constant_folding=False,
                no_post_process=True,
            )
        except Exception as error:
            raise ExportError(
                f"optimum could not export this model ({type(error).__name__}: {error}). "
                "Export with via='native'."
            ) from error
        return onnx.load(str(Path(folder) / "model.onnx"), load_external_data=False)


def _skipped_initialisation(transformers: Any) -> Any:
    """A context without transformers' slow initialisation; every value is drawn afterwards."""
    return load("transformers.modeling_utils").no_init_weights()


def _mask_and_positions(asked: set[str]) -> tuple[list[Any], list[Any]]:
    """All-ones mask and positions 0, 1, 2, ... in every row, computed from input_ids."""
    onnx = load("onnx")
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor
    one = tensor("front/one", onnx.TensorProto.INT64, [1], [1])
    nodes = [
        node("Shape", ["input_ids"], ["front/shape"]),
        node("ConstantOfShape", ["front/shape"], ["attention_mask"], value=one),
    ]
    if "position_ids" in asked:
        nodes += [
            node("CumSum", ["attention_mask", "front/axis"], ["front/count"]),
            node("Sub", ["front/count", "front/one"], ["position_ids"]),
        ]
    axis = tensor("front/axis", onnx.TensorProto.INT64, [], [1])
    return nodes, [one, axis] if "position_ids" in asked else []


def _cut_off_logits(nodes: list[Any]) -> tuple[str, list[Any]]:
    """Remove the vocabulary product; gather the answers before whatever acts by position.

    Walks up from the logits through the final projection and the final layer norm, which act on
    each position alone, so gathering before them gives the same numbers for less work.

    Returns:
        Name of the answers' hidden states, and the nodes that were put in.
    """
    onnx = load("onnx")
    producer = {output: node for node in nodes for output in node.output}
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    head = producer.get("logits")
    if head is None or head.op_type != "MatMul":
        raise ExportError(
            "optimum's graph does not end in a product with the vocabulary "
            f"(got {head.op_type if head is not None else 'no logits'}), so the loss head cannot "
            "be put on. Export with via='native'."
        )
    nodes.remove(head)
    chain: list[Any] = []
    source = head.input[0]
    while (above := producer.get(source)) is not None and readers[source] == 1:
        if above.op_type not in ("LayerNormalization", "MatMul"):
            break
        chain.append(above)
        source = above.input[0]
    make = onnx.helper.make_node
    moved = [
        make("Flatten", [source], ["answer/flat"], axis=FLAT_AXIS),
        make("Gather", ["answer/flat", "answer_position"], ["answer/hidden"], axis=0),
    ]
    hidden = "answer/hidden"
    for node in reversed(chain):
        nodes.remove(node)
        node.input[0] = hidden
        hidden = node.output[0]
        moved.append(node)
    return hidden, moved


def _renamed(nodes: list[Any], names: dict[str, str]) -> list[Any]:
    """Copies of the nodes that read other names."""
    copies = [copy.deepcopy(node) for node in nodes]
    for node in copies:
        node.input[:] = [names.get(name, name) for name in node.input]
    return copies
