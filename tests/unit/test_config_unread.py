"""Settings that would change nothing, and values that cannot be: refused by name, always."""

import logging

import msgspec
import pytest

from radio.waveforms import WaveformName
from server.config.files import available_presets, dump_config, load_config, parse_config
from server.config.run_config import RunConfig
from server.config.unread import (
    _A_PROMISE_READS,
    _ACCESS_READS,
    _CHANNELS_READ,
    _NUMBERS_READ,
    BACKENDS_READ,
    set_keys,
    unread_keys,
)
from server.errors import ConfigurationError
from server.power.catalogue import POLICIES

ENERGY = {"radio.waveform": "energy"}
PLAIN = {"privacy.enabled": False}
IDEAL = {**PLAIN, "radio.backend": "ideal"}
PLUTOS = {**ENERGY, "radio.backend": "virtual-pluto", "federation.num_devices": 2}
DEVICE = {"privacy.unit": "device", "privacy.epsilon": 1000.0}

UNREAD = [
    ({}, "radio.min_band_gain", 0.2, 'radio.waveform = "coherent"'),
    ({}, "radio.plateau_samples", 4096, 'radio.waveform = "coherent"'),
    ({}, "radio.slots", "frequency", 'radio.waveform = "coherent"'),
    (ENERGY, "radio.slots", "frequency", 'radio.waveform = "energy"'),
    ({}, "radio.energy_mapping", "self_normalised", 'radio.waveform = "coherent"'),
    ({}, "radio.calibration_max_age_s", 5.0, 'radio.waveform = "coherent"'),
    ({}, "radio.rician_k_db", 3.0, 'radio.channel = "rayleigh"'),
    ({}, "radio.max_hold_s", 20.0, 'radio.backend = "loopback"'),
    ({}, "pluto.rx_gain_db", 40.0, 'radio.backend = "loopback"'),
    ({}, "pluto.receiver", "ip:192.168.2.1", 'radio.backend = "loopback"'),
    ({}, "virtual_pluto.clock", "wall", 'radio.backend = "loopback"'),
    ({}, "optimizer.vote_value", 2.0, 'radio.waveform = "coherent"'),
    ({}, "optimizer.vote_decision", "soft", 'radio.waveform = "coherent"'),
    ({}, "privacy.vote_noise", "after_sign", 'radio.waveform = "coherent"'),
    ({}, "power.min_participation", 0.2, 'power.policy = "subsampled"'),
    ({}, "power.wrong_sign_probability", 0.2, 'power.policy = "subsampled"'),
    (DEVICE, "power.min_participation", 0.2, 'power.policy = "optimal"'),
    ({"power.policy": "static"}, "power.contraction", 0.99999, 'power.policy = "static"'),
    (ENERGY, "radio.pilot_symbols", 512, 'radio.waveform = "energy"'),
    (ENERGY, "radio.payload_symbols", 512, 'radio.waveform = "energy"'),
    (ENERGY, "radio.min_gain", 0.2, 'radio.waveform = "energy"'),
    (ENERGY, "privacy.csi_failure_fraction", 0.2, 'privacy.access = "slotted"'),
    (ENERGY, "federation.dropout_probability", 0.1, 'privacy.access = "slotted"'),
    (PLUTOS, "radio.channel", "awgn", 'radio.backend = "virtual-pluto"'),
    (PLUTOS, "radio.rician_k_db", 3.0, 'radio.backend = "virtual-pluto"'),
    (PLAIN, "privacy.epsilon", 2.0, "privacy.enabled = false"),
    (PLAIN, "privacy.unit", "device", "privacy.enabled = false"),
    (PLAIN, "privacy.csi_failure_fraction", 0.2, "privacy.enabled = false"),
    ({"radio.waveform": "vote"}, "optimizer.typical_number", 3.0, 'radio.waveform = "vote"'),
    (PLAIN, "optimizer.typical_number", 3.0, "privacy.enabled = false"),
    (PLAIN, "power.policy", "static", "privacy.enabled = false"),
    (PLAIN, "power.contraction", 0.99999, "privacy.enabled = false"),
    (IDEAL, "radio.snr_db", 3.0, 'radio.backend = "ideal"'),
    (IDEAL, "radio.pilot_symbols", 512, 'radio.backend = "ideal"'),
    (IDEAL, "radio.rician_k_db", 3.0, 'radio.backend = "ideal"'),
    (IDEAL, "impairments.crystal_ppm", 3.0, 'radio.backend = "ideal"'),
]


@pytest.mark.parametrize(("settings", "key", "value", "chosen"), UNREAD)
def test_what_nothing_reads_is_refused_by_name(settings, key, value, chosen):
    with pytest.raises(ConfigurationError, match=rf"--set: {key}: set, .* with {chosen}\."):
        load_config("snips", {**settings, key: value})
    # As it is without, nobody minds that it stands there.
    section, name = key.split(".")
    there = msgspec.to_builtins(RunConfig())[section][name]
    if there is not None:
        load_config("snips", {**settings, key: there})


@pytest.mark.parametrize(
    "settings",
    [
        {"radio.waveform": "vote", "optimizer.vote_value": 2.0, "radio.min_band_gain": 0.2},
        {"radio.channel": "rician", "radio.rician_k_db": 3.0},
        {**DEVICE, "power.policy": "selection", "power.min_participation": 0.2},
        {**DEVICE, "radio.waveform": "coherent_vote", "privacy.vote_noise": "after_sign",
         "power.policy": "sign", "power.wrong_sign_probability": 0.2},
        {**PLUTOS, "pluto.rx_gain_db": 40.0, "virtual_pluto.clock": "wall",
         "impairments.crystal_ppm": 3.0, "radio.snr_db": 3.0},
        {**PLAIN, "power.policy": "perfect"},
        {**IDEAL, "radio.waveform": "vote", "optimizer.vote_value": 2.0},
        {"impairments.iq_gain_db": 0.0, "privacy.csi_failure_fraction": 0.2},
    ],
)  # fmt: skip
def test_what_is_read_is_taken(settings):
    load_config("snips", settings)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("power.policy", "nonsense", "power.policy: got 'nonsense', wanted one of optimal"),
        ("privacy.epsilon", -1, "privacy.epsilon: got -1"),
        ("privacy.delta", 0, "privacy.delta: got 0"),
        ("radio.plateau_samples", -5, "radio.plateau_samples: got -5"),
        ("power.contraction", 7, "power.contraction: got 7"),
        ("power.min_participation", 7, "power.min_participation: got 7"),
        ("radio.min_band_gain", -1, "radio.min_band_gain: got -1"),
        ("optimizer.rounds", 2**31 - 1, "optimizer.rounds: got 2147483647, wanted at most 1000000"),
        ("radio.pilot_symbols", 10**9, "radio.pilot_symbols: got 1000000000, wanted at most"),
        ("run.workers", 10**6, "run.workers: got 1000000, wanted at most 1024"),
        ("privacy.missing_devices", 5, "privacy.missing_devices: got 5, wanted 0 to 4"),
        ("power.limits.max_duty", 3, "max_duty"),
    ],
)
@pytest.mark.parametrize("settings", [{}, PLAIN, IDEAL, ENERGY])
def test_an_impossible_value_is_refused_whatever_else_is_chosen(settings, key, value, message):
    with pytest.raises(ConfigurationError, match=message):
        load_config("snips", {**settings, key: value})


def test_a_file_s_own_settings_are_refused_and_named_after_it(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[radio]\nwaveform = "energy"\npilot_symbols = 512\n')
    with pytest.raises(ConfigurationError, match=r"mine\.toml: radio\.pilot_symbols: set"):
        load_config(str(path))


def test_what_the_command_line_makes_of_no_effect_in_a_file_is_told(tmp_path, caplog):
    path = tmp_path / "mine.toml"
    path.write_text("[radio]\npilot_symbols = 512\n")
    with caplog.at_level(logging.WARNING):
        load_config(str(path))
        assert not caplog.messages
        load_config(str(path), ENERGY)
    assert len(caplog.messages) == 1
    assert (
        "radio.pilot_symbols: set, and nothing reads it with radio.waveform" in caplog.messages[0]
    )


@pytest.mark.parametrize("name", available_presets())
def test_presets_set_nothing_for_nothing_and_go_with_any_waveform(name, caplog):
    config = load_config(name)
    assert unread_keys(config, set_keys(dump_config(config))) == []
    if name == "snips":
        for waveform in ("energy", "vote", "coherent_vote", "slotted"):
            load_config(name, {"radio.waveform": waveform})
        load_config(name, IDEAL)
        assert not caplog.messages


def test_a_whole_dump_is_read_back(tmp_path):
    """What a store holds names every key, also those that nothing reads."""
    config = load_config("snips", ENERGY)
    assert parse_config(dump_config(config), source="store") == config


def test_every_key_that_something_reads_is_one():
    known = msgspec.to_builtins(RunConfig())
    lists = [
        *BACKENDS_READ.values(), _NUMBERS_READ, *_CHANNELS_READ.values(), _A_PROMISE_READS,
        *_ACCESS_READS.values(), *(waveform.reads for waveform in WaveformName),
        *([f"power.{key}" for key in policy.reads] for policy in POLICIES.values()),
    ]  # fmt: skip
    for key in {key for keys in lists for key in keys}:
        section, name = key.split(".")
        assert name == "*" or name in known[section], key
        assert section in known
