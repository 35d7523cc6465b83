"""How many processors this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup/cpu.max")


def usable_processors(cgroup: Path = _CGROUP) -> int:
    """The smaller of the processors it is bound to and of the time that a container gives it.

    Args:
        cgroup: the file in which Linux states the quota, "MAX PERIOD" in microseconds.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = cgroup.read_text("ascii").split()
        share = math.ceil(int(quota) / int(period)) if quota != "max" else None
    except (OSError, ValueError, ZeroDivisionError):
        share = None
    usable = bound or 1
    return max(1, usable if share is None else min(usable, share))
