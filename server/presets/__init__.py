"""Named, tested configurations, and what they are called; nothing else is loaded for that."""

from __future__ import annotations

import tomllib
from pathlib import Path

PRESETS_FOLDER = Path(__file__).parent
DEFAULT_PRESET = "snips"


def available_presets() -> dict[str, str]:
    """Preset name -> its one-line description."""
    presets = {}
    for path in sorted(PRESETS_FOLDER.glob("*.toml")):
        presets[path.stem] = str(tomllib.loads(path.read_text("utf-8")).get("description", ""))
    return presets
