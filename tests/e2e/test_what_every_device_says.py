"""Every number of a whole run once more, from the promise's own definition and each device's key.

Who is in a batch, what of it is clipped, what it is divided by, which noise is added on which axis
and from whose key: a run is watched at the door of its uplinks, and all of it is computed again.
Nothing of how devices are wired together is taken from the program.
"""

import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
from whole_runs import carry_out, looked_at

from edge_runtime.agent import DeviceAgent
from edge_runtime.private_random import PrivateRandom, noise_stream
from edge_runtime.tasks import PromptSet
from edge_runtime.uplink import CoherentUplink
from server.config.files import load_config
from server.errors import PrivacyError
from server.run import local_host
from server.run.experiment import Experiment

DEVICES, ROUNDS, Q, SEED, BATCH, CLIP = 3, 4, 3, 11, 6, 5.0
SETTINGS = {
    "federation.num_devices": DEVICES, "optimizer.rounds": ROUNDS, "optimizer.directions": Q,
    "optimizer.batch_size": BATCH, "optimizer.clip": CLIP, "run.seed": SEED,
    "task.validation_examples": 10, "task.max_tokens": 16, "run.evaluation_interval": ROUNDS,
    "radio.channel": "awgn", "radio.snr_db": 30.0, "privacy.epsilon": 8.0,
    "optimizer.learning_rate": 1e-3,
}  # fmt: skip
STEP = 2.0**-35  # the largest power of two below 2^-34 clip / batch_size


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """(what was said in every round by every device, the ledger's records)."""
    spoken, drawn = [], []
    speak, send = DeviceAgent._speak, CoherentUplink.send_scalars
    chosen_of = PromptSet.chosen

    def note_batch(self, indices):
        drawn.append((len(self), [int(i) for i in indices]))
        return chosen_of(self, indices)

    def note_gradients(self, plan, release, device, order, gradients):
        spoken.append({"plan": plan, "release": release, "order": order, "gradients": gradients})
        return speak(self, plan, release, device, order, gradients)

    def note_numbers(self, noisy_scalars, order, plan):
        spoken[-1]["said"] = tuple(noisy_scalars)
        return send(self, noisy_scalars, order, plan)

    folder = tmp_path_factory.mktemp("said") / "run"
    with pytest.MonkeyPatch.context() as patch:
        run = Experiment.start(load_config("snips", SETTINGS), folder)
        patch.setattr(PromptSet, "chosen", note_batch)
        patch.setattr(DeviceAgent, "_speak", note_gradients)
        patch.setattr(CoherentUplink, "send_scalars", note_numbers)
        assert carry_out(run)
    for one, (num_records, chosen) in zip(spoken, drawn, strict=True):
        one |= {"num_records": num_records, "chosen": chosen}
    return spoken, looked_at(folder).records


def key_of(device):
    text = f"pairzero/simulated-private-key/{SEED}/{device}".encode()
    return hashlib.sha256(text).digest()


def test_every_device_speaks_in_every_round(watched):
    spoken, records = watched
    told = [(one["plan"].round_index, one["order"].device_index) for one in spoken]
    assert told == [(t, k) for t in range(ROUNDS) for k in range(DEVICES)]
    assert len({one["release"] for one in spoken}) == ROUNDS
    for record in records:
        (one,) = [
            one for one in spoken
            if (one["plan"].round_index, one["order"].device_index)
            == (record.round_index, record.device_index)
        ]  # fmt: skip
        commitment = PrivateRandom(key_of(record.device_index)).commitment
        assert record.noise_stream == noise_stream(commitment, one["release"])
        assert record.sampling_probability == BATCH / one["num_records"]


def test_batches_are_drawn_from_each_devices_own_key_at_the_rate_that_is_charged(watched):
    spoken, _ = watched
    for one in spoken:
        key, count = key_of(one["order"].device_index), one["num_records"]
        stream = hashlib.shake_256(key + f"/batch/{one['release']}".encode()).digest(8 * count)
        threshold = math.floor(BATCH / count * 2**64)
        wanted = [i for i in range(count)
                  if int.from_bytes(stream[8 * i : 8 * i + 8], "little") < threshold]  # fmt: skip
        assert one["chosen"] == wanted
        assert len(one["gradients"]) == len(wanted)


def test_what_is_said_is_the_clipped_mean_and_noise_of_the_ordered_size_on_both_axes(watched):
    spoken, _ = watched
    num_cut = 0
    for one in spoken:
        gradients = np.asarray(one["gradients"], dtype=float).reshape(-1, Q)
        norms = np.linalg.norm(gradients, axis=1, keepdims=True)
        num_cut += int(np.sum(norms > CLIP))
        clipped = gradients * np.minimum(1.0, CLIP / np.maximum(norms, 1e-300))
        mean = clipped.sum(axis=0) / BATCH
        mean *= min(1.0, CLIP / max(np.linalg.norm(mean), 1e-300))
        own = PrivateRandom(key_of(one["order"].device_index))
        sigma = math.ceil(one["order"].artificial_noise_std / STEP)
        draws = own.circular_draws(one["release"], sigma, Q)
        assert sigma > 2**20
        assert len({part for draw in draws for part in draw}) == 2 * Q
        for said, number, (in_phase, quadrature) in zip(one["said"], mean, draws, strict=True):
            assert abs(said.real - (number + in_phase * STEP)) <= 2.0 * STEP + 1e-12
            assert said.imag == pytest.approx(quadrature * STEP, rel=1e-12)
    assert num_cut > 0  # or clipping was not looked at


def test_a_host_whose_devices_do_not_have_the_keys_that_are_charged_speaks_for_nobody(
    tmp_path, monkeypatch
):
    """Noise of one key for all would be charged as if it were independent."""
    with monkeypatch.context() as patch:
        same = (PrivateRandom(key_of(0)),) * DEVICES
        patch.setattr(local_host.HostKeys, "private_randoms", lambda keys: same)
        with pytest.raises(PrivacyError, match="two devices have the same key"):
            Experiment.start(load_config("snips", SETTINGS), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    one_key = PrivateRandom(key_of(0))
    owned = [SimpleNamespace(device_index=k, private_random=one_key) for k in (0, 1)]
    charged = tuple(PrivateRandom(key_of(k)).commitment for k in (0, 1))
    with pytest.raises(PrivacyError, match="device 1 has another key than the one"):
        local_host._check_keys(owned, SimpleNamespace(commitments=charged))
