"""Symbols and airtime of a round, by waveform."""

import pytest

from server.config import parse_config
from server.uplink_use import UplinkUse, uplink_use


def use(num_rounds=20, **radio):
    config = parse_config(
        {
            "federation": {"num_devices": 5},
            "optimizer": {"directions": 8},
            "radio": {"coherence_rounds": 10, "payload_symbols": 64, **radio},
            "privacy": {"enabled": False},
        },
        source="test",
    )
    return uplink_use(config, num_rounds)


def test_the_coherent_waveform_takes_its_frames():
    got = use()
    assert (got.payload_symbols, got.pilot_symbols) == (8 * 64, 102.4)
    # 256 of silence in either frame; five pilots of 1024 with guards of 32 in every tenth round.
    assert got.airtime_s == pytest.approx((256 + 512 + (256 + 5 * 1056) / 10) / 1e6)


def test_the_energy_waveform_takes_a_plateau_for_everything():
    got = use(waveform="energy")
    assert (got.payload_symbols, got.pilot_symbols) == (8 * 65536, 6553.6)
    assert got.airtime_s == pytest.approx(0.065536 * (9 + 6 / 10))


def test_a_block_that_was_begun_counts_whole_and_no_rounds_are_no_division_by_zero():
    assert use(num_rounds=11).pilot_symbols == 2 * 1024 / 11
    assert use(num_rounds=0).pilot_symbols == 1024


def test_the_ideal_link_takes_nothing():
    assert use(backend="ideal") == UplinkUse(0.0, 0.0, 0.0)
