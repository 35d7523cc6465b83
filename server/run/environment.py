"""What decides a run's bits and sizes besides its configuration: libraries, machine, memory."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edge_runtime.bundle import Bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.tasks import pad_rows

_PROBE_SHAPE = (4, 16)
_PROBE_STRIDE = 7919  # a prime: the probe's tokens are spread over the vocabulary


def environment() -> dict[str, str]:
    """What decides the bits of a forward pass: libraries and machine."""
    libraries = {name: version(name) for name in ("pairzero", "numpy", "onnxruntime", "tokenizers")}
    return {**libraries, "machine": platform.machine()}


def probe(forward: OnnxForward, bundle: Bundle) -> str:
    """Digest of the losses of some made-up prompts: other bits mean another kind of processor.

    Made up, because the digest is stored, and nothing that is stored may follow anybody's data.
    """
    rows = _PROBE_SHAPE[0]
    width = min(_PROBE_SHAPE[1], int(bundle.manifest.architecture["max_position_embeddings"]))
    tokens = np.arange(rows * width, dtype=np.int64) * _PROBE_STRIDE
    tokens %= int(bundle.manifest.architecture["vocab_size"])
    batch = pad_rows(list(tokens.reshape(rows, width)), np.zeros(rows, dtype=np.int64), width=width)
    return hashlib.sha256(forward.run(batch).losses.tobytes()).hexdigest()


def peak_rss_mb() -> float:
    """Largest resident memory of this program so far, in 10^6 bytes.

    On Linux as the kernel has it since the program was loaded (VmHWM): ``ru_maxrss`` begins with
    what its parent had, which may be a notebook with gigabytes.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024.0 / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1.0 if sys.platform == "darwin" else 1024.0) / 1e6, 1)
