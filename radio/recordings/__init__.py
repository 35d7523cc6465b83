"""Captures on disk as SigMF, played again and drawn."""
