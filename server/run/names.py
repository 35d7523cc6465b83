"""What runs are called."""

from __future__ import annotations

import re
import secrets
from pathlib import Path


def new_run_id(task: str) -> str:
    """A name for a run of a task that nobody has had."""
    return f"{token_of(Path(task).stem)}-{secrets.token_hex(4)}"


def token_of(name: str) -> str:
    """A name in letters, digits, - and _ alone: a run's is part of addresses on a network."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "run"
