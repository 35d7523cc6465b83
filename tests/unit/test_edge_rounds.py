"""Records refuse at birth what cannot be meant, and carry no scalar."""

import msgspec
import pytest

from edge_runtime.protocol.errors import WireError
from edge_runtime.protocol.rounds import (
    MAX_ABS_STEP_INTEGER,
    MAX_DIRECTIONS,
    Difference,
    DigestReport,
    DigestRequest,
    Participation,
    RoundReport,
    RoundResult,
    SoundingOrder,
    TransmitOrder,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round_index": -1}, "round_index: got -1, wanted >= 0"),
        ({"direction_seed": -1}, "direction_seed: got -1"),
        ({"direction_seed": 2**64}, "wanted an unsigned 64-bit integer"),
        ({"perturbation_scale": 0.0}, "wanted a positive power of two"),
        ({"perturbation_scale": -0.5}, "wanted a positive power of two"),
        ({"perturbation_scale": 0.001}, "perturbation_scale: got 0.001"),
        ({"perturbation_scale": NAN}, "wanted a finite number"),
        ({"perturbation_scale": INF}, "wanted a finite number"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"clip": -1.0}, "clip: got -1.0"),
        ({"clip": NAN}, "clip: got nan"),
        ({"batch_size": 0}, "batch_size: got 0, wanted >= 1"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_not_born(make_plan, changes, words):
    with pytest.raises(WireError, match=words):
        make_plan(**changes)


@pytest.mark.parametrize("devices", [(0, 0), (1, 0), (0, 2, 1)])
def test_orders_come_once_each_in_ascending_order(make_plan, devices):
    with pytest.raises(WireError, match=r"each once, in ascending order"):
        make_plan(devices=devices)


@pytest.mark.parametrize("exponent", [-40, -10, 0, 3])
def test_any_power_of_two_may_perturb(make_plan, exponent):
    assert make_plan(perturbation_scale=2.0**exponent).perturbation_scale == 2.0**exponent


def test_an_infinite_clip_is_the_noiseless_reference(make_plan):
    assert make_plan(clip=INF).clip == INF


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((-1, 0.0, 0.0, 0.0), "device_index: got -1"),
        ((0, NAN, 0.0, 0.0), "tx_gain_real: got nan"),
        ((0, 0.0, INF, 0.0), "tx_gain_imag: got inf"),
        ((0, 0.0, 0.0, -0.1), "artificial_noise_std: got -0.1"),
        ((0, 0.0, 0.0, NAN), "artificial_noise_std: got nan"),
        ((0, 0.0, 0.0, INF), "artificial_noise_std: got inf"),
    ],
)
def test_an_order_that_cannot_be_meant_is_not_born(fields, words):
    with pytest.raises(WireError, match=words):
        TransmitOrder(*fields)


def test_an_order_names_its_complex_gain_and_is_found_by_its_device(make_plan):
    plan = make_plan(devices=(1, 4))
    orders = plan.orders_by_device()
    assert orders[4] == TransmitOrder(4, 0.125, -0.0625, 0.0)
    assert orders[4].tx_gain == 0.125 - 0.0625j
    assert 2 not in orders


@pytest.mark.parametrize("step", [MAX_ABS_STEP_INTEGER + 1, -MAX_ABS_STEP_INTEGER - 1])
def test_a_step_beyond_its_limit_is_refused(step):
    with pytest.raises(WireError, match="step_integer"):
        RoundResult("r", 0, 0, (0, step))


@pytest.mark.parametrize("num_directions", [0, -1, MAX_DIRECTIONS + 1])
def test_a_round_has_one_direction_at_least_and_no_more_than_the_limit(make_plan, num_directions):
    with pytest.raises(WireError, match=f"num_directions: got {num_directions}, wanted 1 to 256"):
        make_plan(num_directions=num_directions)
    with pytest.raises(WireError, match="step_integers: got"):
        RoundResult("r", 0, 0, (0,) * max(0, num_directions))


def test_a_release_is_named_by_directions_and_difference_too(make_plan):
    plans = [
        make_plan(),
        make_plan(num_directions=2),
        make_plan(difference=Difference.ONE_SIDED),
        make_plan(num_directions=2, difference=Difference.ONE_SIDED),
    ]
    assert len({plan.release for plan in plans}) == 4
    assert make_plan(num_directions=1, difference=Difference.TWO_SIDED).release == plans[0].release


@pytest.mark.parametrize(("round_index", "seed"), [(-1, 0), (0, -1), (0, 2**64)])
def test_a_result_that_cannot_be_meant_is_not_born(round_index, seed):
    with pytest.raises(WireError, match=r"got -1|got 18446744073709551616"):
        RoundResult("r", round_index, seed, (0,))


@pytest.mark.parametrize("amplitude", [0.0, -1.0, NAN, INF])
def test_a_pilot_has_a_finite_positive_amplitude(amplitude):
    with pytest.raises(WireError, match="amplitude"):
        SoundingOrder("r", 0, amplitude, 0)


def test_records_are_frozen(make_plan):
    for record in (make_plan(), TransmitOrder(0, 1.0, 0.0, 0.0), RoundResult("r", 0, 0, (0,))):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(record, record.__struct_fields__[0], 1)


def test_what_a_device_says_has_no_room_for_its_scalar():
    wanted = {
        # The scale is made of the noisy numbers that are on the air, and no larger than 1.
        RoundReport: ("run_id", "round_index", "device_index", "participation", "reason", "scale"),
        DigestReport: ("run_id", "round_index", "host", "parameter_digest"),
        DigestRequest: ("run_id", "round_index"),
    }
    for record, names in wanted.items():
        fields = msgspec.structs.fields(record)
        assert tuple(field.name for field in fields) == names
        assert [field.name for field in fields if field.type is float] in ([], ["scale"])
    for impossible in (0.0, -0.5, 1.5, float("nan"), float("inf")):
        with pytest.raises(WireError, match="scale: got"):
            RoundReport("run", 0, 0, Participation.TRANSMITTED, scale=impossible)


def test_the_kinds_of_silence_are_told_apart():
    assert {p.value for p in Participation} == {
        "transmitted", "ready", "truncated", "dropped", "ended_early",
    }  # fmt: skip
