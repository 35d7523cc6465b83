"""What real radios do to a signal, switched on by name.

Carriers: every crystal is off by its own constant, uniform within +- crystal_ppm of the nominal
carrier; what counts is a device's carrier beside the receiver's,

    f_k = (e_k - e_receiver) 1e-6 carrier_hz,      so at most 2 crystal_ppm 1e-6 carrier_hz.

Path loss: devices stand at distances d_k in a geometric row, and free space takes 20 log10(d_k) dB;
the farthest device arrives path_loss_spread_db below the nearest, and the mean of the power gains
is 1. Fading (`radio.channel_models`) comes on top.

Left out, and modelled nowhere yet: drift of the crystals, phase noise, converters, amplifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radio.checks import Float64Array, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError


@dataclass(frozen=True, slots=True)
class Impairments:
    """Which, and how much; zero switches off.

    Attributes:
        crystal_ppm: largest error of a radio's carrier, parts per million; the receiver's too.
        path_loss_spread_db: farthest device below the nearest.

    Raises:
        RadioConfigurationError: a number below zero, or not finite.
    """

    crystal_ppm: float = 0.0
    path_loss_spread_db: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("crystal_ppm", self.crystal_ppm)
        check_not_negative("path_loss_spread_db", self.path_loss_spread_db)

    @property
    def tells_devices_apart(self) -> bool:
        """Whether more than one complex gain for a burst is a device's own."""
        return self.crystal_ppm > 0.0

    def largest_offset_hz(self, carrier_hz: float) -> float:
        """Of a device's carrier beside the receiver's."""
        return 2e-6 * self.crystal_ppm * check_positive("carrier_hz", carrier_hz)

    def carrier_offsets_hz(
        self, carrier_hz: float, num_devices: int, rng: np.random.Generator
    ) -> Float64Array:
        """f_k of one set of radios [num_devices]; see the module."""
        count = check_integer("num_devices", num_devices, minimum=1)
        check_positive("carrier_hz", carrier_hz)
        errors_ppm = self.crystal_ppm * rng.uniform(-1.0, 1.0, count + 1)
        offsets: Float64Array = (errors_ppm[1:] - errors_ppm[0]) * 1e-6 * carrier_hz
        return offsets

    def path_gains(self, num_devices: int) -> Float64Array:
        """Amplitude ratios [num_devices], of mean power 1; the first device is the nearest."""
        count = check_integer("num_devices", num_devices, minimum=1)
        loss_db = np.linspace(0.0, self.path_loss_spread_db, count)
        power = 10.0 ** (-loss_db / 10.0)
        gains: Float64Array = np.sqrt(power / power.mean())
        return gains


IMPAIRMENTS: dict[str, Impairments] = {
    "ideal": Impairments(),
    "pluto-stock": Impairments(crystal_ppm=10.0, path_loss_spread_db=10.0),
    "uncorrected": Impairments(crystal_ppm=25.0, path_loss_spread_db=10.0),
}
"""By name. ``pluto-stock`` is after xo_correction; ``uncorrected`` is as the factory promises."""


def impairments_from_name(name: str) -> Impairments:
    """The impairments called ``name``.

    Raises:
        RadioConfigurationError: there are none; the message lists the names.
    """
    try:
        return IMPAIRMENTS[name]
    except KeyError:
        raise RadioConfigurationError(
            f"impairments: got {name!r}, wanted one of {sorted(IMPAIRMENTS)}."
        ) from None
