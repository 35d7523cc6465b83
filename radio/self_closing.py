"""What is closed at the end of a ``with`` block, whatever ends it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from radio.errors import RadioError, RadioNotSilentError

_logger = logging.getLogger(__name__)


class SelfClosing(ABC):
    """A context manager that is its own resource."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def silence_each(silencers: Iterable[Callable[[], None]]) -> None:
    """Call all of them, whatever another one says.

    Raises:
        RadioNotSilentError: of all radios that are not known to be silent. Other errors of radios
            are logged; anything else is raised when all have been called.
    """
    loud: list[str] = []
    other: Exception | None = None
    for silence in silencers:
        try:
            silence()
        except RadioNotSilentError as error:
            loud.append(str(error))
        except RadioError as error:
            _logger.warning("%s", error)
        except Exception as error:
            other = other or error
    if loud:
        raise RadioNotSilentError(" ".join(loud)) from other
    if other is not None:
        raise other
