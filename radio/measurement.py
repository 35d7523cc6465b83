"""Formula beside simulation: known scalars through the loopback, error held against prediction.

Model of one trial, K devices, full scale 1, unit mean power gain:

    gains h from the channel model; pilots at full scale; silent if abs(h_hat) < min_gain
    s_kq ~ U[-1, 1], Q numbers, everybody as loud as the weakest who speaks
    truth = sums of s_k over those who speak, estimate = what the receiver makes of them

The prediction for a trial of the coherent waveform is the covariance N0 / (2 L c^2) I +
`csi_covariance` of its Q errors, with eigenvalues var_i: the numbers of a trial share its gain
errors. For the energy waveform it is, for each number, `energy_error_model.sum_variance` with the
true carriers, and sum_k s_k^2 r_k^2, r_k the relative error of a device's power gain; that its
numbers share the gain errors is left out, so one number a trial is what the limit is exact for.

Over all trials the variances give an NMSE and, as errors are nearly Gaussian, the standard
deviation sqrt(2 sum var_i^2) of the simulated squared error. How far the two may be apart follows
from Laurent and Massart (2000, Ann. Statist. 28(5), lemma 1): with a = [var_i] and x = ln(2/alpha),
the squared error exceeds its mean by more than 2 norm(a) sqrt(x) + 2 max(a) x, or falls short by
more than 2 norm(a) sqrt(x), with probability at most alpha in all.

Left out of the prediction: rounding to complex64, which shows above an SNR of about 120 dB; terms
of second order in the gain error, which show below about -10 dB; every impairment but carriers and
path loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from radio.calibration import MAX_RELATIVE_ERROR, Moment, calibrate
from radio.channel_models import ChannelModel
from radio.checks import Float64Array, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.impairments import Crystals, Impairments
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from radio.metrics import nmse_db
from radio.units import db_from_power_ratio, power_ratio_from_db
from radio.waveforms import WaveformName
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import BandEnergies, EnergyWaveform
from radio.waveforms.energy_error_model import sum_variance
from radio.waveforms.error_model import csi_covariance, receiver_noise_std

SAMPLE_RATE_HZ = 1e6
"""Of the simulated radios. One sample is one symbol, so only the airtime depends on it."""

TIMEOUT_S = 1.0

MIN_SNR_DB, MAX_SNR_DB = -100.0, 250.0

_IDEAL = Impairments()

ALPHA = 1e-6
"""Probability that a correct formula is reported as a disagreement, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Result of a measurement. Every dB is a power ratio.

    Attributes:
        source: of the transceivers; says that this is a simulation.
        waveform: its name.
        num_devices: K.
        num_scalars: Q, numbers of one payload.
        snr_db: one device at full power and unit gain over the noise, per sample; full power is
            full scale for the coherent waveform, and its back-off below it for the energy waveform.
        num_trials: trials asked for.
        num_silent_trials: trials in which every device was below min_gain; not part of the rest.
        mean_num_speaking: devices that spoke, averaged over the other trials.
        simulated_nmse_db: of the sum estimate over all trials.
        predicted_nmse_db: from the formulas.
        relative_spread: standard deviation of the simulated squared error over its mean, predicted.
        deviation_std: simulated minus predicted squared error, in these standard deviations.
        deviation_limit_std: abs(deviation_std) beyond this means that formula and program disagree,
            with false-alarm probability at most alpha.
        airtime_s: frames or captures of one round, pilots included.
    """

    source: str
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


def measure_loopback(
    *,
    waveform: CoherentWaveform,
    channel: ChannelModel,
    snr_db: float,
    num_trials: int,
    seed: int,
    min_gain: float = 0.1,
    impairments: Impairments = _IDEAL,
    impairments_name: str = "",
    carrier_hz: float = 915e6,
    alpha: float = ALPHA,
) -> Measurement:
    """Send known scalars through a software medium, num_trials times.

    Args:
        waveform: frame lengths; its num_devices is K, its num_scalars Q.
        channel: gains, drawn anew for each trial.
        snr_db: MIN_SNR_DB to MAX_SNR_DB; noise_power = 10^(-snr_db / 10).
        num_trials: >= 2.
        seed: >= 0; equal seeds give equal results.
        min_gain: abs(h_hat) below which a device stays silent, > 0.
        impairments: of the medium; what the prediction leaves out.
        impairments_name: for the source.
        carrier_hz: nominal, of which crystals take their parts.
        alpha: probability that a correct formula is reported as a disagreement.

    Raises:
        RadioConfigurationError: an argument out of range, or all devices silent in all trials.
    """
    trials = _check_request(num_trials, seed, min_gain, snr_db)
    gain_rng, noise_rng, scalar_rng, radio_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    num_devices = waveform.num_devices
    path_gains = impairments.path_gains(num_devices)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=SAMPLE_RATE_HZ,
        noise_power=power_ratio_from_db(-snr_db),
        noise_rng=noise_rng,
        channel_name=_channel_name(channel, impairments_name),
        impairments=impairments,
    )
    devices = [LoopbackTransceiver(medium, index) for index in range(num_devices)]
    receiver = LoopbackTransceiver(medium, None)
    log = _Log()
    for trial in range(trials):
        crystals = Crystals(impairments, carrier_hz, num_devices, radio_rng)
        medium.set_carrier_offsets_hz(crystals.offsets_hz(trial))
        medium.begin_round(noise_rng)
        medium.set_gains(channel.gains(gain_rng, num_devices) * path_gains)
        scalars = scalar_rng.uniform(-1.0, 1.0, (num_devices, waveform.num_scalars))
        for index, device in enumerate(devices):
            pilot, offset = waveform.sounding_burst(index, device.max_amplitude)
            device.transmit(pilot, start_sample=offset)
        sounding = receiver.receive(waveform.sounding_samples, start_sample=0, timeout_s=TIMEOUT_S)
        channel_estimate = waveform.estimate_gains(sounding, devices[0].max_amplitude)
        gains = channel_estimate.gains
        speaking = [index for index in range(num_devices) if abs(gains[index]) >= min_gain]
        if not speaking:
            continue
        receive_scale = float(np.abs(gains[speaking]).min())
        payload_start = waveform.sounding_samples
        for index in speaking:
            tx_gain = receive_scale / complex(gains[index])
            burst = waveform.modulate(scalars[index], tx_gain)
            devices[index].transmit(
                burst, start_sample=payload_start + waveform.payload_offset_samples
            )
        payload = receiver.receive(
            waveform.payload_samples, start_sample=payload_start, timeout_s=TIMEOUT_S
        )
        reception = waveform.demodulate(payload, receive_scale)
        # The prediction uses the true noise power: measured power would follow the simulation.
        noise_std = receiver_noise_std(medium.noise_power, waveform.payload_symbols, receive_scale)
        error_variance = medium.noise_power / waveform.pilot_symbols
        covariance = csi_covariance(scalars[speaking], gains[speaking], error_variance)
        log.add(
            estimates=reception.sum_estimates,
            truths=scalars[speaking].sum(axis=0),
            variances=noise_std**2 + np.linalg.eigvalsh(covariance),
            num_speaking=len(speaking),
        )
    for transceiver in [*devices, receiver]:
        transceiver.close()
    return log.measurement(
        source=receiver.source,
        waveform=WaveformName.COHERENT,
        num_devices=num_devices,
        num_scalars=waveform.num_scalars,
        snr_db=snr_db,
        num_trials=trials,
        min_gain=min_gain,
        alpha=alpha,
        airtime_s=waveform.airtime_s(SAMPLE_RATE_HZ),
    )


def measure_energy(
    *,
    waveform: EnergyWaveform,
    impairments: Impairments,
    channel: ChannelModel,
    num_devices: int,
    snr_db: float,
    num_trials: int,
    seed: int,
    num_scalars: int = 1,
    carrier_hz: float = 915e6,
    min_gain: float = 0.1,
    calibration_error_db: float | None = None,
    impairments_name: str = "",
    alpha: float = ALPHA,
) -> Measurement:
    """Hold known numbers on a software medium, num_trials times, with radios drawn anew.

    Args:
        waveform: bands and plateau.
        impairments: of the medium.
        channel: gains, times the path gains of the impairments.
        num_devices: K.
        snr_db: of a device at full power, as `Measurement` says.
        num_trials: >= 2.
        seed: >= 0.
        num_scalars: Q, plateaus of a trial.
        carrier_hz: nominal.
        min_gain: abs(h_hat) below which a device stays silent, > 0.
        calibration_error_db: standard deviation of the power gains that devices are told, 0 for
            the true ones; None measures them from pilots.
        impairments_name: for the source.
        alpha: probability that a correct formula is reported as a disagreement.

    Raises:
        RadioConfigurationError: an argument out of range, carriers beyond the guards, or all
            devices silent in all trials.
    """
    trials = _check_request(num_trials, seed, min_gain, snr_db)
    check_integer("num_scalars", num_scalars, minimum=1)
    waveform.check_offset(impairments.largest_offset_hz(carrier_hz))
    if calibration_error_db is not None:
        check_not_negative("calibration_error_db", calibration_error_db)
    gain_rng, noise_rng, scalar_rng, radio_rng = (
        np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)
    )
    full_power = waveform.full_power_amplitude**2
    noise_power = full_power * power_ratio_from_db(-snr_db)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=waveform.sample_rate_hz,
        noise_power=noise_power,
        noise_rng=noise_rng,
        channel_name=_channel_name(channel, impairments_name),
        impairments=impairments,
    )
    devices = [LoopbackTransceiver(medium, index) for index in range(num_devices)]
    receiver = LoopbackTransceiver(medium, None)

    def listen() -> BandEnergies:
        return waveform.energies(receiver.capture(waveform.plateau_samples, timeout_s=TIMEOUT_S))

    log = _Log()
    for trial in range(trials):
        crystals = Crystals(impairments, carrier_hz, num_devices, radio_rng)
        offsets_hz = crystals.offsets_hz(trial)
        medium.set_carrier_offsets_hz(offsets_hz)
        medium.begin_round(noise_rng)
        gains = channel.gains(gain_rng, num_devices) * impairments.path_gains(num_devices)
        medium.set_gains(gains)
        if calibration_error_db is None:
            known, errors = _gains_from_pilots(waveform, devices, listen, radio_rng)
        else:
            known, errors = _gains_as_told(np.abs(gains), calibration_error_db, radio_rng)
        speaking = np.flatnonzero((known.min(axis=1) >= min_gain) & (errors <= MAX_RELATIVE_ERROR))
        if speaking.size == 0:
            continue
        level = known[speaking].min()
        arrival_power = level**2 * full_power
        silence = listen()
        estimates, truths, variances = [], [], []
        for _ in range(num_scalars):
            shares = scalar_rng.uniform(-1.0, 1.0, num_devices)
            for k in speaking:
                a, b = np.minimum(level / known[k], 1.0).tolist()
                devices[k].hold(waveform.burst(float(shares[k]), (a, b), radio_rng))
            estimates.append(
                waveform.estimate_sum(listen(), silence, arrival_power, int(speaking.size))
            )
            own = shares[speaking]
            truths.append(own.sum())
            variances.append(
                sum_variance(
                    waveform,
                    own,
                    offsets_hz[speaking],
                    noise_power=noise_power,
                    arrival_power=arrival_power,
                )
                + float(np.sum((own * errors[speaking]) ** 2))
            )
        for k in speaking:
            devices[k].fall_silent()
        log.add(
            estimates=estimates,
            truths=truths,
            variances=variances,
            num_speaking=int(speaking.size),
        )
    for transceiver in [*devices, receiver]:
        transceiver.close()
    captures = waveform.captures_of_round(num_scalars)
    if calibration_error_db is None:
        captures += waveform.captures_of_calibration(num_devices)
    return log.measurement(
        source=receiver.source,
        waveform=WaveformName.ENERGY,
        num_devices=num_devices,
        num_scalars=num_scalars,
        snr_db=snr_db,
        num_trials=trials,
        min_gain=min_gain,
        alpha=alpha,
        airtime_s=captures * waveform.plateau_s,
    )


def _gains_from_pilots(
    waveform: EnergyWaveform,
    devices: Sequence[LoopbackTransceiver],
    listen: Callable[[], BandEnergies],
    rng: np.random.Generator,
) -> tuple[Float64Array, Float64Array]:
    """Amplitude gains [K, 2] and relative errors of the power gains [K], the worse band's."""
    silence, pilots = listen(), {}
    for index, device in enumerate(devices):
        device.hold(waveform.pilot(1.0, rng))
        pilots[index] = listen()
        device.fall_silent()
    calibration = calibrate(
        waveform,
        num_devices=len(devices),
        silence=silence,
        pilots=pilots,
        amplitude=1.0,
        made=Moment(0, 0.0),
    )
    return np.sqrt(calibration.power_gains), calibration.relative_errors.max(axis=1)


def _gains_as_told(
    gains: Float64Array, error_db: float, rng: np.random.Generator
) -> tuple[Float64Array, Float64Array]:
    """The true ones, wrong by a Gaussian number of dB in both bands; E[(10^(x/10) - 1)^2]."""
    told = gains * 10.0 ** (error_db * rng.standard_normal(len(gains)) / 20.0)
    variance = (error_db * math.log(10.0) / 10.0) ** 2
    square = math.exp(2.0 * variance) - 2.0 * math.exp(variance / 2.0) + 1.0
    return np.stack([told, told], axis=1), np.full(len(gains), math.sqrt(square))


def _channel_name(channel: ChannelModel, impairments_name: str) -> str:
    return "+".join(name for name in (channel.name, impairments_name) if name)


def _check_request(num_trials: int, seed: int, min_gain: float, snr_db: float) -> int:
    trials = check_integer("num_trials", num_trials, minimum=2)
    check_integer("seed", seed, minimum=0)
    check_positive("min_gain", min_gain)
    if not MIN_SNR_DB <= snr_db <= MAX_SNR_DB:
        raise RadioConfigurationError(
            f"snr_db: got {snr_db}, wanted {MIN_SNR_DB:g} to {MAX_SNR_DB:g} dB: beyond that the "
            "numbers leave what float64 can tell from silence."
        )
    return trials


class _Log:
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
    ) -> None:
        """One trial in which somebody spoke."""
        self._estimates += map(float, estimates)
        self._truths += map(float, truths)
        self._variances += map(float, variances)
        self._num_speaking.append(num_speaking)

    def measurement(
        self,
        *,
        source: str,
        waveform: WaveformName,
        num_devices: int,
        num_scalars: int,
        snr_db: float,
        num_trials: int,
        min_gain: float,
        alpha: float,
        airtime_s: float,
    ) -> Measurement:
        """Formula beside simulation."""
        if not self._estimates:
            raise RadioConfigurationError(
                f"min_gain: at {min_gain} every device was silent in all {num_trials} trials. "
                "Lower it."
            )
        variances = self._variances
        total_variance = sum(variances)
        total_error = float(np.sum(np.square(np.subtract(self._estimates, self._truths))))
        norm = math.sqrt(sum(variance**2 for variance in variances))
        spread = math.sqrt(2.0) * norm
        exponent = math.log(2.0 / alpha)
        upper_limit = 2.0 * norm * math.sqrt(exponent) + 2.0 * max(variances) * exponent
        power = float(np.sum(np.square(self._truths)))
        return Measurement(
            source=source,
            waveform=waveform,
            num_devices=num_devices,
            num_scalars=num_scalars,
            snr_db=float(snr_db),
            num_trials=num_trials,
            num_silent_trials=num_trials - len(self._num_speaking),
            mean_num_speaking=float(np.mean(self._num_speaking)),
            simulated_nmse_db=nmse_db(self._estimates, self._truths),
            predicted_nmse_db=db_from_power_ratio(total_variance / power),
            relative_spread=spread / total_variance,
            deviation_std=(total_error - total_variance) / spread,
            deviation_limit_std=upper_limit / spread,
            airtime_s=airtime_s,
        )
