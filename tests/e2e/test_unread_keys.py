"""Keys that are refused because nothing reads them: a run with all of them changed is the same."""

import msgspec
import pytest
from whole_runs import SMALL, carry_out, configured, looked_at

from server.config.files import dump_config, parse_config
from server.config.run_config import RunConfig
from server.config.unread import unread_keys
from server.run.experiment import Experiment

SETTINGS = {**SMALL, "federation.num_devices": 2, "optimizer.rounds": 3, "radio.snr_db": 20.0}
OTHERWISE = {
    "pluto.devices": [], "pluto.receiver": "", "pluto.xo_corrections": [],
    "pluto.tx_attenuation_db": 20.0, "pluto.rx_gain_db": 20.0, "pluto.settling_s": 0.01,
    "virtual_pluto.clock": "wall", "virtual_pluto.path_loss_db": 40.0,
    "radio.min_gain": 0.01, "radio.min_band_gain": 0.01, "radio.pilot_symbols": 64,
    "radio.payload_symbols": 32, "radio.plateau_samples": 2048, "radio.rician_k_db": 1.0,
    "radio.delay_spread_s": 3e-7, "radio.slots": "frequency",
    "radio.energy_mapping": "self_normalised", "radio.calibration_max_age_s": 1.0,
    "radio.coherence_rounds": 1, "radio.max_hold_s": 5.0, "radio.snr_db": 3.0,
    "radio.channel": "awgn", "radio.carrier_hz": 4e8, "radio.max_amplitude": 0.5,
    "radio.sample_rate_hz": 5e5, "impairments.drift_ppm": 0.1,
    "optimizer.vote_value": 7.0, "optimizer.vote_decision": "soft",
    "optimizer.typical_number": 0.3, "privacy.vote_noise": "after_sign",
    "privacy.csi_failure_fraction": 0.2, "privacy.epsilon": 3.0, "privacy.delta": 1e-4,
    "privacy.unit": "device", "privacy.relation": "replace_one",
    "privacy.trusted_noise_fraction": 0.5, "privacy.missing_devices": 1,
    "privacy.noise_source": "system", "federation.dropout_probability": 0.1,
    "power.policy": "optimal", "power.contraction": 0.99, "power.min_participation": 0.5,
    "power.wrong_sign_probability": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "at_least"),
    [
        ({}, 15),
        ({"power__policy": "static"}, 15),
        ({"radio__waveform": "energy", "radio__plateau_samples": 4096}, 14),
        ({"radio__waveform": "vote", "radio__plateau_samples": 4096}, 12),
        ({"radio__waveform": "slotted"}, 18),
        ({"privacy__enabled": False}, 25),
        ({"privacy__enabled": False, "radio__backend": "ideal"}, 34),
    ],
)
def test_what_nothing_reads_changes_nothing(changes, at_least, tmp_path):
    config = configured(SETTINGS, **changes)
    document = dump_config(config)
    unread = [u.key for u in unread_keys(config, OTHERWISE)]
    assert len(unread) >= at_least
    for dotted in unread:
        section, key = dotted.split(".")
        document[section][key] = OTHERWISE[dotted]
    otherwise = parse_config(document, source="test")
    assert otherwise != config
    for name, one in (("as it is", config), ("otherwise", otherwise)):
        assert carry_out(Experiment.start(one, tmp_path / name))
    assert looked_at(tmp_path / "otherwise") == looked_at(tmp_path / "as it is")


def test_every_key_that_can_be_unread_is_tried():
    """But those that are refused wherever they mean nothing (limits, captures, radios)."""
    keys = [
        f"{section}.{key}"
        for section, values in msgspec.to_builtins(RunConfig()).items()
        if isinstance(values, dict)
        for key in values
    ]
    settings = (
        {},
        {"radio__waveform": "energy"},
        {"privacy__enabled": False, "radio__backend": "ideal"},
    )
    found = {
        u.key for changes in settings for u in unread_keys(configured(SETTINGS, **changes), keys)
    }
    untried = {key for key in found if key not in OTHERWISE and not key.startswith("impairments.")}
    assert untried == {
        "power.limits", "radio.impairments", "pluto.rf_bandwidth_hz",
        "pluto.receiver_xo_correction", "virtual_pluto.noise_dbfs",
    }  # fmt: skip
