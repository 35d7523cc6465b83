"""Which radios there are. A table of names; a driver is imported only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from radio.errors import RadioUnavailableError, did_you_mean
from radio.transceiver import Transceiver


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a transceiver class lives and what it needs.

    Attributes:
        module: dotted name, imported on demand.
        class_name: a subclass of Transceiver in it.
        install_hint: what to do if the import fails.
    """

    module: str
    class_name: str
    install_hint: str


BACKENDS: dict[str, Backend] = {
    "loopback": Backend(
        module="radio.software_air.loopback",
        class_name="LoopbackTransceiver",
        install_hint="It needs numpy alone; from pairzero's folder: pip install .",
    ),
    "pluto": Backend(
        module="radio.pluto.transceiver",
        class_name="PlutoTransceiver",
        install_hint="From pairzero's folder: pip install '.[pluto]'",
    ),
    "replay": Backend(
        module="radio.recordings.replay",
        class_name="ReplayTransceiver",
        install_hint="It needs numpy alone; from pairzero's folder: pip install .",
    ),
}


def resolve_backend(name: str) -> type[Transceiver]:
    """The transceiver class called ``name``; it is imported, nothing is opened.

    Raises:
        RadioUnavailableError: no such name (the message has the nearest one), or its driver cannot
            be imported (the message has what to install, the cause is chained).
    """
    backend = BACKENDS.get(name)
    if backend is None:
        raise RadioUnavailableError(
            f"backend: got {name!r}, wanted one of {sorted(BACKENDS)}."
            f"{did_you_mean(name, BACKENDS)}"
        )
    try:
        module = importlib.import_module(backend.module)
    except (ImportError, OSError) as error:
        # OSError: a Python binding that does not find its C library.
        raise RadioUnavailableError(
            f"backend {name!r} cannot be loaded: {error}. {backend.install_hint}"
        ) from error
    transceiver_class: type[Transceiver] = getattr(module, backend.class_name)
    return transceiver_class
