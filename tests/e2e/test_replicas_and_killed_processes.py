"""1,000 rounds of random Q, seeds and steps, in a process that is killed again and again.

The journal is the run's own store. Whatever was lost with a process, the next one replays what is
recorded and goes on; at the end its weights are those of a replica that never died, bit for bit.
"""

import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.bundle import TensorEntry
from edge_runtime.parameters import ParameterStore
from edge_runtime.protocol.direction import direction_seeds
from edge_runtime.protocol.rounds import RoundResult
from server.store.records import RoundRow
from server.store.run_store import RunStore

ROUNDS = 1000
SCALE = 2.0**-10
ROOT = Path(__file__).parents[2]


def make_store():
    rng = np.random.default_rng(3)
    entries = [TensorEntry(f"w{i}", (n,), "float32", -22 + i) for i, n in enumerate((700, 65, 1))]
    arrays = {e.name: rng.normal(0, 0.1, e.shape).astype(np.float32) for e in entries}
    return ParameterStore.from_arrays(entries, arrays)


def result_of(round_index):
    """The same whoever asks: Q from 1 to 40, so more directions than fit into one pass."""
    rng = random.Random(round_index)
    num_directions = rng.choice((1, 1, 2, 3, 8, 17, 40))
    steps = tuple(rng.randrange(-(2**26), 2**26) for _ in range(num_directions))
    return RoundResult("r", round_index, rng.getrandbits(64), steps)


def look_around(store, result, rng):
    """Away along each direction and home again; now and then somebody reads the weights there."""
    for seed in direction_seeds(result.direction_seed, len(result.step_integers)):
        with store.moved(seed, SCALE):
            if rng.random() < 0.3:
                store.settle()
        if rng.random() < 0.5:
            with store.moved(seed, -SCALE):
                store.settle()


def row_of(result):
    nothing = (0.0,) * len(result.step_integers)
    return RoundRow(
        round_index=result.round_index, direction_seed=result.direction_seed,
        step_integers=result.step_integers, num_speakers=1, num_erased=0, is_skipped=False,
        mean_estimates=nothing, true_means=None, squared_error_of_noise=None,
        squared_error_of_radio=None, share_clipped=None, artificial_noise_std=0.0,
        receiver_noise_std=0.0, amplitude_error_bound=0.0, noise_multiplier=0.0, receive_scale=0.0,
        energies=(), weakest_gain=0.0, learning_rate=0.0, wall_s=None,
    )  # fmt: skip


def go_on(folder):
    """Replay what is recorded, carry out the rest with a line each, print the digest."""
    journal, store, rng = RunStore.open(folder), make_store(), random.Random()
    store.replay(journal.results("r"))
    for round_index in range(journal.num_rounds(), ROUNDS):
        result = result_of(round_index)
        look_around(store, result, rng)
        store.apply_step(result)
        journal.append_round(row_of(result))
        say(round_index)
    say(store.digest())


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


@pytest.fixture(scope="module")
def undisturbed():
    """The digest of a replica that lived through all of it and only took the steps."""
    store = make_store()
    for round_index in range(ROUNDS):
        store.apply_step(result_of(round_index))
    return store.digest()


def test_killed_processes_leave_the_weights_of_one_that_never_died(tmp_path, undisturbed):
    RunStore.create(tmp_path / "run", {}).close()
    rng, at_death = random.Random(5), []
    while not at_death or at_death[-1] < ROUNDS - 150:
        child = start(tmp_path / "run")
        for _ in range(rng.randrange(40, 150)):
            child.stdout.readline()
        # It works on meanwhile, and dies wherever it is.
        child.send_signal(signal.SIGKILL)
        child.communicate()
        journal = RunStore.open(tmp_path / "run")
        at_death.append(journal.num_rounds())
        journal.close()
    said, _ = start(tmp_path / "run").communicate(timeout=600)
    assert len(at_death) >= 5
    assert said.split()[-1] == undisturbed


def start(folder):
    return subprocess.Popen(
        [sys.executable, __file__, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_negative_control_a_lost_or_doubled_step_would_be_seen(undisturbed):
    for changed in (range(1, ROUNDS), [0, *range(ROUNDS)]):
        store = make_store()
        store.replay(map(result_of, changed))
        assert store.digest() != undisturbed


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
