"""This process's memory, as the kernel counts it.

The peak of a phase: writing 5 to ``/proc/self/clear_refs`` sets VmHWM back to what is resident now
(proc(5)), so that what it is at the end of a phase was reached in that phase.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.protocol.errors import ProfileError

_SELF = Path("/proc/self")
_MEMINFO = Path("/proc/meminfo")
_SET_PEAK_BACK = "5"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Resident:
    """What is in memory now, in bytes.

    Attributes:
        peak: the most since it was set back.
        anonymous: the process's own, weights among them.
        file_backed: of files, libraries among them; the kernel can drop and read it again.
    """

    peak: int
    anonymous: int
    file_backed: int

    @property
    def total(self) -> int:
        """Both kinds together."""
        return self.anonymous + self.file_backed


@dataclass(frozen=True, slots=True)
class Faults:
    """Pages that were not there when they were touched.

    Attributes:
        minor: given without reading anything.
        major: read from a disk.
    """

    minor: int
    major: int

    def __sub__(self, earlier: Faults) -> Faults:
        """Those since then."""
        return Faults(self.minor - earlier.minor, self.major - earlier.major)


def resident() -> Resident:
    """What is in memory now.

    Raises:
        ProfileError: the kernel does not say.
    """
    values = _values(_SELF / "status", ("VmHWM", "RssAnon", "RssFile"))
    return Resident(values["VmHWM"], values["RssAnon"], values["RssFile"])


def set_peak_back() -> None:
    """Let the peak begin anew, from what is resident now.

    Raises:
        ProfileError: the kernel cannot.
    """
    try:
        (_SELF / "clear_refs").write_text(_SET_PEAK_BACK, "ascii")
    except OSError as error:
        raise ProfileError(
            f"/proc/self/clear_refs: {error.strerror}; the peak of a phase cannot be told without "
            "it. It needs Linux with CONFIG_PROC_PAGE_MONITOR."
        ) from error


def proportional_bytes() -> int | None:
    """PSS: what this process would free, shared pages divided by who shares them; None if unknown.

    Takes a walk over all pages: milliseconds.
    """
    try:
        return _values(_SELF / "smaps_rollup", ("Pss",))["Pss"]
    except ProfileError:
        return None


def faults() -> Faults:
    """Since the process began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Faults(used.ru_minflt, used.ru_majflt)


def available_bytes() -> int:
    """What a program could still have without anything being swapped out.

    Raises:
        ProfileError: the kernel does not say.
    """
    return _values(_MEMINFO, ("MemAvailable",))["MemAvailable"]


def _values(path: Path, wanted: tuple[str, ...]) -> dict[str, int]:
    try:
        text = path.read_text("ascii", "replace")
    except OSError as error:
        raise ProfileError(
            f"{path}: {error.strerror}; memory cannot be told without it. A profile needs Linux "
            "with /proc."
        ) from error
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            found[name] = int(rest.split()[0]) * _KIB
    if missing := set(wanted) - set(found):
        raise ProfileError(f"{path}: says nothing of {', '.join(sorted(missing))}.")
    return found
