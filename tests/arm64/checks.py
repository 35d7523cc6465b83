"""What is asked of a device on aarch64, in one process: onnxruntime's import alone takes seconds.

Runs there and here; prints one line of JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.kernel import KERNEL_NAME
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.rounds import RoundResult

STEPS, DIRECTIONS = 200, 8


def steps():
    """Steps as large as those of a run, of any sign."""
    rng = np.random.default_rng(5)
    for number in range(STEPS):
        integers = tuple(int(k) for k in rng.integers(-(1 << 26), 1 << 26, DIRECTIONS))
        yield RoundResult("arm64", number, 1000 + number, integers)


def moved_store(folder=BUNDLED_MODEL_FOLDER, trainable="all"):
    store = ParameterStore.from_bundle(open_bundle(folder), trainable)
    store.replay(steps())
    return store


def losses(store, folder=BUNDLED_MODEL_FOLDER):
    """Losses of made-up prompts on weights that have moved."""
    from edge_runtime.forward import OnnxForward
    from edge_runtime.tasks import Batch

    bundle = open_bundle(folder)
    ids = np.random.default_rng(0).integers(4, 4096, (4, 24))
    batch = Batch(ids, (np.arange(4) + 1) * 24 - 1, np.zeros(4, dtype=np.int64))
    forward = OnnxForward(bundle, store)
    try:
        return forward.run(batch).losses.tolist()
    finally:
        forward.close()


def small(folder, trainable):
    """The same of weights in 16 and 8 bits, and of a step along the way."""
    store = moved_store(folder, trainable)
    store.add_direction(7, 2.0**-10)
    return {"digest": store.digest(), "losses": losses(store, folder)}


def main(folder):
    found = {"kernel": KERNEL_NAME}
    store = moved_store()
    found["digest"] = store.digest()
    if folder is not None:
        from edge_runtime.profiling.profile import ProfileSettings, profile
        from edge_runtime.selftest import run_selftest

        found["losses"] = losses(store)
        found["int16"] = small(folder / "int16", "all")
        found["int8"] = small(folder / "int8", ["*.layers.2.*"])
        found["selftest_devices"] = run_selftest(BUNDLED_MODEL_FOLDER, num_devices=2).num_devices
        settings = ProfileSettings(BUNDLED_MODEL_FOLDER, batch=2, seq=8, rounds=1)
        done = profile(settings)
        found["profile"] = {
            "is_complete": done.is_complete,
            "phases": [phase.name for phase in done.phases],
            "peak_rss_bytes": done.peak_rss_bytes,
        }
    sys.stdout.write(f"{json.dumps(found)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
