"""The one place that imports onnxruntime, with its telemetry off.

From 1.32 on, onnxruntime writes a device id and a cache of events below HOME and sends events to
its vendor, unless it is told not to before it is loaded. Events can hold the number and duration of
forward passes, and those follow the size of a device's secret batch: they would be a release beside
the privacy ledger. Everything else says ``from edge_runtime.onnx_runtime import onnxruntime``.
"""

from __future__ import annotations

import os

# Read when the library is loaded. Whoever has loaded it before us has started it, so the switch of
# the running library is turned as well.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

__all__ = ["onnxruntime"]
