"""Loads torch, transformers, onnx and optimum when they are first needed, never earlier.

They are heavy and live on the exporting machine alone, so that ``pairzero --help`` stays quick and
a missing one is explained instead of ending in a traceback.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Read by the hub's client when it is loaded.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from server.errors import ExportError


def load(module: str) -> Any:
    """The module of that name.

    Raises:
        ExportError: it is not installed, or is installed and cannot be loaded.
    """
    try:
        if module.partition(".")[0] == "optimum":
            # It loads onnxruntime by itself; whoever comes first decides about the telemetry.
            importlib.import_module("edge_runtime.onnx_runtime")
        return importlib.import_module(module)
    except ImportError as error:
        raise ExportError(
            f"{module}: wanted for exporting a model, cannot be loaded ({error}). "
            f"From pairzero's folder: pip install '.[{'gguf' if module == 'gguf' else 'export'}]'"
        ) from error
