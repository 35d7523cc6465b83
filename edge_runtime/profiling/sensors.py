"""What a board says of itself: temperature, clock, throttling, energy. Absent is None, never 0.

Linux: ``/sys/class/thermal``, ``cpufreq``, ``/sys/class/powercap`` (joules since boot, which wrap),
``/sys/class/hwmon`` (``energy*_input`` in microjoules, ``power*_input`` in microwatts); on a
Raspberry Pi ``vcgencmd get_throttled``, whose lowest four bits say what holds the clock back now
and whose bits 16 to 19 what has since boot.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_ASK_S = 2.0
_SAMPLE_S = 0.1
_NOW_BITS, _SINCE_BOOT_BITS = 0xF, 0xF0000


@dataclass(frozen=True, slots=True)
class Reading:
    """What a board says now.

    Attributes:
        temperature_c: of the hottest zone.
        frequency_hz: of the slowest core.
        throttled: bits of ``vcgencmd get_throttled``.
    """

    temperature_c: float | None = None
    frequency_hz: float | None = None
    throttled: int | None = None


def has_throttled(before: Reading, after: Reading) -> bool | None:
    """Whether the board held its clock back in between, or does now; None if it does not say."""
    if before.throttled is None or after.throttled is None:
        return None
    since = (after.throttled & ~before.throttled) & _SINCE_BOOT_BITS
    return bool((before.throttled | after.throttled) & _NOW_BITS or since)


class Sensors:
    """Reads them.

    Args:
        root: of the file system.
        ask: a program's answer, None if there is no such program.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        ask: Callable[[list[str]], str | None] | None = None,
    ) -> None:
        self._sys, self._ask = root / "sys", _answer if ask is None else ask
        self._cores = sorted(self._sys.glob("devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"))
        self._zones = sorted(self._sys.glob("class/thermal/thermal_zone*/temp"))

    def read(self) -> Reading:
        """What the board says now."""
        temperatures = [t / 1e3 for t in _numbers(self._zones)]
        frequencies = [1e3 * f for f in _numbers(self._cores)]
        return Reading(
            temperature_c=max(temperatures, default=None),
            frequency_hz=min(frequencies, default=None),
            throttled=self._throttled(),
        )

    def energy_meter(self) -> EnergyMeter | None:
        """The best counter that there is; None if there is none."""
        packages = [
            Counter(path, _first(path.with_name("max_energy_range_uj")))
            for path in sorted(self._sys.glob("class/powercap/*/energy_uj"))
            # Of nested ranges the outermost: "intel-rapl:0" holds "intel-rapl:0:1".
            if path.parent.name.count(":") == 1 and _first(path) is not None
        ]
        if packages:
            return CountedEnergy("powercap", packages)
        counters = [
            Counter(path, None)
            for path in sorted(self._sys.glob("class/hwmon/hwmon*/energy*_input"))
            if _first(path) is not None
        ]
        if counters:
            return CountedEnergy("hwmon energy", counters)
        powers = [
            path
            for path in sorted(self._sys.glob("class/hwmon/hwmon*/power*_input"))
            if _first(path) is not None
        ]
        return IntegratedPower(powers) if powers else None

    def _throttled(self) -> int | None:
        said = self._ask(["vcgencmd", "get_throttled"])
        name, _, value = (said or "").strip().partition("=")
        with contextlib.suppress(ValueError):
            if name == "throttled":
                return int(value, 16)
        return None


class EnergyMeter:
    """Joules since it was begun.

    Attributes:
        counter: what they are of, by the kernel's name.
    """

    counter: str

    def joules(self) -> float:
        """So far."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A file of microjoules, and where it begins anew."""

    path: Path
    wraps_at: float | None


class CountedEnergy(EnergyMeter):
    """The kernel counts."""

    def __init__(self, counter: str, counters: list[Counter]) -> None:
        self.counter = counter
        self._counters = counters
        self._last = [_first(each.path) or 0.0 for each in counters]
        self._sum_uj = 0.0

    def joules(self) -> float:
        """So far; asked at least once in every turn of the counter."""
        for index, each in enumerate(self._counters):
            now = _first(each.path)
            if now is None:
                continue
            step = now - self._last[index]
            if step < 0.0:
                step += each.wraps_at or 0.0
            self._sum_uj += max(step, 0.0)
            self._last[index] = now
        return self._sum_uj * 1e-6


class IntegratedPower(EnergyMeter):
    """Power, read ten times a second and summed."""

    counter = "hwmon power, integrated"

    def __init__(self, powers: list[Path]) -> None:
        self._powers = powers
        self._sum_j, self._at_s = 0.0, time.monotonic()
        self._is_over = threading.Event()
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._sample, name="power", daemon=True)
        self._thread.start()

    def joules(self) -> float:
        """So far."""
        with self._guard:
            now_s = time.monotonic()
            self._sum_j += sum(_numbers(self._powers)) * 1e-6 * (now_s - self._at_s)
            self._at_s = now_s
            return self._sum_j

    def close(self) -> None:
        """Stop reading."""
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            self.joules()


def _first(path: Path) -> float | None:
    return next(iter(_numbers([path])), None)


def _numbers(paths: Iterable[Path]) -> list[float]:
    found = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            found.append(float(path.read_text("ascii", "replace")))
    return found


def _answer(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout if ran.returncode == 0 else None
