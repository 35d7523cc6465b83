"""The contract of a round, importable with numpy and msgspec alone."""
