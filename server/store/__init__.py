"""The disk: rounds, evaluations, keys."""
