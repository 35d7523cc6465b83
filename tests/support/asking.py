"""How a command is asked for a preset with other settings."""

import json


def asked_with(settings, preset="snips"):
    """Words of a command line."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [preset, *(part for pair in pairs for part in ("--set", pair))]
