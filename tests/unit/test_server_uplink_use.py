"""Symbols and airtime of a round, by waveform."""

import pytest

from server.air.uplink_use import UplinkUse, uplink_use
from server.config.files import parse_config


def use(num_rounds=20, num_devices=5, **radio):
    config = parse_config(
        {
            "federation": {"num_devices": num_devices},
            "optimizer": {"directions": 8},
            "radio": {"coherence_rounds": 10, "payload_symbols": 64, **radio},
            "privacy": {"enabled": False},
        },
        source="test",
    )
    return uplink_use(
        config.radio,
        config.federation.num_devices,
        config.optimizer.directions,
        num_rounds,
        config.pluto.settling_s,
    )


def test_the_coherent_waveform_takes_its_frames():
    got = use()
    assert (got.payload_symbols, got.pilot_symbols) == (8 * 64, 102.4)
    # 256 of silence in either frame; five pilots of 1024 with guards of 32 in every tenth round.
    assert got.airtime_s == pytest.approx((256 + 512 + (256 + 5 * 1056) / 10) / 1e6)
    assert got.on_air_s == pytest.approx((512 + 102.4) / 1e6)


def test_the_energy_waveform_takes_a_plateau_for_all_numbers():
    got = use(waveform="energy")
    assert (got.payload_symbols, got.pilot_symbols) == (131072, 13107.2)
    assert got.airtime_s == pytest.approx(131072 / 20e6 * (2 + 6 / 10))
    assert got.on_air_s == pytest.approx(131072 / 20e6 * 1.1)


@pytest.mark.parametrize("waveform", ["energy", "slotted"])
def test_a_pluto_is_on_the_air_while_a_capture_settles(waveform):
    ideal, real = (
        use(waveform=waveform, backend=backend) for backend in ("loopback", "virtual-pluto")
    )
    assert real.airtime_s == ideal.airtime_s
    holds = 1.1 if waveform == "energy" else 1
    assert real.on_air_s == pytest.approx(ideal.on_air_s + holds * 0.05)


def test_packets_take_a_capture_each_in_time_and_one_for_all_in_frequency():
    five, one = (use(waveform="slotted", num_devices=count) for count in (5, 1))
    assert five.airtime_s == pytest.approx(5 * one.airtime_s)
    five, one = (use(waveform="slotted", slots="frequency", num_devices=k) for k in (5, 1))
    # Twice as wide is twice as fast; there is room for two at full speed.
    assert five.airtime_s == five.on_air_s == pytest.approx(2 * one.airtime_s)
    assert five.payload_symbols == 2 * one.payload_symbols


def test_a_block_that_was_begun_counts_whole_and_no_rounds_are_no_division_by_zero():
    assert use(num_rounds=11).pilot_symbols == 2 * 1024 / 11
    assert use(num_rounds=0).pilot_symbols == 1024


def test_the_ideal_link_takes_nothing():
    assert use(backend="ideal") == UplinkUse(0.0, 0.0, 0.0, 0.0)
