"""Loads torch, transformers, onnx and optimum when they are first needed, never earlier.

They are heavy and live on the exporting machine alone, so that ``pairzero --help`` stays quick and
a missing one is explained instead of ending in a traceback.
"""

from __future__ import annotations

import importlib
from typing import Any

from server.errors import ExportError


def load(module: str) -> Any:
    """The module of that name.

    Raises:
        ExportError: it is not installed, or is installed and cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"{module}: wanted for exporting a model, cannot be loaded ({error}). "
            "From pairzero's folder: pip install '.[export]'"
        ) from error
