"""What a receiver has to have of noise so that devices cover one another, attacked and computed."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from edge_runtime.guard.sensitivity import SUM_SHIFT_GROWTH
from edge_runtime.number_grid import NumberGrid
from radio.waveforms.coherent import CoherentWaveform
from server.privacy.receiver_noise import KEPT_BACK, receiver_noise_needed

CLIP, BATCH = 20.0, 16
STEP = CLIP / BATCH
SUM_NOISE_STD = 1.1
NUM_DEVICES = 2
NEEDED = receiver_noise_needed(
    step=STEP,
    bound=CLIP,
    sensitivity=STEP,
    sum_noise_std=SUM_NOISE_STD,
    num_devices=NUM_DEVICES,
    num_scalars=1,
)


def likelihood_gaps(round_to, receiver_noise_std):
    """Of 2,000 pairs of rounds with the same sum: what a receiver knows of who said what, in nats.

    Gains whose product with a level is exact, so that nothing but rounding on the way differs.
    """
    rng = np.random.default_rng(3)
    waveform = CoherentWaveform(num_devices=NUM_DEVICES)
    grid = NumberGrid.of_numbers(CLIP, BATCH)
    gains, scale = np.array([0.5, 2.0j]), 0.0123456789

    def arriving(steps):
        total = np.zeros(waveform.payload_symbols, dtype=np.clongdouble)
        for gain, count in zip(gains, steps, strict=True):
            burst = waveform.modulate([complex(grid.number(count))], complex(scale / gain))
            total += gain * round_to(burst).astype(np.clongdouble)
        return total

    gaps = []
    for _ in range(2_000):
        first, second = (grid.nearest(x) for x in rng.normal(0.0, SUM_NOISE_STD, NUM_DEVICES))
        moved = grid.nearest(STEP)
        apart = arriving((first, second)) - arriving((first + moved, second - moved))
        noise_std = receiver_noise_std * scale * math.sqrt(waveform.payload_symbols)
        gaps.append(float(np.sum(np.abs(apart) ** 2)) / (2.0 * noise_std**2))
    return np.array(gaps)


def test_equal_sums_look_alike_under_the_noise_that_is_needed():
    multiplier = SUM_NOISE_STD / STEP
    allowed = 2.0**-19 / (2.0 * multiplier**2)
    gaps = likelihood_gaps(lambda burst: burst, NEEDED)
    assert gaps.max() <= allowed
    assert gaps.max() > 0.0


def test_negative_control_single_precision_tells_them_apart():
    def in_single(burst):
        return burst.astype(np.complex64)

    assert np.mean(likelihood_gaps(in_single, NEEDED)) > 100.0


def test_without_noise_of_devices_four_steps_of_the_coarsest_grid_are_left():
    noise = receiver_noise_needed(
        step=1.0, bound=1.0, sensitivity=1.0, sum_noise_std=0.0, num_devices=9, num_scalars=1
    )
    assert noise == 4 * 2.0**-34
    assert 20 * math.log10(noise) == pytest.approx(-192.7, abs=0.1)


def test_what_is_needed_beside_what_is_counted_is_taken_from_the_rest():
    settings = {"step": 1.0, "bound": 1.0, "sensitivity": 1.0, "sum_noise_std": 3.0}
    settings |= {"num_devices": 4, "num_scalars": 2}
    alone = receiver_noise_needed(**settings)
    for fraction in (0.0, 0.5, 1.0 - KEPT_BACK):
        beside = receiver_noise_needed(**settings, counted_fraction=fraction)
        assert beside * math.sqrt(1.0 - fraction) == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("num_scalars", [1, 7])
@pytest.mark.parametrize("num_devices", [2, 50])
def test_the_growth_of_a_shift_pays_for_what_rounding_tells(num_devices, num_scalars):
    """Norm by norm: the bound of the module, at the noise that it asks for."""
    bound, sensitivity, noise_std = 20.0, 1.25, 9.0
    settings = {"bound": bound, "sensitivity": sensitivity, "sum_noise_std": noise_std}
    needed = receiver_noise_needed(
        step=0.0, num_devices=num_devices, num_scalars=num_scalars, **settings
    )
    share = noise_std / math.sqrt(num_devices)
    largest = num_devices * (bound + 40 * math.sqrt(2) * share)
    shift = 2 * 2 * (5 + num_devices) * 2.0**-53 * largest / needed
    own = sensitivity / noise_std
    both = math.sqrt(own**2 + num_scalars * shift**2)
    assert own * (1 + 2.0**-22) < both <= own * SUM_SHIFT_GROWTH


def test_mixtures_within_a_ball_are_no_easier_to_tell_apart_than_its_ends():
    """Hockey-stick divergences of N(R, 1), R in [-b, b] by any two laws, against those of 2 b."""
    rng = np.random.default_rng(5)
    at = np.linspace(-12.0, 12.0, 4_001)
    for radius, epsilon in itertools.product((0.05, 0.4), (0.0, 0.01, 0.3)):
        ends = stats.norm.sf(epsilon / (2 * radius) - radius)
        ends -= math.exp(epsilon) * stats.norm.sf(epsilon / (2 * radius) + radius)
        for _ in range(20):
            places = radius * rng.choice([-1.0, -0.3, 0.4, 1.0], size=(2, 6))
            first, second = (stats.norm.pdf(at[:, None], place).mean(axis=1) for place in places)
            excess = np.maximum(first - math.exp(epsilon) * second, 0.0)
            assert np.trapezoid(excess, at) <= ends + 1e-9
