"""Recordings: what is written is read, what is damaged refused; a replay is what was heard."""

import datetime
import json
import sys

import numpy as np
import pytest

from radio.errors import RadioConfigurationError, RadioUnavailableError
from radio.recordings.replay import RecordingTransceiver, ReplayTransceiver
from radio.recordings.sigmf import Recording, load_recording, save_recording
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.transceiver import Mode


def noise(count, scale=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(2 * count)).view(np.complex128).astype(np.complex64)


def recording(*captures, **changes):
    values = {
        "captures": captures,
        "labels": tuple(f"the {index}th" for index in range(len(captures))),
        "sample_rate_hz": 1e6,
        "carrier_hz": 915e6,
        "source": "a test",
        "is_simulated": False,
    }
    return Recording(**{**values, **changes})


MOMENT = datetime.datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=datetime.UTC)


def about(path, **changes):
    """What a description says of its captures; changed for others' if asked."""
    document = json.loads(path.read_text("utf-8"))
    for piece in document["captures"]:
        piece.update(changes)
    path.write_text(json.dumps(document), "utf-8")
    return document["captures"]


def test_moments_gains_and_levels_are_written_and_read(tmp_path):
    later = MOMENT.astimezone(datetime.timezone(datetime.timedelta(hours=2)))
    loud, silence = np.full(8, 0.5, dtype=np.complex64), np.zeros(8, dtype=np.complex64)
    written = recording(loud, silence, moments=(later, None), rx_gain_db=33.0)
    meta = save_recording(written, tmp_path / "x")
    first, second = about(meta)
    assert first["core:datetime"] == "2026-02-03T04:05:06.000789Z"
    assert first["pairzero:rx_gain_db"] == second["pairzero:rx_gain_db"] == 33.0
    assert first["pairzero:power_dbfs"] == pytest.approx(-6.02, abs=0.01)
    assert first["pairzero:peak_dbfs"] == pytest.approx(-6.02, abs=0.01)
    assert not {"core:datetime", "pairzero:power_dbfs"} & set(second)
    read = load_recording(meta)
    assert read.moments == (MOMENT, None)
    assert read.rx_gain_db == 33.0
    with pytest.raises(RadioConfigurationError, match="2 captures and 1 moments"):
        save_recording(recording(loud, loud, moments=(MOMENT,)), tmp_path / "y")


@pytest.mark.parametrize(
    ("changes", "moment", "gain_db"),
    [
        ({}, None, None),
        ({"core:datetime": "2026-02-03T04:05:06.000789"}, MOMENT, None),
        ({"core:datetime": "2026-02-03T05:05:06.000789+01:00"}, MOMENT, None),
        ({"core:datetime": "2026-02-03T04:05:06.000789123Z"}, MOMENT, None),
        ({"core:datetime": "2026-02-29T00:00:00Z"}, None, None),
        ({"pairzero:rx_gain_db": 20}, None, 20.0),
        ({"pairzero:rx_gain_db": True}, None, None),
        ({"pairzero:rx_gain_db": "loud"}, None, None),
    ],
)
def test_what_others_say_of_it_is_taken_where_it_can_be(tmp_path, changes, moment, gain_db):
    meta = save_recording(recording(noise(20)), tmp_path / "x")
    about(meta, **changes)
    read = load_recording(meta)
    assert read.moments == (moment,)
    assert read.rx_gain_db == gain_db


def datatype(path):
    return json.loads(path.read_text("utf-8"))["global"]["core:datatype"]


@pytest.mark.parametrize("suffix", ["", ".sigmf-meta", ".sigmf-data"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, suffix):
    written = recording(noise(100), noise(50, seed=1))
    meta = save_recording(written, tmp_path / f"x{suffix}")
    assert meta == tmp_path / "x.sigmf-meta"
    assert datatype(meta) == "cf32_le"
    read = load_recording(tmp_path / f"x{suffix}")
    for was, now in zip(written.captures, read.captures, strict=True):
        np.testing.assert_array_equal(was, now)
        assert now.dtype == np.complex64
    assert (read.labels, read.source) == (written.labels, written.source)
    assert read.is_simulated is False
    assert (read.sample_rate_hz, read.carrier_hz) == (1e6, 915e6)


def test_a_converters_samples_are_stored_as_integers_and_nothing_is_lost(tmp_path):
    rng = np.random.default_rng(3)
    codes = rng.integers(-2048, 2048, 200).astype(np.float32) / 2048
    codes[:2] = (-1.0, 2047 / 2048)
    samples = codes.view(np.complex64)
    meta = save_recording(recording(samples), tmp_path / "x")
    assert datatype(meta) == "ci16_le"
    assert meta.with_name("x.sigmf-data").stat().st_size == 400
    np.testing.assert_array_equal(load_recording(meta).captures[0], samples)
    beyond = samples.copy()
    beyond[5] = 1.0
    assert datatype(save_recording(recording(beyond), tmp_path / "y")) == "cf32_le"


def test_a_recording_is_not_replaced(tmp_path):
    meta = save_recording(recording(noise(10)), tmp_path / "x")
    before = meta.read_bytes()
    with pytest.raises(RadioConfigurationError, match="is there already"):
        save_recording(recording(noise(20)), tmp_path / "x")
    assert meta.read_bytes() == before


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    for bad in (recording(), recording(noise(5), labels=()), recording(noise(5).real.copy())):
        with pytest.raises(RadioConfigurationError):
            save_recording(bad, tmp_path / "x")
    with pytest.raises(RadioConfigurationError, match="sample_rate_hz"):
        save_recording(recording(noise(5), sample_rate_hz=0.0), tmp_path / "x")
    with pytest.raises(RadioConfigurationError, match="cannot be written"):
        save_recording(recording(noise(5)), tmp_path / "no" / "x")
    with pytest.raises(RadioConfigurationError, match="carrier_hz"):
        save_recording(recording(noise(5), carrier_hz=float("nan")), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def spoil_samples(meta, data):
    raw = bytearray(data.read_bytes())
    raw[7] ^= 1
    data.write_bytes(bytes(raw))


def cut_samples(meta, data):
    data.write_bytes(data.read_bytes()[:-3])


def cut_description(meta, data):
    meta.write_text(meta.read_text("utf-8")[:-20], "utf-8")


def empty_description(meta, data):
    meta.write_text("{}", "utf-8")


def no_captures(meta, data):
    change(meta, lambda d: d.update(captures=[]))


def real_samples(meta, data):
    def edit(description):
        description["global"]["core:datatype"] = "rf32_le"
        description["global"].pop("core:sha512")

    change(meta, edit)


def change(meta, edit):
    description = json.loads(meta.read_text("utf-8"))
    edit(description)
    meta.write_text(json.dumps(description), "utf-8")


@pytest.mark.parametrize(
    "spoil",
    [spoil_samples, cut_samples, cut_description, empty_description, no_captures, real_samples],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_recording_is_refused(tmp_path, spoil):
    meta = save_recording(recording(noise(64), noise(64, seed=2)), tmp_path / "x")
    spoil(meta, tmp_path / "x.sigmf-data")
    with pytest.raises(RadioConfigurationError, match=r"x\.sigmf-meta"):
        load_recording(meta)


def test_half_a_recording_is_refused(tmp_path):
    meta = save_recording(recording(noise(64)), tmp_path / "x")
    (tmp_path / "x.sigmf-data").unlink()
    with pytest.raises(RadioConfigurationError, match="sigmf-data: not there"):
        load_recording(meta)
    with pytest.raises(RadioConfigurationError, match=r"y\.sigmf-meta: not there"):
        load_recording(tmp_path / "y")


def test_another_ones_recording_is_read(tmp_path):
    meta = save_recording(recording(noise(64)), tmp_path / "x")

    def edit(description):
        description["annotations"] = []
        description["captures"] = [{"core:sample_start": 0}]
        del description["global"]["pairzero:source"]
        del description["global"]["pairzero:is_simulated"]
        description["global"]["core:hw"] = "another radio"

    change(meta, edit)
    read = load_recording(meta)
    assert (read.labels, read.source, read.carrier_hz) == (("capture 0",), "another radio", 0.0)
    assert read.is_simulated  # for all that anybody knows


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sigmf", None)
    with pytest.raises(RadioUnavailableError, match="pip install 'pairzero"):
        load_recording(tmp_path / "x")


# Radios that are recorded, and replayed


def make_pair():
    medium = SoftwareMedium(
        num_devices=1, sample_rate_hz=1e6, noise_power=1e-4, noise_rng=np.random.default_rng(0)
    )
    medium.set_gains([1.0])
    return LoopbackTransceiver(medium, 0), LoopbackTransceiver(medium, None)


def test_a_replay_is_heard_as_it_was_recorded(tmp_path):
    transmitter, receiver = make_pair()
    tape = RecordingTransceiver(receiver, carrier_hz=868e6)
    first = tape.capture(100, timeout_s=1.0)
    transmitter.hold(np.full(10, 0.5, dtype=np.complex64))
    second = tape.capture(40, timeout_s=1.0)
    kept = first.copy(), second.copy()
    first[:] = 0  # the caller's own
    meta = tape.save(tmp_path / "tape", ["silence", "tone"])
    with ReplayTransceiver(meta) as replay:
        assert replay.source == "replay of loopback+unnamed"
        assert replay.label == "silence"
        with pytest.raises(RadioConfigurationError, match=r"capture 0 \(silence\) has 100 samples"):
            replay.capture(99, timeout_s=1.0)
        np.testing.assert_array_equal(replay.capture(100, timeout_s=1.0), kept[0])
        replay.hold(np.full(10, 0.1, dtype=np.complex64))
        replay.fall_silent()
        np.testing.assert_array_equal(replay.capture(40, timeout_s=1.0), kept[1])
        assert replay.label == ""
        with pytest.raises(RadioUnavailableError, match="its 2 captures have been heard"):
            replay.capture(40, timeout_s=1.0)


def test_a_tape_is_the_radio_it_records(tmp_path):
    transmitter, _ = make_pair()
    tape = RecordingTransceiver(transmitter, carrier_hz=868e6)
    assert (tape.source, tape.sample_rate_hz) == (transmitter.source, transmitter.sample_rate_hz)
    assert tape.repeats_bit_for_bit
    assert tape.is_simulated
    assert tape.temperature_c is None
    assert tape.modes == {Mode.HELD}
    with pytest.raises(RadioConfigurationError, match="at least one"):
        tape.save(tmp_path / "x")
    tape.close()
    with pytest.raises(RadioUnavailableError):
        transmitter.fall_silent()


class Positioned(LoopbackTransceiver):
    @property
    def modes(self):
        return frozenset({Mode.POSITIONED})


def test_a_radio_without_captures_is_not_recorded():
    medium = SoftwareMedium(
        num_devices=1, sample_rate_hz=1e6, noise_power=0.0, noise_rng=np.random.default_rng(0)
    )
    with pytest.raises(RadioConfigurationError, match="no captures to record"):
        RecordingTransceiver(Positioned(medium, None), carrier_hz=868e6)


# As others write them


def changed(meta, change):
    """A description that somebody else wrote; samples as they are."""
    document = json.loads(meta.read_text("utf-8"))
    change(document)
    meta.write_text(json.dumps(document), "utf-8")
    return meta


def late_start(document):
    document["captures"][0]["core:sample_start"] = 30
    for note in document["annotations"]:
        note["core:label"] = "a bird"
        note["core:sample_count"] = 7


def test_samples_before_the_first_capture_are_part_of_none(tmp_path):
    first, second = noise(100), noise(50, seed=1)
    meta = changed(save_recording(recording(first, second), tmp_path / "x"), late_start)
    read = load_recording(meta)
    np.testing.assert_array_equal(read.captures[0], first[30:])
    np.testing.assert_array_equal(read.captures[1], second)
    # What is noted of some samples is no name of the capture that they are in.
    assert read.labels == ("capture 0", "capture 1")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda d: d["captures"][0].update({"core:header_bytes": 64}), "core:header_bytes"),
        (lambda d: d["captures"][1].update({"core:frequency": 868e6}), "core:frequency"),
        (lambda d: d["global"].update({"core:dataset": "x.bin"}), "core:dataset"),
        (lambda d: d["global"].update({"core:trailing_bytes": 8}), "core:trailing_bytes"),
        (lambda d: d["global"].pop("core:sample_rate"), "core:sample_rate"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_by_the_keys_name(tmp_path, change, key):
    meta = save_recording(recording(noise(100), noise(50, seed=1)), tmp_path / "x")
    with pytest.raises(RadioConfigurationError, match=f"{key}: "):
        load_recording(changed(meta, change))


def test_an_archive_is_told_from_a_pair_of_files(tmp_path):
    (tmp_path / "x.sigmf").write_bytes(b"")
    with pytest.raises(RadioConfigurationError, match=r"an archive.*tar xf x\.sigmf"):
        load_recording(tmp_path / "x.sigmf")
