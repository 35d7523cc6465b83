"""`OpenPluto`: a Pluto with pyadi-iio's radio on top, for whoever moves samples.

The only file that knows `adi`; it is imported when a radio is opened. How a radio falls silent is
none of its business (`radio.pluto.silence`): where a reply is no number pyadi hands over a list.

Source: the code of pyadi-iio 0.0.21.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib.metadata
import warnings
from typing import Any

from radio.errors import RadioUnavailableError
from radio.pluto.context import INSTALL, PlutoContext, binding

_STATUS_REGISTER = 0x80000088
_NO_REGISTER = {errno.ENOENT, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES}


def _vendor() -> Any:
    """The module `adi`, after `iio`, whose errors say more."""
    binding()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs, about their own syntax
            import adi
    except (ImportError, OSError) as error:
        raise RadioUnavailableError(
            f"pluto: the radio's libraries cannot be loaded: {error}. {INSTALL}"
        ) from error
    return adi


def describe_libraries() -> str:
    """What is installed, with versions, for `source`: what every sample passed through.

    Raises:
        RadioUnavailableError: something is missing or of a version that does not work.
    """
    _vendor()
    pyadi = importlib.metadata.version("pyadi-iio")
    major, minor = binding().version[:2]
    return f"pyadi-iio {pyadi}+libiio {major}.{minor}"


class OpenPluto(PlutoContext):
    """A context and pyadi's radio.

    Args:
        uri: see `PlutoContext`.

    Attributes:
        radio: pyadi's; all others are those of `PlutoContext`.

    Raises:
        RadioConfigurationError, RadioUnavailableError: see `PlutoContext`.
    """

    def __init__(self, uri: str) -> None:
        adi = _vendor()
        # pyadi says "No device found" whatever the reason, so it gets an open context.
        super().__init__(uri)
        self.radio: Any = adi.Pluto(uri_ctx=self.context)

    def let_go_of_buffers(self) -> None:
        """pyadi's, while their context lives: libiio crashes otherwise."""
        try:
            self.radio.tx_destroy_buffer()
        finally:
            self.radio.rx_destroy_buffer()

    def abandon(self) -> None:
        """Let a lost connection go, with everything that it had open."""
        with contextlib.suppress(Exception):
            self.let_go_of_buffers()
        self.radio = self.context = self.phy = self.dac = self.adc = None
        gc.collect()  # pyadi's objects know one another; at USB the context must be gone now

    @property
    def temperature_c(self) -> float:
        """The chip's temperature, not calibrated."""
        return float(self.phy.find_channel("temp0").attrs["input"].value) / 1e3

    def take_status(self, converter: Any, bit: int) -> bool:
        """Whether the converter's status bit was set; it is cleared. No, where there is none."""
        try:
            is_set = bool(converter.reg_read(_STATUS_REGISTER) & bit)
            if is_set:
                converter.reg_write(_STATUS_REGISTER, bit)
        except OSError as error:
            if error.errno not in _NO_REGISTER:
                raise
            return False
        return is_set
