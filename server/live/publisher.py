"""Says how a run stands as long as it has a process: in its folder, and on a page if asked."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from pathlib import Path

import msgspec

from radio.self_closing import SelfClosing
from server.live.page import LatestStatus, Page
from server.live.status import State, Status, Watch, status_file
from server.run.experiment import Experiment, Progress

_logger = logging.getLogger(__name__)

_EVERY_S = 1.0


class Publisher(SelfClosing):
    """Tells of one run, from a thread of its own: once a second at most, where it has changed.

    Args:
        experiment: the run.
        page_port: of a page at 127.0.0.1, 0 for any; None for none.
        every_s: how often a status is looked at.

    Raises:
        ServerError: the port is taken.
    """

    def __init__(
        self, experiment: Experiment, page_port: int | None = None, every_s: float = _EVERY_S
    ) -> None:
        self._watch = Watch(experiment, os.getpid(), time.monotonic)
        self._file, self._every_s = status_file(experiment.folder), every_s
        self._latest = LatestStatus(self._watch.status())
        self._page = None if page_port is None else Page(self._latest, page_port)
        self._is_over = threading.Event()
        self._can_write = True
        self._write(self._latest.status)
        self._thread = threading.Thread(target=self._look_again, name="status", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str | None:
        """Where the page is, if there is one."""
        return None if self._page is None else self._page.url

    def note(self, progress: Progress) -> None:
        """A round is over."""
        self._watch.note(progress)

    def close(self) -> None:
        """The run has no process any more: nobody says anything of it. Idempotent."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        self._thread.join()
        self._latest.tell(msgspec.structs.replace(self._watch.status(), state=State.ENDED))
        if self._page is not None:
            self._page.close()
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _look_again(self) -> None:
        while not self._is_over.wait(self._every_s):
            now = self._watch.status()
            if now != self._latest.status:
                self._latest.tell(now)
                self._write(now)

    def _write(self, status: Status) -> None:
        """Whole or not at all; a folder that takes no files is no reason for a run to end."""
        try:
            _replace(self._file, msgspec.json.encode(status))
            self._can_write = True
        except OSError as error:
            if self._can_write:
                _logger.warning("%s: %s; the run goes on", self._file, error.strerror or error)
            self._can_write = False


def _replace(file: Path, data: bytes) -> None:
    beside = file.with_name(f".{file.name}")
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as written:
        written.write(data)
    beside.replace(file)
