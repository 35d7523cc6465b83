"""The coordinator: plans, accounts, receives, evaluates, reports."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded; why: radio/__init__.py
