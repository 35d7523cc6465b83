"""What an owner's policy lets a device do, and what uses it up."""

import math
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.guard.account import Account
from edge_runtime.guard.policy import AllowedRounds, Cover, load_policy
from edge_runtime.guard.sensitivity import (
    NeighbouringRelation,
    PrivacyUnit,
    release_sensitivity,
)
from edge_runtime.protocol.errors import PlanRefusedError, PromiseError
from edge_runtime.protocol.rounds import (
    Access,
    BandLevels,
    PacketLevels,
    TransmitOrder,
    Vote,
)
from radio.waveforms import WaveformName
from tests.support.policies import make_policy


def allowed(*pairs):
    return tuple(AllowedRounds(number=n, min_noise_multiplier=m) for n, m in pairs)


# ---------------------------------------------------------------- the policy itself


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version: got 2"),
        ({"epsilon": math.inf}, "epsilon: got inf"),
        ({"delta": 0.0}, "delta: got 0"),
        ({"max_clip": math.inf}, "max_clip: got inf"),
        ({"max_amplitude": 1.5}, "max_amplitude: got 1.5, above 1"),
        ({"max_sampling_rate": 0.0}, "max_sampling_rate: got 0"),
        ({"min_batch": 0}, "min_batch: got 0"),
        ({"num_missing": -1}, "num_missing: got -1"),
        ({"rounds": ()}, "none are allowed"),
        ({"rounds": allowed((5, 0.0))}, "wanted some, with some noise"),
        ({"rounds": allowed((0, 1.0))}, "wanted some, with some noise"),
        ({"access": Access.SLOTTED, "cover": Cover.FEDERATION}, "nobody's noise covers another"),
        ({"budget": 0.1}, "rounds that are subsampled have none"),
        ({"unit": PrivacyUnit.DEVICE}, "budget: got 0"),
    ],
)
def test_a_policy_from_which_no_promise_follows_is_none(changes, words):
    with pytest.raises(PromiseError, match=words):
        make_policy(**changes)


def test_a_policy_file_is_read_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "policy.toml"
    lines = [
        'version = 1\nepsilon = 1.0\ndelta = 1e-5\nunit = "example"\nrelation = "zero_out_one"',
        'access = "slotted"\nwaveform = "energy"\nvote = "none"\ncover = "own"',
        "max_clip = 4.0\nmin_batch = 8\nmax_directions = 2\nmax_sampling_rate = 0.1",
        "[[rounds]]\nnumber = 3\nmin_noise_multiplier = 0.8",
    ]
    path.write_text("\n".join(lines))
    assert load_policy(path) == make_policy(
        epsilon=1.0,
        access=Access.SLOTTED,
        waveform=WaveformName.ENERGY,
        min_batch=8,
        max_directions=2,
        max_sampling_rate=0.1,
        rounds=allowed((3, 0.8)),
    )
    for damage, words in (
        (("max_clip = 4.0", "max_clip = -1.0"), "max_clip: got -1.0"),
        (("number = 3", "numbers = 3"), "numbers"),
        (('cover = "own"', ""), "cover"),
        (("[[rounds]]", "[[rounds"), "not a policy"),
    ):
        path.write_text("\n".join(lines).replace(*damage))
        with pytest.raises(PromiseError, match=words):
            load_policy(path)
    with pytest.raises(PromiseError, match="cannot be read"):
        load_policy(tmp_path / "missing.toml")


# ---------------------------------------------------------------- orders


def test_orders_beyond_what_was_agreed_to_are_refused_by_field(make_plan):
    policy = make_policy(max_amplitude=0.5, max_directions=4, min_batch=6)
    (order,) = make_plan().orders
    louder = TransmitOrder(0, 0.2, 0.0, 0.0)  # 0.8 at the clip of 4
    for changes, own, words in (
        ({"access": Access.SLOTTED}, order, 'policy access: "slotted"'),
        ({"vote": Vote.NOISE_AFTER}, order, 'policy vote: "noise_after"'),
        ({"clip": 4.001}, order, "policy max_clip: 4.001"),
        ({"num_directions": 5}, order, "policy max_directions: 5"),
        ({"batch_size": 5}, order, "policy min_batch: a batch of 5"),
        ({}, louder, "policy max_amplitude: an amplitude of 0.8"),
    ):
        with pytest.raises(PlanRefusedError, match=words):
            policy.check_order(make_plan(**changes), own)
    policy.check_order(make_plan(clip=2.0), louder)  # 0.4 at the clip of 2


def test_levels_of_bands_and_packets_are_amplitudes(make_plan):
    policy = make_policy(access=Access.SLOTTED, waveform=WaveformName.ENERGY, max_amplitude=0.5)
    plan = make_plan(access=Access.SLOTTED)
    for loud, soft in (
        ({"bands": BandLevels((0.4, 0.6), 1.0)}, {"bands": BandLevels((0.4, 0.5), 1.0)}),
        ({"packet": PacketLevels(0.6, 1.0)}, {"packet": PacketLevels(0.5, 1.0)}),
    ):
        with pytest.raises(PlanRefusedError, match="max_amplitude"):
            policy.check_order(plan, TransmitOrder(0, 0.0, 0.0, 1.0, **loud))
        policy.check_order(plan, TransmitOrder(0, 0.0, 0.0, 1.0, **soft))


def test_a_sum_is_promised_only_where_devices_cannot_be_told_apart(make_plan):
    order = TransmitOrder(0, 0.0, 0.0, 1.0, bands=BandLevels((0.4, 0.5), 1.0))
    with pytest.raises(PlanRefusedError, match="told apart"):
        make_policy(cover=Cover.FEDERATION).check_order(make_plan(), order)


def test_the_rate_is_that_of_the_records_that_are_here():
    policy = make_policy(max_sampling_rate=0.1)
    assert policy.check_sampling_rate(8, 80) == 0.1
    for batch_size, num_records in ((8, 79), (800, 80), (9, 80)):
        with pytest.raises(PlanRefusedError, match="policy max_sampling_rate: a batch of"):
            policy.check_sampling_rate(batch_size, num_records)
    in_full = make_policy(unit=PrivacyUnit.DEVICE, budget=1.0)
    assert in_full.check_sampling_rate(8, 2) == 1.0


# ---------------------------------------------------------------- whose noise counts


def of_orders(make_plan, *stds, **changes):
    orders = tuple(TransmitOrder(i, 0.1, 0.0, std) for i, std in enumerate(stds))
    return make_plan(orders=orders, **changes)


def sensitivity_of(plan):
    return release_sensitivity(
        access=plan.access,
        vote=plan.vote,
        directions=plan.num_directions,
        clip=plan.clip,
        batch_size=plan.batch_size,
        unit=PrivacyUnit.EXAMPLE,
        relation=NeighbouringRelation.ZERO_OUT_ONE,
    )


def test_covered_by_its_own_a_device_counts_nobody_else(make_plan):
    plan = of_orders(make_plan, 1.0, 3.0)
    found = make_policy(cover=Cover.OWN).noise_multipliers(plan)
    assert found == pytest.approx({0: 1.0 / sensitivity_of(plan), 1: 3.0 / sensitivity_of(plan)})


def test_a_federation_counts_those_who_speak_but_for_the_loudest_others(make_plan):
    plan = of_orders(make_plan, 3.0, 4.0, 12.0)
    scale = sensitivity_of(plan)
    everybody = make_policy(cover=Cover.FEDERATION).noise_multipliers(plan)
    assert everybody == pytest.approx(dict.fromkeys(range(3), 13.0 / scale))
    but_one = make_policy(cover=Cover.FEDERATION, num_missing=1).noise_multipliers(plan)
    assert but_one == pytest.approx({0: 5.0 / scale, 1: 5.0 / scale, 2: math.hypot(12, 3) / scale})
    # Too few to be a federation: each for itself.
    alone = make_policy(cover=Cover.FEDERATION, min_speakers=4).noise_multipliers(plan)
    assert alone == pytest.approx({0: 3.0 / scale, 1: 4.0 / scale, 2: 12.0 / scale})


def test_a_receivers_noise_counts_only_where_the_owner_believes_in_it(make_plan):
    plan = of_orders(make_plan, 3.0, receiver_noise_std=4.0)
    scale = sensitivity_of(plan)
    for believes, noise in ((True, 5.0), (False, 3.0)):
        policy = make_policy(cover=Cover.FEDERATION, counts_receiver_noise=believes)
        assert policy.noise_multipliers(plan) == pytest.approx({0: noise / scale})


@pytest.mark.parametrize("vote", [Vote.NONE, Vote.NOISE_AFTER])
def test_a_multiplier_is_never_above_the_real_one(make_plan, vote):
    plan = of_orders(make_plan, 0.7, clip=3.7, batch_size=7, num_directions=3, vote=vote)
    multiplier = make_policy().noise_multipliers(plan)[0]
    assert Fraction(multiplier) * Fraction(sensitivity_of(plan)) <= Fraction(0.7)
    assert multiplier == pytest.approx(0.7 / sensitivity_of(plan), rel=1e-12)


# ---------------------------------------------------------------- accounts


def test_rounds_are_counted_and_no_more_are_made():
    account = Account(make_policy(rounds=allowed((2, 0.5))))
    account.add(0.5)
    account.add(7.0)
    with pytest.raises(PlanRefusedError, match="2 are released of the 2 that are allowed in all"):
        account.check(7.0)


def test_less_noise_than_any_round_that_is_left_needs_is_refused():
    account = Account(make_policy(rounds=allowed((1, 0.5), (2, 0.8))))
    with pytest.raises(PlanRefusedError, match=r"needs at least 0\.5"):
        account.check(0.49)
    account.add(0.6)  # takes the place of the one at 0.5
    with pytest.raises(PlanRefusedError, match=r"needs at least 0\.8"):
        account.check(0.79)
    account.add(0.8)


def test_a_round_takes_the_place_of_the_noisiest_that_it_covers():
    account = Account(make_policy(rounds=allowed((1, 0.5), (1, 0.8))))
    account.add(0.9)
    account.add(0.5)  # the quieter place is still free
    with pytest.raises(PlanRefusedError):
        account.add(0.9)


@settings(max_examples=200, deadline=None)
@given(
    places=st.lists(st.sampled_from([0.5, 0.7, 0.9]), min_size=1, max_size=6),
    releases=st.lists(st.sampled_from([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), max_size=7),
)
def test_what_is_let_through_can_be_dealt_out_to_the_allowed_rounds(places, releases):
    """Whatever the order: for each level, no more releases below it than places below it."""
    account = Account(make_policy(rounds=allowed(*((1, least) for least in places))))
    made = []
    for multiplier in releases:
        fits = all(
            sum(m < level for m in (*made, multiplier)) <= sum(p < level for p in places)
            for level in (0.5, 0.7, 0.9, 2.0)
        )
        if fits:
            account.add(multiplier)
            made.append(multiplier)
        else:
            with pytest.raises(PlanRefusedError):
                account.add(multiplier)
    assert account.num_releases == len(made)


def test_rounds_in_full_pay_of_a_budget_whatever_each_costs():
    policy = make_policy(unit=PrivacyUnit.DEVICE, budget=1.0, rounds=allowed((9, 0.70)))
    account = Account(policy)
    account.add(1.0)  # 0.5
    with pytest.raises(PlanRefusedError, match=r"policy budget: 0\.5 is spent and 0\.510152"):
        account.check(0.99)
    account.add(2.0)  # 0.125
    account.add(math.nextafter(math.sqrt(0.5 / 0.375), math.inf) * (1 + 1e-12))
    with pytest.raises(PlanRefusedError, match="policy budget"):
        account.check(1e3)


def test_a_release_without_noise_never_fits():
    for policy in (make_policy(), make_policy(unit=PrivacyUnit.DEVICE, budget=1.0)):
        for multiplier in (0.0, 1e-300, math.nan):
            with pytest.raises(PlanRefusedError):
                Account(policy).check(multiplier)


def test_a_policy_has_to_cover_what_was_released_before_it():
    account = Account(make_policy(rounds=allowed((1, 0.5)), max_sampling_rate=0.1))
    with pytest.raises(PromiseError, match="does not cover what was released before it: release 1"):
        account.add_earlier(0.4, 0.1)
    with pytest.raises(PromiseError, match=r"max_sampling_rate: 0\.2 was drawn with"):
        account.add_earlier(0.5, 0.2)
    account.add_earlier(0.5, 0.1)
    with pytest.raises(PromiseError, match="release 2"):
        account.add_earlier(0.9, 0.1)


def test_a_policy_cannot_be_widened_by_its_plan():
    with pytest.raises(AttributeError):
        make_policy().max_clip = 8.0
    assert msgspec.structs.replace(make_policy(), max_clip=8.0) != make_policy()
