"""What runs on an edge computer: forward passes, directions, clipping, a few numbers a round."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded; why: radio/__init__.py
