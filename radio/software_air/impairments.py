"""What real radios do to a signal, in the one order in which it is done, switched on by name.

::

    device k    samples -> DAC -> mixer -> PA -> carrier -> delay -> path gain -+
                (bits)  (IQ, leakage)  (Rapp)  (ppm, drift,                     |
                                                linewidth)                      v
    receiver    samples <- ADC <- mixer <- carrier <-------- noise <-------- sum of all
                (bits, full scale) (IQ, DC)  (linewidth)    (AWGN)

Transmitter, full scale 1, x the samples:

    DAC      both parts rounded to 2^bits steps over -1..1, and held within
    mixer    x -> (1 + c)/2 x + (1 - conj(c))/2 conj(x) + leakage,   c = g exp(j phi), g in dB
    PA       x -> x / (1 + (abs(x) / saturation)^4)^(1/4)            (Rapp, smoothness 2)

Carrier beside the receiver's, phase psi of sample n of round t:

    f_k(t)   = (e_k + drift_k(t) - e_receiver) 1e-6 carrier_hz,  e uniform within +- crystal_ppm
    drift    = drift_ppm sin(2 pi (t / period_k + phase_k)), period 50 to 200 rounds
    psi(n)   = 2 pi f_k n / sample rate + Wiener process of 2 pi linewidth / sample rate a sample

One crystal makes a radio's carrier and its sampling clock, so x_k is heard at (1 + f_k / carrier) n
in place of n (`radio.software_air.resampling`): 20 ppm are 1.3 samples in 65,536.

Delay: uniform within 0..timing_offset_s for every frame that is sent to a position; a held burst is
heard from any sample on anyway. Path: devices in a geometric row of distances from the nearest to
``distance_ratio`` times as far lose 10 n log10(distance) dB, n the exponent; the mean of the power
gains is 1, and fading (`radio.software_air.channel_models`) comes on top. Receiver: noise, the
Wiener process of its own oscillator, mixer and DC offset, ADC, whose full scale stands above a
full-scale transmitter at unit gain.

The mixer leaks whether samples come or not; of a silent transmitter as a clean line, without phase
noise. What is random is drawn from the frame's generator, in
order of devices, so that a frame can be heard again.

Left out: memory of the amplifier, spurs, filters, quantisation of the gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from radio.arrays import BurstArray, Complex128Array, Float64Array
from radio.checks import check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.units import amplitude_ratio_from_db

_RAPP_SMOOTHNESS = 2.0
_DRIFT_PERIODS_ROUNDS = (50.0, 200.0)


@dataclass(frozen=True, slots=True)
class Impairments:
    """Which, and how much; the defaults switch everything off. Equations in the module.

    Attributes:
        crystal_ppm: largest error of a radio's carrier, parts per million; the receiver's too.
        drift_ppm: largest deviation from it as the devices warm up and cool down.
        linewidth_hz: of every oscillator, -3 dB to -3 dB.
        timing_offset_s: largest delay of a frame that is sent to a position, seconds.
        distance_ratio: farthest device over nearest, >= 1.
        path_loss_exponent: n; 2 in free space.
        dac_bits: of each part of a sample; 0 for no converter.
        pa_saturation_db: largest amplitude of the amplifier over full scale; infinite without.
        iq_gain_db: gain of one branch of a mixer over the other's, transmitters and receiver.
        iq_phase_deg: what the branches lack or exceed of a right angle, degrees.
        leakage_db: a transmitter's carrier over full scale, -inf without.
        dc_offset_db: the receiver's, over a full-scale transmitter at unit gain, -inf without.
        adc_bits: as dac_bits.
        adc_full_scale_db: over a full-scale transmitter at unit gain.

    Raises:
        RadioConfigurationError: a number that cannot be.
    """

    crystal_ppm: float = 0.0
    drift_ppm: float = 0.0
    linewidth_hz: float = 0.0
    timing_offset_s: float = 0.0
    distance_ratio: float = 1.0
    path_loss_exponent: float = 2.0
    dac_bits: int = 0
    pa_saturation_db: float = math.inf
    iq_gain_db: float = 0.0
    iq_phase_deg: float = 0.0
    leakage_db: float = -math.inf
    dc_offset_db: float = -math.inf
    adc_bits: int = 0
    adc_full_scale_db: float = 12.0

    def __post_init__(self) -> None:
        for name in ("crystal_ppm", "drift_ppm", "linewidth_hz", "timing_offset_s"):
            check_not_negative(name, getattr(self, name))
        check_positive("path_loss_exponent", self.path_loss_exponent)
        if not (math.isfinite(self.distance_ratio) and self.distance_ratio >= 1.0):
            raise RadioConfigurationError(
                f"distance_ratio: got {self.distance_ratio}, wanted a finite number >= 1."
            )
        for name in ("dac_bits", "adc_bits"):
            bits = check_integer(name, getattr(self, name), minimum=0)
            if bits == 1 or bits > 24:
                raise RadioConfigurationError(
                    f"{name}: got {bits}, wanted 2 to 24, or 0 for no converter."
                )
        for name, low, high in (
            ("iq_gain_db", -6.0, 6.0),
            ("iq_phase_deg", -45.0, 45.0),
            ("leakage_db", -math.inf, 0.0),
            ("dc_offset_db", -math.inf, 60.0),
            ("pa_saturation_db", -20.0, math.inf),
            ("adc_full_scale_db", -60.0, 60.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise RadioConfigurationError(f"{name}: got {value}, wanted {low} to {high}.")

    @property
    def tells_devices_apart(self) -> bool:
        """Whether a device's signal is more than one complex gain times the ideal one.

        Then a receiver with little noise of its own can find out who sent what.
        """
        return any(
            (
                self.crystal_ppm,
                self.drift_ppm,
                self.linewidth_hz,
                self.timing_offset_s,
                self.dac_bits,
                self.iq_gain_db,
                self.iq_phase_deg,
                math.isfinite(self.pa_saturation_db),
                math.isfinite(self.leakage_db),
            )
        )

    def largest_offset_hz(self, carrier_hz: float) -> float:
        """How far a device's carrier may lie from the receiver's, Hz."""
        return 1e-6 * self.largest_ppm * check_positive("carrier_hz", carrier_hz)

    @property
    def largest_ppm(self) -> float:
        """How far a device's carrier and clock may lie from the receiver's, parts per million."""
        return 2.0 * self.crystal_ppm + self.drift_ppm

    @property
    def path_spread_db(self) -> float:
        """What the farthest device loses more than the nearest."""
        return 10.0 * self.path_loss_exponent * math.log10(self.distance_ratio)

    def path_gains(self, num_devices: int) -> Float64Array:
        """Amplitude ratios [num_devices], of mean power 1; the first device is the nearest."""
        count = check_integer("num_devices", num_devices, minimum=1)
        power = 10.0 ** (-np.linspace(0.0, self.path_spread_db, count) / 10.0)
        gains: Float64Array = np.sqrt(power / power.mean())
        return gains

    def transmitted(self, samples: BurstArray) -> Complex128Array:
        """Samples as they leave the antenna: DAC, mixer, PA."""
        signal: Complex128Array = samples.astype(np.complex128)
        if self.dac_bits:
            signal = _converted(signal, self.dac_bits, 1.0)
        signal = self._mixed(signal)
        if math.isfinite(self.leakage_db):
            signal = signal + amplitude_ratio_from_db(self.leakage_db)
        if math.isfinite(self.pa_saturation_db):
            signal = _amplified(signal, amplitude_ratio_from_db(self.pa_saturation_db))
        return signal

    def received(self, signal: Complex128Array) -> Complex128Array:
        """What the receiver's converter makes of what its antenna gives it: mixer, DC, ADC."""
        signal = self._mixed(signal)
        if math.isfinite(self.dc_offset_db):
            signal = signal + amplitude_ratio_from_db(self.dc_offset_db)
        if self.adc_bits:
            full_scale = amplitude_ratio_from_db(self.adc_full_scale_db)
            signal = _converted(signal, self.adc_bits, full_scale)
        return signal

    def phase_noise(
        self, num_samples: int, sample_rate_hz: float, rng: np.random.Generator
    ) -> Complex128Array | None:
        """exp(j psi) of one oscillator's own wandering [num_samples]; None where it has none."""
        if self.linewidth_hz == 0.0:
            return None
        step = math.sqrt(2.0 * math.pi * self.linewidth_hz / sample_rate_hz)
        wandering: Complex128Array = np.exp(1j * np.cumsum(step * rng.standard_normal(num_samples)))
        return wandering

    def _mixed(self, signal: Complex128Array) -> Complex128Array:
        if self.iq_gain_db == 0.0 and self.iq_phase_deg == 0.0:
            return signal
        phase = math.radians(self.iq_phase_deg)
        ratio = amplitude_ratio_from_db(self.iq_gain_db) * complex(math.cos(phase), math.sin(phase))
        return (1 + ratio) / 2 * signal + (1 - ratio.conjugate()) / 2 * np.conj(signal)


class Crystals:
    """The carriers of one set of radios, from one seed.

    Args:
        impairments: how far off they may be.
        carrier_hz: the nominal carrier.
        num_devices: K.
        rng: draws errors, and periods and phases of the drift.
    """

    def __init__(
        self,
        impairments: Impairments,
        carrier_hz: float,
        num_devices: int,
        rng: np.random.Generator,
    ) -> None:
        count = check_integer("num_devices", num_devices, minimum=1)
        self._hz_per_ppm = 1e-6 * check_positive("carrier_hz", carrier_hz)
        self._drift_ppm = impairments.drift_ppm
        errors_ppm = impairments.crystal_ppm * rng.uniform(-1.0, 1.0, count + 1)
        self._errors_ppm = errors_ppm[1:] - errors_ppm[0]
        self._periods = rng.uniform(*_DRIFT_PERIODS_ROUNDS, count)
        self._phases = rng.random(count)

    def offsets_hz(self, round_index: int) -> Float64Array:
        """f_k of every device beside the receiver, in a round [num_devices]."""
        turns = round_index / self._periods + self._phases
        drift_ppm = self._drift_ppm * np.sin(2.0 * math.pi * turns)
        offsets: Float64Array = (self._errors_ppm + drift_ppm) * self._hz_per_ppm
        return offsets


def _converted(signal: Complex128Array, bits: int, full_scale: float) -> Complex128Array:
    """Both parts on a grid of 2^bits levels, zero among them; clipped at its ends."""
    levels = 2 ** (bits - 1)
    parts = np.round(signal.view(np.float64) * (levels / full_scale))
    np.clip(parts, -levels, levels - 1, out=parts)
    parts *= full_scale / levels
    return parts.view(np.complex128)


def _amplified(signal: Complex128Array, saturation: float) -> Complex128Array:
    power = 2.0 * _RAPP_SMOOTHNESS
    compression = (1.0 + (np.abs(signal) / saturation) ** power) ** (1.0 / power)
    result: Complex128Array = signal / compression
    return result


_DESK = Impairments(
    crystal_ppm=10.0,
    drift_ppm=0.5,
    linewidth_hz=10.0,
    timing_offset_s=2e-3,
    dac_bits=12,
    pa_saturation_db=6.0,
    iq_gain_db=0.05,
    iq_phase_deg=0.3,
    leakage_db=-50.0,
    dc_offset_db=-50.0,
    adc_bits=12,
)

IMPAIRMENTS: dict[str, Impairments] = {
    "ideal": Impairments(),
    "desk-cabled": _DESK,
    "pluto-stock": Impairments(
        crystal_ppm=10.0,
        drift_ppm=1.0,
        linewidth_hz=30.0,
        timing_offset_s=2e-3,
        distance_ratio=10.0**0.5,
        dac_bits=12,
        pa_saturation_db=3.0,
        iq_gain_db=0.1,
        iq_phase_deg=0.5,
        leakage_db=-40.0,
        dc_offset_db=-40.0,
        adc_bits=12,
    ),
    "worst": Impairments(
        crystal_ppm=11.0,
        drift_ppm=2.0,
        linewidth_hz=300.0,
        timing_offset_s=1e-2,
        distance_ratio=10.0,
        path_loss_exponent=2.0,
        dac_bits=8,
        pa_saturation_db=0.0,
        iq_gain_db=1.0,
        iq_phase_deg=5.0,
        leakage_db=-25.0,
        dc_offset_db=-25.0,
        adc_bits=8,
        adc_full_scale_db=6.0,
    ),
    "uncorrected": Impairments(crystal_ppm=25.0),
}
"""By name. Crystals of ``pluto-stock`` are after xo_correction; ``uncorrected`` is what the factory
promises. The other figures are assumptions of the size that data sheets of such radios state; none
was measured here."""


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
