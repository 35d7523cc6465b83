"""Somebody else on the air: told with the right figure, and never where nobody is."""

import numpy as np
import pytest

from radio.measurement import Setting, measure_energy
from radio.software_air.channel_models import AwgnChannel
from radio.software_air.impairments import IMPAIRMENTS
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_intruders import LEAST_SHARE, find_intruder

WAVEFORM = EnergyWaveform(plateau_samples=1 << 14, num_scalars=2)
N = WAVEFORM.plateau_samples
ARRIVAL_POWER = 0.01


def noise(rng, power):
    parts = rng.standard_normal(2 * N) * np.sqrt(power / 2)
    return parts.view(np.complex128)


def heard(rng, num_devices=5, share=0.4, offsets_hz=20e3, noise_power=1e-4):
    """A plateau of devices with carriers and phases of their own."""
    amplitude = np.sqrt(ARRIVAL_POWER) / WAVEFORM.full_power_amplitude
    total = noise(rng, noise_power)
    for _ in range(num_devices):
        burst = WAVEFORM.burst([share, 0.0], 1.0, rng).samples.astype(complex) * amplitude
        offset = rng.uniform(-offsets_hz, offsets_hz) / WAVEFORM.sample_rate_hz
        turns = offset * np.arange(N) + rng.random()
        total += np.roll(burst, rng.integers(N)) * np.exp(2j * np.pi * turns)
    return total


def tone(frequency_hz, power):
    turns = frequency_hz / WAVEFORM.sample_rate_hz * np.arange(N)
    return np.sqrt(power) * np.exp(2j * np.pi * turns)


def found_in(plateau, silence):
    bins = (WAVEFORM.bin_powers(each.astype(np.complex64)) for each in (plateau, silence))
    return find_intruder(WAVEFORM, *bins, ARRIVAL_POWER)


@pytest.mark.parametrize(
    ("frequency_hz", "number", "moves"),
    [
        (50e3, 0, 0.1), (61.3e3, 0, 0.1), (130e3, 0, 0.1), (-209.9e3, 0, -0.1), (300e3, 1, 0.1),
        (-410e3, 1, -0.1),
    ],
)  # fmt: skip
def test_a_tone_in_the_payload_alone_is_told_with_what_it_does_to_the_sum(
    frequency_hz, number, moves
):
    rng = np.random.default_rng(1)
    clean, silence = heard(rng), noise(rng, 1e-4)
    spoilt = clean + tone(frequency_hz, 0.1 * ARRIVAL_POWER)
    found = found_in(spoilt, silence)
    assert found.frequency_hz == pytest.approx(frequency_hz, abs=3 * WAVEFORM.sample_rate_hz / N)
    sums = [
        WAVEFORM.estimate_sums(
            WAVEFORM.energies(each.astype(np.complex64)),
            WAVEFORM.energies(silence.astype(np.complex64)), ARRIVAL_POWER, 5.0,
        )
        for each in (spoilt, clean)
    ]  # fmt: skip
    assert found.share == pytest.approx(0.1, abs=0.03)
    moved = sums[0] - sums[1]
    assert moved[number] == pytest.approx(moves, abs=0.03)
    assert moved[1 - number] == pytest.approx(0.0, abs=1e-3)
    side = "above" if frequency_hz > 0 else "below"
    said = f"a tone {abs(found.frequency_hz) / 1e3:.1f} kHz {side} the carrier, which moves the sum"
    assert f"{said} of number {number} by" in str(found)


def test_a_tone_that_is_in_the_silence_too_is_taken_off_and_not_told():
    rng = np.random.default_rng(2)
    steady = tone(130e3, 0.1 * ARRIVAL_POWER)
    assert found_in(heard(rng) + steady, noise(rng, 1e-4) + steady) is None


def test_what_moves_no_sum_is_not_told():
    rng = np.random.default_rng(3)
    faint = tone(300e3, 0.5 * LEAST_SHARE * ARRIVAL_POWER)
    # In an empty band it stands out, and is nothing.
    assert found_in(heard(rng, share=0.9, noise_power=1e-9) + faint, noise(rng, 1e-9)) is None
    assert found_in(heard(rng, noise_power=1e-9), noise(rng, 1e-9)) is None


def test_something_broad_is_told_by_the_bins_where_no_device_is():
    rng = np.random.default_rng(4)
    broad = noise(rng, 0.5 * ARRIVAL_POWER * N / WAVEFORM.num_guarded_bins)
    found = found_in(heard(rng) + broad, noise(rng, 1e-4))
    assert found.frequency_hz is None
    assert found.share == pytest.approx(0.5, rel=0.2)
    assert "broad" in str(found)


@pytest.mark.parametrize("name", ["ideal", "desk-cabled", "pluto-stock"])
@pytest.mark.parametrize(("devices", "snr_db"), [(1, 30.0), (5, 0.0), (10, 20.0)])
def test_devices_alone_are_nobody_else(name, devices, snr_db):
    """Every capture of a measurement with radios as they are; false alarms 1e-11 a capture."""
    waveform = EnergyWaveform(plateau_samples=1 << 13)
    captures = []
    setting = Setting(
        channel=AwgnChannel(), snr_db=snr_db, num_trials=10, impairments=IMPAIRMENTS[name],
        impairments_name=name, seed=5, on_capture=captures.append,
    )  # fmt: skip
    measure_energy(waveform, setting, num_devices=devices, calibration_error_db=0.0)
    payloads = [waveform.bin_powers(capture) for capture in captures]
    assert payloads
    # As silent as what is heard beyond the bands, where nobody is.
    quiet = np.full(waveform.plateau_samples, payloads[0][waveform.empty_bins].mean())
    level = max(float(waveform.band_energies(p).sum()) for p in payloads)
    for payload in payloads:
        assert find_intruder(waveform, payload, quiet, level / devices) is None
