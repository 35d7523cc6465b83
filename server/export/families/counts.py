"""What a dimension has to be, in every family."""

from __future__ import annotations

from server.errors import ExportError


def check_count(name: str, value: object) -> None:
    """Raise ExportError unless a dimension is a whole number above 0."""
    if not isinstance(value, int) or value < 1:
        raise ExportError(
            f"{name}: got {value!r}, wanted a whole number >= 1. "
            "The model's config.json is damaged: download the model again."
        )
