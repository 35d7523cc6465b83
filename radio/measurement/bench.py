"""The bench of a measurement: its setting, the radios on it, and a fresh channel for each trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from radio.arrays import Complex64Array, Complex128Array, Float64Array
from radio.checks import check_integer, check_positive, check_probability
from radio.errors import RadioConfigurationError
from radio.self_closing import SelfClosing
from radio.software_air.channel_models import ChannelModel
from radio.software_air.impairments import Crystals, Impairments
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.transceiver import Transceiver
from radio.units import power_ratio_from_db

TIMEOUT_S = 1.0

MIN_SNR_DB, MAX_SNR_DB = -100.0, 250.0

ALPHA = 1e-6
"""Probability that a correct formula is reported as a disagreement, unless told otherwise."""

_IDEAL = Impairments()


def _ignore(_: object) -> None:
    """Nobody wants to know."""


MAX_TRIALS = 10_000_000
"""At a millisecond or more each, hours."""
MAX_DEVICES = 4096
"""Of a software air, whose gains, crystals and transmitters are all held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What every measurement is told.

    Attributes:
        channel: gains, drawn anew for each trial, times the path gains of the impairments.
        snr_db: one device at full power and unit gain over the noise, per sample.
        num_trials: >= 2.
        seed: >= 0; equal seeds give equal results.
        min_gain: gain below which a device stays silent, where it is known; > 0.
        impairments: of the medium.
        impairments_name: for the source; empty says nothing.
        carrier_hz: nominal, of which crystals take their parts.
        alpha: probability that a correct formula is reported as a disagreement.
        on_trial: told before each trial how many are done.
        on_capture: given every capture of a payload.

    Raises:
        RadioConfigurationError: a value out of range.
    """

    channel: ChannelModel
    snr_db: float
    num_trials: int
    seed: int
    min_gain: float = 0.1
    impairments: Impairments = _IDEAL
    impairments_name: str = ""
    carrier_hz: float = 915e6
    alpha: float = ALPHA
    on_trial: Callable[[int], None] = _ignore
    on_capture: Callable[[Complex64Array], None] = _ignore

    def __post_init__(self) -> None:
        check_integer("num_trials", self.num_trials, minimum=2, maximum=MAX_TRIALS)
        check_integer("seed", self.seed, minimum=0)
        check_positive("min_gain", self.min_gain)
        check_positive("carrier_hz", self.carrier_hz)
        check_probability("alpha", self.alpha)
        if not MIN_SNR_DB <= self.snr_db <= MAX_SNR_DB:
            raise RadioConfigurationError(
                f"snr_db: got {self.snr_db}, wanted {MIN_SNR_DB:g} to {MAX_SNR_DB:g} dB: beyond "
                "that the numbers leave what float64 can tell from silence."
            )

    @property
    def largest_offset_hz(self) -> float:
        """How far a device's carrier may lie from the receiver's, Hz."""
        return self.impairments.largest_offset_hz(self.carrier_hz)


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial's channel.

    Attributes:
        index: its number.
        taps: true gains of the echoes [num_devices, num_taps]; of flat channels one.
        offsets_hz: carriers [num_devices].
    """

    index: int
    taps: Complex128Array
    offsets_hz: Float64Array

    @property
    def gains(self) -> Complex128Array:
        """What a signal of one frequency, the carrier's, meets [num_devices]."""
        return np.asarray(self.taps.sum(axis=1))


class HeldBench(Protocol):
    """Radios that hold and capture, simulated or not, and the setting of their measurement."""

    @property
    def setting(self) -> Setting:
        """What was asked for."""

    @property
    def num_devices(self) -> int:
        """K."""

    @property
    def devices(self) -> Sequence[Transceiver]:
        """That hold bursts."""

    @property
    def receiver(self) -> Transceiver:
        """That captures."""

    @property
    def radio_rng(self) -> np.random.Generator:
        """Draws the phases of bursts."""

    def capture(self, num_samples: int) -> Complex64Array:
        """What the receiver hears of what is held."""

    def draw_numbers(self, num_scalars: int, *, signs: bool = False) -> Float64Array:
        """Uniform on [-1, 1] [num_devices, num_scalars], or signs of that."""


def drawn(
    rng: np.random.Generator, num_devices: int, num_scalars: int, *, signs: bool
) -> Float64Array:
    """Uniform on [-1, 1], or only which way [num_devices, num_scalars]."""
    numbers = rng.uniform(-1.0, 1.0, (num_devices, num_scalars))
    return np.sign(numbers) if signs else numbers


class Bench(SelfClosing):
    """Devices and a receiver on a software medium. Closed as a context manager.

    Args:
        setting: of the measurement.
        num_devices: K.
        sample_rate_hz: of all radios.
        full_power: mean power of a device at full power, full scale being 1.
    """

    def __init__(
        self, setting: Setting, *, num_devices: int, sample_rate_hz: float, full_power: float = 1.0
    ) -> None:
        self.setting = setting
        self.num_devices = check_integer("num_devices", num_devices, minimum=1, maximum=MAX_DEVICES)
        self.noise_power = full_power * power_ratio_from_db(-setting.snr_db)
        self._gain_rng, self._noise_rng, self._number_rng, self.radio_rng = (
            np.random.default_rng(child) for child in np.random.SeedSequence(setting.seed).spawn(4)
        )
        names = (setting.channel.name, setting.impairments_name)
        self.medium = SoftwareMedium(
            num_devices=num_devices,
            sample_rate_hz=sample_rate_hz,
            noise_power=self.noise_power,
            noise_rng=self._noise_rng,
            channel_name="+".join(name for name in names if name),
            impairments=setting.impairments,
            carrier_hz=setting.carrier_hz,
        )
        self.devices = [LoopbackTransceiver(self.medium, k) for k in range(num_devices)]
        self.receiver = LoopbackTransceiver(self.medium, None)

    def trials(self) -> Iterator[Trial]:
        """One after the other, each with radios and channel of its own."""
        setting = self.setting
        path_gains = setting.impairments.path_gains(self.num_devices)
        for index in range(setting.num_trials):
            setting.on_trial(index)
            crystals = Crystals(
                setting.impairments, setting.carrier_hz, self.num_devices, self.radio_rng
            )
            trial = Trial(
                index=index,
                taps=path_gains[:, None]
                * setting.channel.taps(
                    self._gain_rng, self.num_devices, self.medium.sample_rate_hz
                ),
                offsets_hz=crystals.offsets_hz(index),
            )
            self.medium.set_carrier_offsets_hz(trial.offsets_hz)
            self.medium.begin_round(self._noise_rng)
            self.medium.set_gains(trial.taps)
            yield trial

    def draw_numbers(self, num_scalars: int, *, signs: bool = False) -> Float64Array:
        """Uniform on [-1, 1], or only which way [num_devices, num_scalars]."""
        return drawn(self._number_rng, self.num_devices, num_scalars, signs=signs)

    def capture(self, num_samples: int) -> Complex64Array:
        """What the receiver hears of what is held."""
        return self.receiver.capture(num_samples, timeout_s=TIMEOUT_S)

    def close(self) -> None:
        """Close all radios."""
        for transceiver in [*self.devices, self.receiver]:
            transceiver.close()
