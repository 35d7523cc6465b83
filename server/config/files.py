"""Configurations from files, presets and command lines, and back."""

from __future__ import annotations

import enum
import logging
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from edge_runtime.input_files import read_settings
from radio.errors import did_you_mean
from server.config.learning import BUNDLED_MODEL
from server.config.run_config import RunConfig
from server.config.unread import set_keys, unread_keys
from server.errors import ConfigurationError
from server.presets import PRESETS_FOLDER, available_presets

logger = logging.getLogger(__name__)


def load_config(preset_or_path: str, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Load a preset by name or a file by path; ``overrides`` are "section.key" -> value.

    Raises:
        ConfigurationError: no such preset or file, unknown key, wrong type, impossible value, or a
            value that would change nothing (`server.config.unread`).
    """
    path = Path(preset_or_path)
    if path.suffix != ".toml":
        path = PRESETS_FOLDER / f"{preset_or_path}.toml"
        if not path.is_file():
            known = available_presets()
            raise ConfigurationError(
                f"preset: no preset {preset_or_path!r}.{did_you_mean(preset_or_path, known)} "
                f"Known: {', '.join(known)}; or give the path of a .toml file."
            )
    try:
        document = read_settings(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:  # also of an integer with thousands of digits
        raise ConfigurationError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigurationError(
            f"{path}: not TOML that anybody wrote: nested too deeply."
        ) from None
    is_preset = path.parent == PRESETS_FOLDER
    if not is_preset:
        _resolve_paths(document, path.parent)
    for dotted, value in (overrides or {}).items():
        *sections, key = dotted.split(".")
        keys = document
        for section in sections:
            keys = keys.setdefault(section, {})
            if not isinstance(keys, dict):
                raise ConfigurationError(
                    f"{dotted}: {section!r} is a plain value, it has no keys. Write {section} = "
                    "... in a configuration file."
                )
        keys[key] = value
    # What came from the command line, or with the program, is relative to where the user is.
    _resolve_paths(document, Path.cwd())
    source = f"preset {path.stem}" if is_preset else str(path)
    named = {".".join(name.split(".")[:2]) for name in overrides or ()}
    config = parse_config(document, source=source, overrides=named)
    _check_is_read(config, document, named, path)
    return config


def _check_is_read(
    config: RunConfig, document: dict[str, Any], changed: Collection[str], path: Path
) -> None:
    """Refuse what was set and changes nothing.

    But for what a file says of a choice that the command line made otherwise: that is only told;
    and a preset was not written by who runs it.

    Raises:
        ConfigurationError: a key that nothing reads.
    """
    is_preset = path.parent == PRESETS_FOLDER
    for unread in unread_keys(config, set_keys(document)):
        nothing = f"{unread.key}: set, and nothing reads it with {unread.chosen}."
        if unread.key not in changed and (is_preset or unread.chosen_by in changed):
            if not is_preset:
                logger.warning("%s %s", path, nothing)
            continue
        where = "--set" if unread.key in changed else path
        raise ConfigurationError(f"{where}: {nothing} Leave it out, or change {unread.chosen_by}.")


def _resolve_paths(document: dict[str, Any], folder: Path) -> None:
    """Paths in a file are relative to the file; stored absolute, so that resume finds them."""
    for section, key in (
        ("model", "bundle"), ("task", "name"), ("task", "train"), ("task", "validation"),
    ):  # fmt: skip
        keys = document.get(section)
        value = keys.get(key) if isinstance(keys, dict) else None
        if not isinstance(keys, dict) or not isinstance(value, str):
            continue
        is_name = key == "name" and not value.endswith(".toml")
        if value not in ("", BUNDLED_MODEL) and not is_name:
            keys[key] = str((folder / Path(value).expanduser()).resolve())


def toml_value(text: str) -> Any:
    """A TOML value from a command line; bare words are strings: --set radio.channel=awgn.

    Raises:
        ConfigurationError: more than one value, or one that nobody can mean.
    """
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"--set: {text[:40]!r}...: not a TOML value ({error}).") from error
    if len(document) != 1:
        raise ConfigurationError(
            f"--set: got {text!r}, wanted one value. Repeat --set for another setting."
        )
    return document["value"]


def parse_config(
    document: dict[str, Any], *, source: str, overrides: Collection[str] = ()
) -> RunConfig:
    """Turn a parsed TOML document into a checked configuration.

    Args:
        document: sections and their keys.
        source: where it is from, for messages.
        overrides: "section.key" that the command line has set in it.

    Raises:
        ConfigurationError: an unknown key, a value of the wrong kind, or an impossible one.
    """
    try:
        return msgspec.convert(document, RunConfig)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from None
        raise ConfigurationError(_explained(error, document, source, overrides)) from error


def _explained(
    error: msgspec.ValidationError,
    document: dict[str, Any],
    source: str,
    overrides: Collection[str],
) -> str:
    """What msgspec says, with the value that was there and those that could be."""
    what, _, place = str(error).partition(" - at `$")
    path = [part for part in place.rstrip("`").split(".") if part]
    kind: Any = RunConfig
    value: Any = document
    for part in path:
        name = part.partition("[")[0]  # of an item of a list
        kind = get_type_hints(kind).get(name, Any)
        value = value.get(name) if isinstance(value, dict) else value
    unknown = re.search(r"unknown field `(.*)`", what)
    at = ".".join(path + ([unknown[1]] if unknown else []))
    is_set = any(
        f"{at}.".startswith((f"{key}.", f"{key}[")) or key.startswith(f"{at}.") for key in overrides
    )
    where = "--set" if is_set else source
    if unknown:
        known = get_type_hints(kind)
        what = f"key {unknown[1]!r} in [{'.'.join(path)}]" if path else f"section [{unknown[1]}]"
        near = did_you_mean(unknown[1], known)
        return f"{where}: unknown {what}.{near} Known: {', '.join(known)}."
    choices = _choices(kind)
    if choices:
        near, wanted = did_you_mean(str(value), choices), ", ".join(choices)
        return f"{where}: {at}: got {value!r}, wanted one of {wanted}.{near}"
    return f"{where}: {at}: got {repr(value)[:60]}: {what}."


def _choices(kind: Any) -> list[str]:
    """The values that a key may have, where they are few."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return [str(member.value) for member in kind]
    return [value for part in get_args(kind) for value in _choices(part)]


def dump_config(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values, for the run store and summaries."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain
