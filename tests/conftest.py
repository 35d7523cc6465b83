"""What every test gets: hypothesis profiles, a check that it left no trace, a tiny model.

Heavy libraries are imported inside the fixtures, so tests that need no model do not pay for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.rounds import (
    Access,
    Participation,
    RoundPlan,
    SoundingOrder,
    TransmitOrder,
)
from edge_runtime.uplink import Uplink

# A busy machine is not a defect: no deadlines. `--hypothesis-profile=nightly` picks another one.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=5000, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

RUN_ID = "run-of-the-tests"
LABEL_WORDS = {"PlayMusic": "music", "GetWeather": "weather", "RateBook": "book"}
TEXTS = (
    ("PlayMusic", "play some music"),
    ("PlayMusic", "add this song to my list"),
    ("GetWeather", "what is the weather like today ?"),
    ("GetWeather", "is it good or bad in town"),
    ("RateBook", "rate this book four out of five"),
    ("RateBook", "terrible"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Real radios, cabled through attenuators, for whoever has them."""
    parser.addoption("--pluto-transmitter", help="URI of a real Pluto that may transmit")
    parser.addoption("--pluto-receiver", help="URI of a real Pluto that hears it")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of real radios exists only where there are some: no skip can look like a pass."""
    if "real_plutos" in metafunc.fixturenames:
        uris = [metafunc.config.getoption(f"--pluto-{end}") for end in ("transmitter", "receiver")]
        metafunc.parametrize("real_plutos", [tuple(uris)] if all(uris) else [], ids=["cabled"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out what has no radio to run on; begin with what takes long."""
    has_radios = config.getoption("--pluto-transmitter") and config.getoption("--pluto-receiver")
    if not has_radios:
        items[:] = [
            item for item in items if "real_plutos" not in getattr(item, "fixturenames", ())
        ]
    items[:] = dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def dealt(items: list[pytest.Item], num_workers: int) -> list[pytest.Item]:
    """Each worker begins with its share of what takes long, and few of them load torch.

    Each takes the same part of what it is given, in order, and later the end of another's.
    """
    rest = [item for item in items if item.get_closest_marker("takes_long") is None]
    long = [item for item in items if item.get_closest_marker("takes_long") is not None]
    rest.sort(key=lambda item: "one_torch_thread" not in getattr(item, "fixturenames", ()))
    in_order: list[pytest.Item] = []
    for worker in range(num_workers):
        part = (len(items) - len(in_order)) // (num_workers - worker)
        own = long[worker::num_workers]
        num_others = max(0, part - len(own))
        in_order += own + rest[:num_others]
        rest = rest[num_others:]
    return in_order + rest


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Fail a test that draws from numpy's global generator: randomness is an argument here.

    Around the call alone, not a fixture: pytest-randomly reseeds between set-up, call and
    tear-down, so a fixture would compare states that were never the test's. Draws inside a
    hypothesis example go unseen, as hypothesis puts the state back itself.
    """
    before = np.random.get_state(legacy=False)
    result = yield
    after = np.random.get_state(legacy=False)
    same = np.array_equal(after["state"]["key"], before["state"]["key"])
    if not same or after["state"]["pos"] != before["state"]["pos"]:
        pytest.fail(f"{pyfuncitem.nodeid} drew from numpy's global generator; pass a Generator.")
    return result


@pytest.fixture(autouse=True)
def no_stray_threads() -> Iterator[None]:
    """Fail a test that leaves a thread behind which would keep the interpreter alive."""
    before = set(threading.enumerate())
    yield
    stray = [t for t in threading.enumerate() if t not in before and not t.daemon]
    for thread in stray:
        thread.join(timeout=60.0)
    alive = [thread.name for thread in stray if thread.is_alive()]
    assert not alive, f"threads left behind: {alive}; close() what the test opened."


@pytest.fixture
def outlined_pictures() -> Iterator[None]:
    """A run's pictures are put together, but not rendered, which takes longer than a short run.

    For modules with many runs whose pictures nobody looks at. What such a module has carried out
    for several of its tests is drawn all the same.
    """
    from server.report import plots

    def outline(figure: Any, path: Path, caption: str) -> tuple[Path, str]:
        path.write_bytes(b"")
        return path, caption

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", outline)
        yield


@contextlib.contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much where cores are shared."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For modules that load torch."""
    with torch_on_one_thread():
        yield


@pytest.fixture(scope="module")
def looked_at_once() -> Iterator[None]:
    """For modules with many runs in this process; see `tests.support.looked_at_once`."""
    from tests.support.looked_at_once import looked_at_once

    with looked_at_once():
        yield


@pytest.fixture(scope="session")
def iio_module() -> Any:
    """The real Python binding on the real libiio; `make test` gets both."""
    from radio.pluto.libiio import findable_libiio

    with findable_libiio():
        import iio  # type: ignore[import-not-found]
    return iio


@pytest.fixture(scope="session")
def run_iio_tool() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs one of libiio's own programs, from the system or from where `make test` unpacked it."""

    def run(name: str, *words: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[bytes]:
        command, environment = _iio_tool(name)
        return subprocess.run(
            [command, *words], capture_output=True, timeout=timeout_s, env=environment, check=False
        )

    return run


@pytest.fixture
def start_iio_tool() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts one of them, with a standard input to write to; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *words: str) -> subprocess.Popen[bytes]:
        command, environment = _iio_tool(name)
        process = subprocess.Popen([command, *words], stdin=subprocess.PIPE, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _iio_tool(name: str) -> tuple[str, dict[str, str]]:
    """Where it is, and the environment it needs."""
    folder = Path(sys.prefix) / "libiio"
    command = shutil.which(name) or str(folder / "bin" / name)
    return command, {**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")}


@dataclass
class VirtualPlutos:
    """A ``pairzero-radio virtual-pluto`` of its own process."""

    process: subprocess.Popen[str]
    uris: list[str]


@pytest.fixture
def start_virtual_plutos() -> Iterator[Callable[..., VirtualPlutos]]:
    """Starts ``pairzero-radio virtual-pluto`` and reads where its radios are."""
    started: list[subprocess.Popen[str]] = []

    def start(num_nodes: int, *options: str) -> VirtualPlutos:
        program = "import sys; from radio.commands.cli import main; sys.exit(main())"
        words = ["virtual-pluto", "--nodes", str(num_nodes), "--base-port", "0", *options]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        return VirtualPlutos(
            process, [process.stdout.readline().split()[-1] for _ in range(num_nodes)]
        )

    yield start
    for process in started:
        process.terminate()
        assert process.wait(timeout=600) == 0
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def toy_task() -> Any:
    """Three intents whose words are single tokens of the tiny model."""
    from edge_runtime.task_spec import TaskSpec

    return TaskSpec(name="toy", template="{text} Intent:", label_words=LABEL_WORDS)


@pytest.fixture(scope="session")
def tiny_bundle_folder(tmp_path_factory: pytest.TempPathFactory, toy_task: Any) -> Path:
    """A bundle exported from a random OPT of some 30,000 weights. Copy it before damaging it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return export_tiny_bundle(tmp_path_factory.mktemp("tiny-opt"), toy_task)
    of_all_workers = tmp_path_factory.getbasetemp().parent / "tiny-opt"
    with of_all_workers.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first exports it
        if not of_all_workers.exists():
            made = export_tiny_bundle(tmp_path_factory.mktemp("tiny-opt"), toy_task)
            made.parent.rename(of_all_workers)
    return of_all_workers / "bundle"


def export_tiny_bundle(folder: Path, task: Any) -> Path:
    """Into ``folder``: the model, and its bundle."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("onnx")
    from server.export import export_bundle
    from server.export.random_models import write_random_opt

    with torch_on_one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the exporters announce is not under test here
        # Odd sizes, so that words of 64 signs end inside and between tensors.
        model = write_random_opt(
            folder / "model", size="tiny", seed=3, init_std=0.2, hidden_size=22,
            num_attention_heads=2, ffn_dim=38, max_position_embeddings=40,
        )  # fmt: skip
        return export_bundle(model, folder / "bundle", task=task)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_folder: Path) -> Any:
    """The same, opened."""
    from edge_runtime.bundle import open_bundle

    return open_bundle(tiny_bundle_folder)


@functools.cache
def open_plain_session(graph: bytes) -> Any:
    """An ordinary session on one thread."""
    from edge_runtime.onnx_runtime import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_plain_graphs(
    graphs: Mapping[str, bytes],
    weights: Mapping[str, np.ndarray[Any, Any]],
    inputs: Mapping[str, np.ndarray[Any, Any]],
    num_layers: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """A bundle's graphs, one after another in ordinary sessions: nothing bound, nothing shared.

    ``weights`` by torch's name, ``inputs`` the four integer inputs. Gives "loss" and "scores".
    """
    sessions = {name: open_plain_session(graph) for name, graph in graphs.items()}

    def run(name: str, prefix: str, hidden: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
        given = {**weights, **inputs, **hidden}
        given |= {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        asked = [item.name for item in sessions[name].get_inputs()]
        results: list[np.ndarray[Any, Any]] = sessions[name].run(None, {n: given[n] for n in asked})
        return results

    (state,) = run("embedding.onnx", "no layer", {})
    for layer in range(num_layers - 1):
        (state,) = run("layer.onnx", f"model.decoder.layers.{layer}.", {"hidden": state})
    last = f"model.decoder.layers.{num_layers - 1}."
    loss, scores = run("last_layer.onnx", last, {"hidden": state})
    return {"loss": loss, "scores": scores}


@pytest.fixture(scope="session")
def plain_graphs() -> Callable[..., dict[str, np.ndarray[Any, Any]]]:
    """plain_graphs(graphs, weights, inputs, num_layers) -> outputs, by no code of the product."""
    return run_plain_graphs


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_bundle: Any) -> Any:
    """The tiny model's tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(tiny_bundle.tokenizer_path))


@pytest.fixture(scope="session")
def toy_examples(toy_task: Any) -> list[Any]:
    """Two labelled texts of each class, of different lengths."""
    from edge_runtime.tasks import Example

    return [Example(toy_task.labels.index(label), text) for label, text in TEXTS]


@pytest.fixture
def make_plan() -> Callable[..., RoundPlan]:
    """make_plan(devices=(0, 1), noise_std=0.0, **changes) -> RoundPlan of round 0."""

    def make(devices: tuple[int, ...] = (0,), noise_std: float = 0.0, **changes: Any) -> RoundPlan:
        fields: dict[str, Any] = {
            "run_id": RUN_ID,
            "round_index": 0,
            "direction_seed": 2024,
            "direction_generator": GENERATOR,
            "perturbation_scale": 2.0**-10,
            "clip": 4.0,
            "batch_size": len(TEXTS),
            "access": Access.SUPERPOSED,
            "frame_start_sample": 0,
            "orders": tuple(TransmitOrder(i, 0.125, -0.0625, noise_std) for i in devices),
        }
        return RoundPlan(**{**fields, **changes})

    return make


class RecordingUplink(Uplink):
    """Keeps what it was given. Does not model: anything."""

    def __init__(self) -> None:
        self.pilots: list[tuple[int, SoundingOrder]] = []
        self.vectors: list[tuple[complex, ...]] = []
        self.orders: list[TransmitOrder] = []
        self.is_closed = False
        self.error: Exception | None = None

    def send_pilot(self, device_index: int, order: SoundingOrder) -> None:
        self.pilots.append((device_index, order))

    @property
    def scalars(self) -> list[complex]:
        """What was sent in rounds of one number."""
        return [scalar for (scalar,) in self.vectors]

    def send_scalars(
        self, noisy_scalars: Sequence[complex], order: TransmitOrder, plan: RoundPlan
    ) -> Participation:
        if self.error is not None:
            raise self.error
        self.vectors.append(tuple(noisy_scalars))
        self.orders.append(order)
        return Participation.TRANSMITTED

    def fall_silent(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Host:
    """A DeviceAgent and everything it was made of."""

    agent: Any
    store: Any
    forward: Any
    devices: list[Any]
    uplinks: list[RecordingUplink]
    seen: list[tuple[int, int, Any, Any]] = field(default_factory=list)


@pytest.fixture
def make_host(
    tiny_bundle: Any,
    toy_task: Any,
    toy_examples: list[Any],
    tiny_tokenizer: Any,
    tmp_path: Any,
) -> Iterator[Callable[..., Host]]:
    """make_host(num_devices, num_workers=1, wrap_forward=None, keys=(), ...) -> Host.

    ``wrap_forward`` takes the real forward and returns what the agent shall use instead;
    ``is_private``, or anything of a policy (`policies.make_policy`), makes a promise, counted in
    ``ledger``, a folder of its own by default.
    """
    from edge_runtime.agent import DeviceAgent
    from edge_runtime.forward import OnnxForward
    from edge_runtime.guard.guard import Guard
    from edge_runtime.parameters import ParameterStore
    from edge_runtime.private_random import PrivateRandom
    from edge_runtime.tasks import PromptSet
    from edge_runtime.virtual_device import VirtualDevice
    from tests.support.policies import make_policy

    made: list[Host] = []

    def make(
        num_devices: int = 1,
        *,
        num_workers: int = 1,
        wrap_forward: Callable[[Any], Any] | None = None,
        keys: tuple[bytes, ...] = (),
        is_private: bool = False,
        ledger: Any = None,
        **agreed: Any,
    ) -> Host:
        store = ParameterStore.from_bundle(tiny_bundle)
        real = OnnxForward(tiny_bundle, store, num_workers=num_workers)
        forward = wrap_forward(real) if wrap_forward else real
        prompts = PromptSet(toy_examples, toy_task, tiny_tokenizer, 32)
        uplinks = [RecordingUplink() for _ in range(num_devices)]
        policy = make_policy(**agreed) if is_private or agreed else None
        keys = keys or tuple(PrivateRandom.simulated_key(7, i) for i in range(num_devices))
        devices = [
            VirtualDevice(
                device_index=index,
                owner=str(index),
                prompts=prompts,
                private_random=PrivateRandom(keys[index]),
                uplink=uplinks[index],
                policy=policy,
            )
            for index in range(num_devices)
        ]
        seen: list[tuple[int, int, Any, Any]] = []
        agent = DeviceAgent(
            host="host-of-the-tests",
            run_id=RUN_ID,
            devices=devices,
            store=store,
            forward=forward,
            observe_scalar=lambda *what: seen.append(what),
        )
        if policy is not None:
            agent.guard_with(Guard(ledger or tmp_path / f"own-{len(made)}", agent.policies))
        made.append(Host(agent, store, real, devices, uplinks, seen))
        return made[-1]

    yield make
    for host in made:
        host.forward.close()
