"""How a command is asked for a preset with other settings."""

import contextlib
import io
import json

from server.commands import cli


def asked_with(settings, preset="snips"):
    """Words of a command line."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [preset, *(part for pair in pairs for part in ("--set", pair))]


def call(*argv):
    """Run the command in this process; (exit code, standard output, standard error)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()
