"""A run carried out: from data and keys to the last round, across interruptions."""
