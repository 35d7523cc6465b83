"""How every command ends: with a documented code, and with one line where it went wrong.

Whatever a person gives a command, a file that cannot be read, a full disk, a closed pipe, Ctrl-C,
is no defect of the program and gets no traceback. A defect is, and keeps its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from radio import logs

EXIT_PROBLEM = 1
"""The command ran and found a problem."""
EXIT_BAD_INPUT = 2
"""A named error: the request cannot be carried out."""
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""What a shell reports for SIGPIPE."""


class ShowVersion(argparse.Action):
    """``--version``; what it takes to know it is loaded when somebody asks."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show it and exit")

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        """Print the version of what is installed."""
        from importlib.metadata import version

        sys.stdout.write(f"pairzero {version('pairzero')}\n")
        parser.exit()


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """``--log-level`` and ``--log-format``."""
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning"))
    parser.add_argument(
        "--log-format", default="text", choices=logs.FORMATS,
        help="of what is said on standard error: json is an object a line",
    )  # fmt: skip


_logger = logging.getLogger(__name__)


def answered(
    program: str,
    carry_out: Callable[[], int],
    known: tuple[type[Exception], ...],
    *,
    installs: str,
    if_stopped: str = "stopped at once.",
) -> int:
    """Carry out a command; its exit code.

    Args:
        program: its name, in front of what is said.
        carry_out: the command, imports included.
        known: errors that are meant for a person as they are.
        installs: what installs a library that is missing.
        if_stopped: what is said on Ctrl-C.

    Returns:
        The command's own code; 2 for a named error, 130 for Ctrl-C, 141 for a reader that has gone.
    """
    _open_standard_streams()
    try:
        with _flushed():
            return carry_out()
    except known as error:
        return _told(program, str(error))
    except ModuleNotFoundError as error:
        return _told(
            program,
            f"the library {error.name!r} is not installed. From pairzero's folder: {installs}",
        )
    except BrokenPipeError:
        # The reader has gone (| head). Nothing more can be said, and the interpreter's own last
        # flush must not complain about it either.
        _forget_output()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        _told(program, if_stopped)
        return EXIT_INTERRUPTED
    except (OSError, UnicodeError, RecursionError, MemoryError, ValueError) as error:
        said = _in_one_line(error)
        if said is None:
            raise
        return _told(program, said)


def _in_one_line(error: Exception) -> str | None:
    """What the system says, in words of ours; None of what may be a defect of the program."""
    match error:
        case OSError():
            name = "input or output" if error.filename is None else repr(str(error.filename))
            why = error.strerror or str(error)
            return f"{name}: {why} ({type(error).__name__}). Mend that and try again."
        case UnicodeError():
            return f"text that is not what it is said to be: {error}. Wanted UTF-8."
        case RecursionError():
            return "the input is nested too deeply."
        case MemoryError():
            return "out of memory. Ask for less: fewer devices, rounds, symbols or workers."
        case ValueError() if "null byte" in str(error) or "null character" in str(error):
            return "a name holds a NUL character, which no file can have."
    return None


def _told(program: str, text: str) -> int:
    _logger.debug("%s", text, exc_info=True)
    if logs.is_json():
        with contextlib.suppress(OSError, ValueError):
            _logger.error("%s", text)
        return EXIT_BAD_INPUT
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{program}: {text}\n")
        sys.stderr.flush()
    return EXIT_BAD_INPUT


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """What was printed has arrived when this ends, or it ends with the error that kept it."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except BaseException:
            _forget_output()
            raise


def _forget_output() -> None:
    """What is left in the buffer goes nowhere, also when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_standard_streams() -> None:
    """A shell may have closed them (>&-): then a file that is opened next would be one of them.

    What the terminal cannot show is shown by its number, and is no error.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def at_the_end_of_the_input(is_over: threading.Event) -> None:
    """Set an event when standard input ends: with whoever started this process, however it goes."""

    def wait() -> None:
        # Not through sys.stdin, whose lock a thread must not hold when the program ends.
        with contextlib.suppress(OSError):
            while os.read(0, 1 << 16):
                pass
        is_over.set()

    threading.Thread(target=wait, name="input", daemon=True).start()
