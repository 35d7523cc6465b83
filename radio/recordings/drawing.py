"""The one place that imports matplotlib, with its list of fonts kept out of HOME.

A run writes into its own folder and nowhere else. Whoever sets MPLCONFIGDIR has chosen a place.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="pairzero-matplotlib-")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["Axes", "Figure", "FigureCanvasAgg"]
