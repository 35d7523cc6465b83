"""The air as equations: a medium, its channels, what real radios would do."""
