"""[power.limits]: what a battery, a regulator or fairness allow, as a configuration says it."""

from __future__ import annotations

import math

import numpy as np

from radio.arrays import Float64Array
from server.config.section import Section
from server.errors import ConfigurationError
from server.power.limits import PowerLimits

_Each = float | tuple[float, ...] | None


class PowerLimitsSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits beside the converter's peak; each is one number, or one for every device.

    A device's energy in a round is the mean square of what it sends, over full scale, its number at
    its bound: a round at full scale is 1. Limits hold for every channel, whatever comes.

    Attributes:
        max_energy: of all rounds together: a battery, in rounds at full scale.
        max_mean_power_db: over all rounds, silent ones included, over full scale: 0 or less.
        max_duty: largest share of the rounds in which a device speaks, above 0 to 1.
        min_duty: smallest share, as far as its channel lets it be heard: fairness.
        max_peak_db: of a sample, over full scale, 0 or less: an EIRP cap.
    """

    max_energy: _Each = None
    max_mean_power_db: _Each = None
    max_duty: _Each = None
    min_duty: _Each = None
    max_peak_db: _Each = None

    @property
    def limits_anything(self) -> bool:
        """Whether any of them was set."""
        return self != PowerLimitsSection()

    def over(self, num_devices: int, num_rounds: int, max_power: float) -> PowerLimits:
        """For so many rounds.

        Args:
            num_devices: K.
            num_rounds: T.
            max_power: squared amplitude of full scale, as far as it is used.

        Raises:
            ConfigurationError: a value out of range, or not one for every device.
        """

        def each(name: str, default: float) -> Float64Array:
            value = getattr(self, name)
            values = np.asarray(default if value is None else value, dtype=np.float64)
            if values.shape not in ((), (num_devices,)):
                raise ConfigurationError(
                    f"power.limits.{name}: got {values.size} values, wanted one, or one for each "
                    f"of {num_devices} devices."
                )
            if np.isnan(values).any():
                raise ConfigurationError(f"power.limits.{name}: got {values}, wanted numbers.")
            return np.broadcast_to(values, (num_devices,)).copy()

        for name in ("max_mean_power_db", "max_peak_db"):
            if np.any(each(name, 0.0) > 0.0):
                raise ConfigurationError(
                    f"power.limits.{name}: got {getattr(self, name)}, wanted 0 dB over full scale "
                    "or less."
                )
        mean_power = np.power(10.0, each("max_mean_power_db", math.inf) / 10.0)
        max_energy = np.minimum(each("max_energy", math.inf), mean_power * num_rounds)
        max_duty, min_duty = each("max_duty", 1.0), each("min_duty", 0.0)
        peak_caps = max_power * np.power(10.0, each("max_peak_db", 0.0) / 10.0)
        try:
            return PowerLimits(max_energy, max_duty, min_duty, peak_caps)
        except ConfigurationError as error:
            raise ConfigurationError(f"power.limits: {error}") from error
