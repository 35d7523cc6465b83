"""What a measurement of known numbers gives, and how far it may be from its formula."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from radio.errors import RadioConfigurationError
from radio.measurement.bench import HeldBench
from radio.metrics import nmse_db
from radio.units import db_from_power_ratio
from radio.waveforms import WaveformName


@dataclass(frozen=True, slots=True)
class Measurement:
    """Result of a measurement. Every dB is a power ratio.

    Attributes:
        source: of the transceivers.
        is_simulated: whether no hardware is behind them.
        waveform: its name.
        num_devices: K.
        num_scalars: Q, numbers of one payload.
        snr_db: one device at full power and unit gain over the noise, per sample; full power is
            full scale for the coherent waveform, and its back-off below it for the energy waveform.
        num_trials: trials asked for.
        num_silent_trials: trials in which every device was below min_gain; not part of the rest.
        mean_num_speaking: devices that spoke, averaged over the other trials.
        simulated_nmse_db: of the sum estimate over all trials; over radios, measured.
        predicted_nmse_db: from the formulas.
        relative_spread: standard deviation of the simulated squared error over its mean, predicted.
        deviation_std: simulated minus predicted squared error, in these standard deviations.
        deviation_limit_std: abs(deviation_std) beyond this means that formula and program disagree,
            with false-alarm probability at most alpha.
        airtime_s: frames or captures of one round, pilots included.
        wrong_majorities: where devices say signs, the share of sums whose sign was not the
            majority's, ties left out; None where they say numbers.
        erased_share: of digital packets, the share that could not be read; None for others.
        predicted_erased_share: by the formula, place and turn of the carrier being known.
    """

    source: str
    is_simulated: bool
    waveform: WaveformName
    num_devices: int
    num_scalars: int
    snr_db: float
    num_trials: int
    num_silent_trials: int
    mean_num_speaking: float
    simulated_nmse_db: float
    predicted_nmse_db: float
    relative_spread: float
    deviation_std: float
    deviation_limit_std: float
    airtime_s: float
    wrong_majorities: float | None = None
    erased_share: float | None = None
    predicted_erased_share: float | None = None


class Log:
    """What the trials gave, and what was predicted for them."""

    def __init__(self) -> None:
        self._estimates: list[float] = []
        self._truths: list[float] = []
        self._variances: list[float] = []
        self._num_speaking: list[int] = []

    def add(
        self,
        *,
        estimates: Iterable[float],
        truths: Iterable[float],
        variances: Iterable[float],
        num_speaking: int,
        err_together: bool = False,
    ) -> None:
        """One trial in which somebody spoke; ``err_together`` where one cause moves all numbers."""
        self._estimates += map(float, estimates)
        self._truths += map(float, truths)
        predicted = [float(variance) for variance in variances]
        self._variances += [sum(predicted)] if err_together else predicted
        self._num_speaking.append(num_speaking)

    def measurement(
        self,
        bench: HeldBench,
        *,
        waveform: WaveformName,
        num_scalars: int,
        airtime_s: float,
        erased_share: float | None = None,
        predicted_erased_share: float | None = None,
    ) -> Measurement:
        """Formula beside simulation.

        Raises:
            RadioConfigurationError: nobody spoke in any trial.
        """
        setting = bench.setting
        if not self._estimates:
            raise RadioConfigurationError(
                f"min_gain: at {setting.min_gain} every device was silent, or none was read, in "
                f"all {setting.num_trials} trials. Lower it, or raise the SNR."
            )
        variances = self._variances
        total_variance = sum(variances)
        total_error = float(np.sum(np.square(np.subtract(self._estimates, self._truths))))
        norm = math.sqrt(sum(variance**2 for variance in variances))
        spread = math.sqrt(2.0) * norm
        exponent = math.log(2.0 / setting.alpha)
        upper_limit = 2.0 * norm * math.sqrt(exponent) + 2.0 * max(variances) * exponent
        power = float(np.sum(np.square(self._truths)))
        return Measurement(
            source=bench.receiver.source,
            is_simulated=bench.receiver.is_simulated,
            waveform=waveform,
            num_devices=bench.num_devices,
            num_scalars=num_scalars,
            snr_db=float(setting.snr_db),
            num_trials=setting.num_trials,
            num_silent_trials=setting.num_trials - len(self._num_speaking),
            mean_num_speaking=float(np.mean(self._num_speaking)),
            simulated_nmse_db=nmse_db(self._estimates, self._truths),
            predicted_nmse_db=db_from_power_ratio(total_variance / power),
            relative_spread=spread / total_variance,
            deviation_std=(total_error - total_variance) / spread,
            deviation_limit_std=upper_limit / spread,
            airtime_s=airtime_s,
            wrong_majorities=self._wrong_majorities() if waveform.carries_signs else None,
            erased_share=erased_share,
            predicted_erased_share=predicted_erased_share,
        )

    def _wrong_majorities(self) -> float:
        truths = np.array(self._truths)
        estimates = np.array(self._estimates)[truths != 0.0]
        truths = truths[truths != 0.0]
        return float(np.mean(np.sign(estimates) != np.sign(truths))) if truths.size else 0.0
