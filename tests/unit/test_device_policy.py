"""The policy of a run's devices: as much as the run needs, and proved by another road."""

import dataclasses
import math

import dp_accounting
import msgspec
import pytest
from dp_accounting.pld import pld_privacy_accountant

from edge_runtime.guard.account import Account
from edge_runtime.guard.ledger import Release
from edge_runtime.guard.policy import AllowedRounds, Cover
from edge_runtime.guard.sensitivity import NeighbouringRelation, PrivacyUnit
from edge_runtime.protocol.errors import PlanRefusedError
from server.config.files import load_config
from server.errors import PrivacyError
from server.planning.device_policy import policy_of, proved_epsilon, released_before
from server.planning.privacy_terms import WHOLE_RUN, Stretch, csi_delta, plan_privacy_terms
from server.privacy.composition import PriceClass, grid_index_below

RECORDS = [1300, 1301, 1300, 1301, 1300]


def config_of(**changes):
    return load_config("snips", {"optimizer.rounds": 30, **changes})


def terms_of(config, stretch=WHOLE_RUN):
    return plan_privacy_terms(config, RECORDS, [f"{k:08x}" for k in range(5)], stretch)


KINDS = {
    "subsampled": {},
    "subsampled, quieter at the end": {"power.contraction": 0.98},
    "in full": {"privacy.unit": "device", "privacy.epsilon": 8.0},
    "in full, own noise": {
        "radio.waveform": "energy", "privacy.relation": "replace_one", "privacy.epsilon": 8.0,
    },
    "slotted": {"radio.waveform": "slotted"},
    "with dropouts": {"federation.dropout_probability": 0.05, "privacy.missing_devices": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_its_rounds_are_proved_to_stay_within_epsilon_and_use_it(kind):
    config = config_of(**KINDS[kind])
    policy = policy_of(config, terms_of(config), min(RECORDS))
    proved = proved_epsilon(policy, csi_delta(config, 1))
    assert proved <= config.privacy.epsilon
    # Where devices may drop out, some is kept back for what their noise will cost.
    assert proved >= 0.75 * config.privacy.epsilon
    assert policy.num_rounds == 30


def test_the_proof_agrees_with_the_accountant_of_dp_accounting():
    config = config_of()
    policy = policy_of(config, terms_of(config), min(RECORDS))
    accountant = pld_privacy_accountant.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    for allowed in policy.rounds:
        gaussian = dp_accounting.GaussianDpEvent(allowed.min_noise_multiplier)
        event = dp_accounting.PoissonSampledDpEvent(policy.max_sampling_rate, gaussian)
        accountant.compose(event, allowed.number)
    delta = policy.delta - csi_delta(config, 1)
    assert accountant.get_epsilon(delta) == pytest.approx(
        proved_epsilon(policy, csi_delta(config, 1)), rel=5e-3
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_round_of_the_plan_fits_and_not_one_more(kind):
    config = config_of(**KINDS[kind])
    terms = terms_of(config)
    account = Account(policy_of(config, terms, min(RECORDS)))
    for multiplier in terms.noise_multipliers:
        account.add(multiplier)
    with pytest.raises(PlanRefusedError):
        account.check(1e6)


def test_whose_noise_counts_follows_from_the_configuration():
    assert policy_of(config_of(), terms_of(config_of()), 1300).cover is Cover.FEDERATION
    for changes in ({"radio.waveform": "slotted"}, {"privacy.missing_devices": 4}):
        config = config_of(**changes)
        policy = policy_of(config, terms_of(config), 1300)
        assert (policy.cover, policy.num_missing) == (Cover.OWN, 0)
    config = config_of(**{"privacy.missing_devices": 2})
    assert policy_of(config, terms_of(config), 1300).num_missing == 2


def test_a_policy_for_rounds_that_come_on_top_holds_those_before():
    config = config_of()
    first = terms_of(config)
    multiplier = min(first.noise_multipliers)
    price = PriceClass(16 / 1300, grid_index_below(multiplier))
    more = msgspec.structs.replace(
        config, privacy=msgspec.structs.replace(config.privacy, epsilon=2.0)
    )
    terms = terms_of(more, Stretch(0, 2, (((price, 30),),)))
    policy = policy_of(more, terms, 1300)
    assert policy.num_rounds == 60
    assert proved_epsilon(policy, csi_delta(more, 2)) <= 2.0 * (1 + 1e-9)
    account = Account(policy)
    for _ in range(30):
        account.add_earlier(multiplier, 16 / 1300)
    for new in terms.noise_multipliers:
        account.add(new)


def test_an_account_is_read_from_the_devices_own_ledger():
    release = Release(
        owner="0", run_id="r", round_index=0, commitment="c", release="0/x", data="d", history="h",
        noise_multiplier=0.8, sampling_rate=0.01,
    )  # fmt: skip
    assert released_before([release] * 3, 0.02) == ((PriceClass(0.02, grid_index_below(0.8)), 3),)
    with pytest.raises(PrivacyError, match=r"drawn at a rate of 0\.01 before"):
        released_before([release] * 3, 0.009)


def test_a_policy_that_was_widened_by_hand_is_found_out():
    config = config_of()
    policy = policy_of(config, terms_of(config), 1300)
    more = tuple(msgspec.structs.replace(a, number=10 * a.number) for a in policy.rounds)
    wider = msgspec.structs.replace(policy, rounds=more)
    assert proved_epsilon(wider) > 1.5 * policy.epsilon
    assert proved_epsilon(msgspec.structs.replace(policy, max_sampling_rate=0.1)) > policy.epsilon


def test_in_full_the_budget_is_what_the_epsilon_is_worth():
    config = config_of(**KINDS["in full"])
    terms = terms_of(config)
    policy = policy_of(config, terms, 1300)
    assert policy.max_sampling_rate == 1.0
    assert policy.budget == pytest.approx(terms.budget, rel=1e-8)
    (allowed,) = policy.rounds
    assert allowed == AllowedRounds(
        number=30, min_noise_multiplier=pytest.approx(math.sqrt(0.5 / terms.budget), rel=1e-8)
    )
    assert policy.unit is PrivacyUnit.DEVICE
    assert policy.relation is NeighbouringRelation.ZERO_OUT_ONE
    assert dataclasses.is_dataclass(terms)
