"""A short recording from the real client stack, read and demodulated as on the day it was made."""

import json
from pathlib import Path

import numpy as np
import pytest

from radio.recordings.replay import ReplayTransceiver
from radio.recordings.sigmf import load_recording
from radio.waveforms.energy import EnergyWaveform

FOLDER = Path(__file__).parent
PROVENANCE = json.loads((FOLDER / "pluto_capture.json").read_text("utf-8"))


@pytest.fixture
def radio():
    return ReplayTransceiver(FOLDER / "pluto_capture.sigmf-meta")


def test_the_recording_is_what_it_says():
    recording = load_recording(FOLDER / "pluto_capture")
    assert PROVENANCE["format"] == 1
    assert recording.source.startswith("virtual-pluto+pyadi-iio 0.0.21+libiio 0.2")
    assert recording.labels == ("silence", "pilot of device 0", "pilot of device 1",
                                "numbers")  # fmt: skip
    assert (recording.sample_rate_hz, recording.carrier_hz) == (1e6, 915e6)
    # Twelve bits: every part is a whole number of steps.
    parts = np.concatenate(recording.captures).view(np.float32) * 2048
    np.testing.assert_array_equal(parts, np.rint(parts))


def test_energies_and_sums_are_those_of_then(radio):
    waveform = EnergyWaveform(plateau_samples=8192, num_scalars=3)
    energies = []
    for wanted in PROVENANCE["energies"]:
        label = radio.label
        energies.append(waveform.energies(radio.capture(8192, timeout_s=1.0)))
        got = energies[-1]
        np.testing.assert_allclose(
            got,
            wanted,
            rtol=PROVENANCE["tolerance"],
            err_msg=f"{label}; if on purpose: {PROVENANCE['regenerate']}",
        )
    arrival_power = waveform.arrival_power(PROVENANCE["level"])
    estimates = waveform.estimate_sums(energies[3], energies[0], arrival_power, 2.0)
    # Some 700 bins: a sum of two such numbers scatters by some 0.02, and gains are off by as much.
    np.testing.assert_allclose(estimates, PROVENANCE["true_sums"], atol=0.1)
