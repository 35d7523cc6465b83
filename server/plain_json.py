"""JSON that every reader understands."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(document: dict[str, Any]) -> str:
    """A document as JSON; an infinite figure becomes the text "infinity", which float() reads."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return "infinity" if value == math.inf else value

    return json.dumps(plain(document), indent=1, allow_nan=False)
