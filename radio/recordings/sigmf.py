"""Captures on disk, as SigMF: samples beside a description that any tool of the field reads.

A recording is a pair of files, ``NAME.sigmf-meta`` and ``NAME.sigmf-data``, with one or more
captures, each with a label of its own. Samples of a 12-bit converter are stored as they came
(ci16_le, full scale 2^15), others as cf32_le; a digest of the samples is part of the description
and is checked when they are read. Each capture has its levels (``pairzero:power_dbfs``,
``pairzero:peak_dbfs``), the moment of its first sample (``core:datetime``), if that is to be known,
and the receiver's gain (``pairzero:rx_gain_db``), if it has one.

Source: SigMF 1.2, through its own library.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from radio.arrays import Complex64Array
from radio.checks import check_burst, check_not_negative, check_positive
from radio.errors import RadioConfigurationError, RadioUnavailableError
from radio.units import mean_power_dbfs, peak_dbfs

DATA_SUFFIX, META_SUFFIX, ARCHIVE_SUFFIX = ".sigmf-data", ".sigmf-meta", ".sigmf"
_INTEGER_FULL_SCALE = 1 << 15
_SOURCE_KEY = "pairzero:source"
_GAIN_KEY = "pairzero:rx_gain_db"
_SIMULATED_KEY = "pairzero:is_simulated"
_EXTENSION = {"name": "pairzero", "version": "1.2.0", "optional": True}


Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    """By the host's clock."""
    return datetime.datetime.now(datetime.UTC)


def begin_of(
    capture: Complex64Array, sample_rate_hz: float, now: datetime.datetime
) -> datetime.datetime:
    """When the first sample of a capture that has just come was on the air.

    Later by as long as the last one took to get here.
    """
    return now - datetime.timedelta(seconds=len(capture) / sample_rate_hz)


@dataclass(frozen=True, slots=True)
class Recording:
    """Captures of one radio.

    Attributes:
        captures: complex64 arrays in the order in which they were heard.
        labels: what each of them is.
        sample_rate_hz: of all.
        carrier_hz: of all.
        source: where the samples come from, as `Transceiver.source` says.
        moments: of each capture's first sample, as well as the host knows; None where it does not,
            and all of them where there are none.
        rx_gain_db: of the receiver, as it was set; None where that is not known.
        is_simulated: whether no hardware was behind it; so is taken for what does not say.
    """

    captures: tuple[Complex64Array, ...]
    labels: tuple[str, ...]
    sample_rate_hz: float
    carrier_hz: float
    source: str
    moments: tuple[datetime.datetime | None, ...] = ()
    rx_gain_db: float | None = None
    is_simulated: bool = True


def save_recording(recording: Recording, path: Path) -> Path:
    """Write a recording; an existing one is not replaced.

    Args:
        recording: at least one capture.
        path: of the description, with or without its suffix.

    Returns:
        The path of the description.

    Raises:
        RadioConfigurationError: nothing to write, or a file is there already, or the folder cannot
            be written.
        RadioUnavailableError: SigMF's library is not installed.
    """
    sigmf = _library()
    captures = [check_burst("capture", capture) for capture in recording.captures]
    if not captures or len(captures) != len(recording.labels):
        raise RadioConfigurationError(
            f"recording: got {len(captures)} captures and {len(recording.labels)} labels, wanted "
            "at least one, and a label for each."
        )
    moments = recording.moments or (None,) * len(captures)
    if len(moments) != len(captures):
        raise RadioConfigurationError(
            f"recording: got {len(captures)} captures and {len(moments)} moments, wanted a moment "
            "for each, or none."
        )
    check_positive("sample_rate_hz", recording.sample_rate_hz)
    check_not_negative("carrier_hz", recording.carrier_hz)
    stem = _stem(path)
    meta, data = _with(stem, META_SUFFIX), _with(stem, DATA_SUFFIX)
    samples = np.concatenate(captures)
    as_integers = _as_integers(samples)
    datatype, raw = ("cf32_le", samples) if as_integers is None else ("ci16_le", as_integers)
    try:
        with data.open("xb") as file:
            raw.tofile(file)
    except FileExistsError as error:
        raise RadioConfigurationError(
            f"{data}: a recording is there already. Name another file."
        ) from error
    except OSError as error:
        raise RadioConfigurationError(f"{data}: cannot be written: {error}.") from error
    try:
        described = sigmf.SigMFFile(
            data_file=str(data),
            global_info={
                "core:datatype": datatype,
                "core:sample_rate": recording.sample_rate_hz,
                "core:recorder": "pairzero",
                "core:version": "1.2.0",
                "core:description": "baseband samples, 1.0 = full scale",
                "core:extensions": [_EXTENSION],
                _SOURCE_KEY: recording.source,
                _SIMULATED_KEY: recording.is_simulated,
            },
        )
        start = 0
        for capture, label, moment in zip(captures, recording.labels, moments, strict=True):
            about = _about(capture, recording, moment)
            described.add_capture(start, metadata=about)
            described.add_annotation(start, len(capture), metadata={"core:label": label})
            start += len(capture)
        described.tofile(str(meta))
    except BaseException:
        with contextlib.suppress(OSError):
            data.unlink()
        raise
    return meta


def _about(
    capture: Complex64Array, recording: Recording, moment: datetime.datetime | None
) -> dict[str, Any]:
    """What is written of one capture."""
    about: dict[str, Any] = {"core:frequency": recording.carrier_hz}
    if moment is not None:
        utc = moment.astimezone(datetime.UTC)
        about["core:datetime"] = utc.isoformat(timespec="microseconds").replace("+00:00", "Z")
    if recording.rx_gain_db is not None:
        about[_GAIN_KEY] = recording.rx_gain_db
    levels = {"power": mean_power_dbfs(capture), "peak": peak_dbfs(capture)}
    # Of silence there are none: JSON has no infinity.
    about |= {f"pairzero:{name}_dbfs": db for name, db in levels.items() if math.isfinite(db)}
    return about


def load_recording(path: Path) -> Recording:
    """Read a recording, ours or another's, and check it against its digest.

    A capture is what lies between its ``core:sample_start`` and the next one's; samples before the
    first one's are none. An annotation is a capture's label if it covers that capture and no more.

    Raises:
        RadioConfigurationError: not there, not a recording, damaged, of a kind that is not IQ, or
            with something in it that would be read wrongly: the message has the key's name.
        RadioUnavailableError: SigMF's library is not installed.
    """
    sigmf = _library()
    if path.name.endswith(ARCHIVE_SUFFIX):
        raise RadioConfigurationError(
            f"{path}: an archive, wanted a pair of files, {META_SUFFIX} and {DATA_SUFFIX}. Unpack "
            f"it: tar xf {path.name}"
        )
    stem = _stem(path)
    meta, data = _with(stem, META_SUFFIX), _with(stem, DATA_SUFFIX)
    if meta.is_file():
        _check_keys(meta)
    for file in (meta, data):
        if not file.is_file():
            raise RadioConfigurationError(
                f"{file}: not there. A recording is two files, {META_SUFFIX} and {DATA_SUFFIX}."
            )
    try:
        described = sigmf.sigmffile.fromfile(str(meta))
        described.validate()
        header = described.get_global_info()
        pieces = described.get_captures()
        samples = np.asarray(described.read_samples())
        notes = described.get_annotations()
        rate_hz = float(header["core:sample_rate"])
        carrier_hz = float(pieces[0].get("core:frequency", 0.0))
        starts = [int(piece["core:sample_start"]) for piece in pieces]
    except (OSError, KeyError, IndexError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise _damaged(meta, error) from error
    except Exception as error:  # the library's own, which have no common base of their own
        if type(error).__module__.split(".")[0] not in ("sigmf", "jsonschema"):
            raise
        raise _damaged(meta, error) from error
    if not np.iscomplexobj(samples) or samples.ndim != 1:
        raise RadioConfigurationError(
            f"{meta}: holds {header.get('core:datatype')}, wanted one channel of complex samples."
        )
    bounds = list(zip(starts, [*starts[1:], len(samples)], strict=True))
    captures = [samples[start:end].astype(np.complex64) for start, end in bounds]
    return Recording(
        captures=tuple(check_burst("capture", capture) for capture in captures),
        labels=tuple(_label(index, *bound, notes) for index, bound in enumerate(bounds)),
        sample_rate_hz=check_positive("sample_rate_hz", rate_hz),
        carrier_hz=carrier_hz,
        source=str(header.get(_SOURCE_KEY, header.get("core:hw", "unknown"))),
        moments=tuple(_moment(piece) for piece in pieces),
        rx_gain_db=_gain_db(pieces),
        is_simulated=header.get(_SIMULATED_KEY) is not False,
    )


def _moment(piece: dict[str, Any]) -> datetime.datetime | None:
    """When a capture was made, if it says so; it changes nothing about the samples."""
    try:
        moment = datetime.datetime.fromisoformat(str(piece["core:datetime"]))
    except (KeyError, ValueError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def _gain_db(pieces: list[dict[str, Any]]) -> float | None:
    """The gain of all captures, if they have one."""
    gains = {piece.get(_GAIN_KEY) for piece in pieces}
    gain = gains.pop() if len(gains) == 1 else None
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not math.isfinite(gain):
        return None
    return float(gain)


def _check_keys(meta: Path) -> None:
    """Return if nothing in a description changes what its samples are, unknown to this reader.

    What is no description at all is left to the library.

    Raises:
        RadioConfigurationError: something does, or the rate is not there.
    """
    try:
        document = json.loads(meta.read_text("utf-8"))
        header, pieces = dict(document["global"]), [dict(one) for one in document["captures"]]
    except (OSError, KeyError, TypeError, ValueError):
        return
    wrong: dict[str, str] = {}
    if "core:sample_rate" not in header:
        wrong["core:sample_rate"] = "it is not there, and samples without a rate have no spectrum"
    for key in ("core:dataset", "core:trailing_bytes", "core:metadata_only"):
        if header.get(key):
            wrong[key] = f"got {header[key]!r}; wanted all samples, and nothing else, in one file"
    if any(piece.get("core:header_bytes") for piece in pieces):
        wrong["core:header_bytes"] = "there are other bytes between the samples"
    if len({piece.get("core:frequency") for piece in pieces}) > 1:
        wrong["core:frequency"] = "the captures are at different carriers, wanted one"
    for key, why in wrong.items():
        raise RadioConfigurationError(
            f"{meta}: {key}: {why}. It would be read wrongly; convert the recording first."
        )


def _label(index: int, start: int, end: int, notes: list[dict[str, Any]]) -> str:
    """The label of a capture: that of the annotation which is about all of it."""
    for note in notes:
        whole = note.get("core:sample_start") == start and note.get("core:sample_count") in (
            None,
            end - start,
        )
        if whole and note.get("core:label"):
            return str(note["core:label"])
    return f"capture {index}"


def _as_integers(samples: Complex64Array) -> np.ndarray | None:
    """The samples as int16 in phase and quadrature, if that loses nothing."""
    parts = samples.view(np.float32).astype(np.float64) * _INTEGER_FULL_SCALE
    integers = np.rint(parts)
    is_exact = np.array_equal(parts, integers)
    if (
        not is_exact
        or integers.min() < -_INTEGER_FULL_SCALE
        or integers.max() >= _INTEGER_FULL_SCALE
    ):
        return None
    return integers.astype("<i2")


def _stem(path: Path) -> Path:
    for suffix in (META_SUFFIX, DATA_SUFFIX):
        if path.name.endswith(suffix):
            return path.with_name(path.name.removesuffix(suffix))
    if not path.name:
        raise RadioConfigurationError(f"{path}: wanted the name of a recording, not a folder.")
    return path


def _with(stem: Path, suffix: str) -> Path:
    return stem.with_name(stem.name + suffix)


def _damaged(meta: Path, error: Exception) -> RadioConfigurationError:
    first_line = (str(error).splitlines() or [""])[0]
    return RadioConfigurationError(
        f"{meta}: not a recording that can be trusted: {type(error).__name__}: {first_line} "
        "Record it again, or fetch both files again."
    )


def _library() -> Any:
    try:
        import sigmf
    except ImportError as error:
        raise RadioUnavailableError(
            f"recordings need SigMF's library: {error}. Install it with: "
            "pip install 'pairzero[pluto]'"
        ) from error
    return sigmf
