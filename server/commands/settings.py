"""Which configuration a command was asked for: a preset or a file, and what is changed of it.

Loads little: a request that cannot be is refused before anything else is.
"""

from __future__ import annotations

import argparse
from typing import Any

from server.config.files import load_config, toml_value
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.presets import DEFAULT_PRESET, available_presets


def asked_for(args: argparse.Namespace) -> RunConfig:
    """The configuration.

    Raises:
        ConfigurationError: there is no such preset or file, or it asks for what cannot be.
    """
    if args.config == "":
        raise ConfigurationError(
            "PRESET|FILE.toml: got an empty name. Leave it out for the preset "
            f"{DEFAULT_PRESET!r}, or name a preset or a file."
        )
    return load_config(preset_or_file(args), overrides(args))


def preset_or_file(args: argparse.Namespace) -> str:
    """What the configuration is called: as named, or what stands for nothing named."""
    if args.config is not None:
        return str(args.config)
    radio = getattr(args, "radio", None)
    return str(radio) if radio in available_presets() else DEFAULT_PRESET


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line changes, "section.key" -> value.

    Raises:
        ConfigurationError: one that is none.
    """
    changes: dict[str, Any] = {}
    for item in args.overrides:
        name, equals, text = item.partition("=")
        if not equals or "." not in name:
            raise ConfigurationError(
                f"--set: got {item!r}, wanted SECTION.KEY=VALUE, as in --set radio.snr_db=0."
            )
        changes[name.strip()] = toml_value(text.strip())
    if getattr(args, "devices", None) is not None:
        changes["federation.num_devices"] = args.devices
    if getattr(args, "radio", None) is not None:
        changes["radio.backend"] = args.radio
    if args.rounds is not None:
        changes["optimizer.rounds"] = args.rounds
    if args.seed is not None:
        changes["run.seed"] = args.seed
    return changes
