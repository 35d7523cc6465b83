"""The one place that imports onnxruntime, with its telemetry off and one arena for all sessions.

From 1.32 on, onnxruntime writes a device id and a cache of events below HOME and sends events to
its vendor, unless it is told not to before it is loaded. Events can hold the number and duration of
forward passes, and those follow the size of a device's secret batch: they would be a release beside
the privacy ledger. Everything else says ``from edge_runtime.onnx_runtime import onnxruntime``.
"""

from __future__ import annotations

import contextlib
import os

# Read when the library is loaded. Whoever has loaded it before us has started it, so the switch of
# the running library is turned as well.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

onnxruntime.disable_telemetry_events()

_FIRST_PIECE_BYTES = 64 * 2**20

SHARED_ARENA = ("session.use_env_allocators", "1")
"""The session entry that makes a session take its activations from the process's one arena."""


def _register_arena() -> None:
    """One arena for the process.

    It takes address space in large pieces; only what is touched becomes memory. Pieces of the size
    of each request would touch more: what was freed does not serve a larger request.
    """
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    no_limit, by_doubling, library_default = 0, 0, -1
    arena = onnxruntime.OrtArenaCfg(no_limit, by_doubling, _FIRST_PIECE_BYTES, library_default)
    # Some versions refuse a second one: then somebody else's serves, and only memory differs.
    with contextlib.suppress(RuntimeError):
        onnxruntime.create_and_register_allocator(where, arena)


_register_arena()

__all__ = ["SHARED_ARENA", "onnxruntime"]
