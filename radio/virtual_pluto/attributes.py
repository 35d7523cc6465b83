"""Attributes as clients see them: text that is read, and text that is written and may be refused.

A refusal is an errno, as the kernel gives it. Ranges are those of the AD9363 in a Pluto.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field


class IioError(Exception):
    """An operation that the kernel would refuse.

    Args:
        code: a positive errno.
    """

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode.get(code, str(code)))
        self.code = code


class Attribute:
    """One line of text.

    Args:
        text: at first.
        accept: turns what a client writes into what it will read; None for what cannot be written.
        compute: where the text is not stored but found out.
        on_change: called after it was written.
    """

    def __init__(
        self,
        text: str = "",
        accept: Callable[[str], str] | None = None,
        compute: Callable[[], str] | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._text = text
        self._accept = accept
        self._compute = compute
        self._on_change = on_change

    def read(self) -> str:
        """What a client gets."""
        return self._text if self._compute is None else self._compute()

    def write(self, text: str) -> None:
        """What a client wants.

        Raises:
            IioError: EACCES for what cannot be written, EINVAL for what cannot be meant.
        """
        if self._accept is None:
            raise IioError(errno.EACCES)
        try:
            self._text = self._accept(text.strip("\0 \n\t"))
        except (ValueError, OverflowError):
            raise IioError(errno.EINVAL) from None
        if self._on_change is not None:
            self._on_change()

    def number(self) -> float:
        """Its leading number."""
        return float(self.read().split()[0])


Attributes = dict[str, Attribute]


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel of a device.

    Attributes:
        identifier: "voltage0".
        is_output: of the computer.
        own: attributes, by name.
        name: "TX_LO", "" for none.
        shared: attributes that all channels of its kind and direction have together: one file.
        scan_index: place in a sample; None for a channel without samples.
        scan_format: of those.
        attributes: its own and those it shares.
    """

    identifier: str
    is_output: bool
    own: InitVar[Attributes]
    name: str = ""
    shared: Attributes = field(default_factory=dict)
    scan_index: int | None = None
    scan_format: str = ""
    attributes: Attributes = field(init=False)

    def __post_init__(self, own: Attributes) -> None:
        """Put both kinds together."""
        object.__setattr__(self, "attributes", {**own, **self.shared})

    def file_name(self, attribute: str) -> str:
        """As below /sys/bus/iio."""
        direction = "out" if self.is_output else "in"
        if attribute in self.shared:
            return f"{direction}_{self.identifier.rstrip('0123456789')}_{attribute}"
        middle = f"{self.identifier}_{self.name}" if self.name else self.identifier
        return f"{direction}_{middle}_{attribute}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a context, and its three kinds of attributes beside those of its channels."""

    identifier: str
    name: str
    channels: Sequence[Channel]
    attributes: Attributes = field(default_factory=dict)
    debug: Attributes = field(default_factory=dict)
    buffer: Attributes = field(default_factory=dict)

    def channel(self, name: str, *, is_output: bool) -> Channel:
        """By identifier or name.

        Raises:
            IioError: there is none.
        """
        for channel in self.channels:
            if name in (channel.identifier, channel.name) and channel.is_output is is_output:
                return channel
        raise IioError(errno.ENXIO)


def fixed(text: str) -> Attribute:
    """What never changes."""
    return Attribute(text)


def anything(text: str) -> Attribute:
    """What is read as it was written, and changes nothing."""
    return Attribute(text, str)


def refused(code: int, accept: Callable[[str], str] | None = None) -> Attribute:
    """What cannot be read, and written only where something accepts it.

    Args:
        code: the errno of reading it.
        accept: as for `Attribute`.
    """

    def compute() -> str:
        raise IioError(code)

    return Attribute("", accept, compute)


def flag(text: str, on_change: Callable[[], None] | None = None) -> Attribute:
    """0 or 1."""
    words = {"0": "0", "n": "0", "false": "0", "1": "1", "y": "1", "true": "1"}

    def accept(value: str) -> str:
        try:
            return words[value.lower()]
        except KeyError:
            raise ValueError(value) from None

    return Attribute(text, accept, on_change=on_change)


def one_of(
    text: str, choices: Sequence[str], on_change: Callable[[], None] | None = None
) -> Attribute:
    """A word from a list."""

    def accept(value: str) -> str:
        if value not in choices:
            raise ValueError(value)
        return value

    return Attribute(text, accept, on_change=on_change)


def within(
    text: str,
    low: float,
    high: float,
    *,
    show: Callable[[float], str],
    on_change: Callable[[], None] | None = None,
) -> Attribute:
    """A number from a range, read back as the hardware rounds it."""

    def accept(value: str) -> str:
        number = float(value.split()[0]) if value else float("nan")
        if not low <= number <= high:  # not a number is not either
            raise ValueError(value)
        return show(number)

    return Attribute(text, accept, on_change=on_change)


def whole(number: float) -> str:
    """For `within`: the digits before the point."""
    return str(int(number))
