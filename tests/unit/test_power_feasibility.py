import math

import pytest

from server.errors import ConfigurationError
from server.power.feasibility import information_ceiling_nats, noise_to_clip_ratio


def test_noise_to_clip_ratio():
    assert noise_to_clip_ratio(mean_noise_std=0.5, clip=2.0) == 0.25


def test_information_ceiling_reproduces_the_theory():
    # theory.md 4.6: K = 5, device level, (5, 1e-2): R_dp = 1.108 gives K^2 R / 4 = 6.9 nats.
    num_rounds, clip = 8000, 100.0
    sum_noise_std = math.sqrt(2 * clip**2 * num_rounds / 1.108)
    ceiling = information_ceiling_nats(
        num_rounds=num_rounds, num_devices=5, num_scalars=1, clip=clip, sum_noise_std=sum_noise_std
    )
    assert ceiling == pytest.approx(25 * 1.108 / 4, rel=1e-2)
    assert ceiling <= 25 * 1.108 / 4


def test_without_noise_there_is_no_ceiling():
    assert math.isinf(
        information_ceiling_nats(
            num_rounds=1, num_devices=1, num_scalars=1, clip=1.0, sum_noise_std=0.0
        )
    )


def test_many_numbers_of_one_norm_carry_no_more_than_little_noise_allows():
    def ceiling(num_scalars, sum_noise_std):
        return information_ceiling_nats(
            num_rounds=10, num_devices=2, num_scalars=num_scalars, clip=1.0,
            sum_noise_std=sum_noise_std,
        )  # fmt: skip

    # Where noise drowns the signal only its power counts, and that is shared.
    assert ceiling(8, 1e3) == pytest.approx(ceiling(1, 1e3), rel=1e-5)
    assert ceiling(8, 1e3) == pytest.approx(10 * 0.5 * 4e-6, rel=1e-5)
    # Where there is hardly any, every number is a channel of its own.
    assert ceiling(8, 1e-3) > 6 * ceiling(1, 1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"sum_noise_std": -1.0},
        {"clip": 0.0},
        {"clip": math.nan},
        {"num_rounds": 0},
        {"num_devices": 0},
        {"num_scalars": 0},
    ],
)
def test_numbers_out_of_range_are_refused(changes):
    plan = {"num_rounds": 1, "num_devices": 1, "num_scalars": 1, "clip": 1.0, "sum_noise_std": 1.0}
    with pytest.raises(ConfigurationError):
        information_ceiling_nats(**{**plan, **changes})
    with pytest.raises(ConfigurationError):
        noise_to_clip_ratio(mean_noise_std=-1.0, clip=1.0)
