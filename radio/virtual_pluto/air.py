"""The air between virtual radios: what one sends, all others hear.

Amplitude 1 is full scale of a transmitter's converter at no attenuation, and of a receiver's at a
gain of 0 dB. A receiver hears, sample n at t = start + n / rate,

    r(t) = sum_k g_k a_k(t) exp(j psi_k(t)) x_k(c_k t) + w(t)
    psi_k' = 2 pi (carrier of k - carrier of the receiver) + Wiener process of both linewidths
    c_k    = clock of k / clock of the receiver (`radio.software_air.resampling`)

with g_k the path's gain, a_k what the transmitter's attenuator leaves, x_k the samples that its
mixer and amplifier make of what the converter gives them
(`radio.software_air.impairments.transmitted`) and w circular noise of power ``noise_power`` per
sample at the antenna. Gain, mixer, DC and converter of the receiver follow
(`radio.software_air.impairments.received`).

A carrier is its nominal frequency times what the crystal is off and what xo_correction makes up
for, and so is a sampling clock; crystals drift as they warm up. Radios of different sample rates,
or whose carriers are further apart than half of it, do not hear each other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from radio.arrays import Complex64Array, Complex128Array
from radio.checks import check_not_negative
from radio.errors import RadioConfigurationError
from radio.software_air.impairments import Impairments
from radio.software_air.phasors import turn, turns
from radio.software_air.resampling import resampled
from radio.units import amplitude_ratio_from_db, db_from_power_ratio
from radio.virtual_pluto.clock import Clock
from radio.virtual_pluto.timeline import Timeline

AGC_TARGET_DBFS = -12.0
"""Where an automatic gain puts the mean power."""

GAIN_RANGE_DB = (-3, 71)
NOMINAL_CRYSTAL_HZ = 40e6


@dataclass(frozen=True, slots=True)
class Tone:
    """One numerically controlled oscillator of a transmitter: amplitude cos(2 pi f t + phase)."""

    frequency_hz: float
    amplitude: float
    phase_rad: float
    is_quadrature: bool


@dataclass(frozen=True, slots=True)
class TransmitState:
    """How a transmitter is set.

    Attributes:
        amplitude: what the attenuator leaves; 0 if nothing is radiated at all.
        carrier_hz: as set; the crystal does the rest.
        trim: NOMINAL_CRYSTAL_HZ over xo_correction.
        phase_cycles: of the synthesizer, another one each time it is tuned.
        tones: what the converter gets while it has no samples.
    """

    amplitude: float = 0.0
    carrier_hz: float = 2.45e9
    trim: float = 1.0
    phase_cycles: float = 0.0
    tones: tuple[Tone, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiveState:
    """How a receiver is set.

    Attributes:
        gain_db: of the amplifiers; None where it sets itself.
        carrier_hz: as set.
        trim: as for a transmitter.
        phase_cycles: likewise.
        is_looped_back: hears its own samples, digitally, and no air.
        is_deaf: hears its own noise and nothing else.
    """

    gain_db: float | None = None
    carrier_hz: float = 2.4e9
    trim: float = 1.0
    phase_cycles: float = 0.0
    is_looped_back: bool = False
    is_deaf: bool = False


@dataclass(slots=True)
class Burst:
    """Samples on their way out: once, or again and again until ``end_s``."""

    start_s: float
    end_s: float
    rate_hz: float
    samples: Complex64Array
    analogue: Complex128Array

    def read(
        self, source: npt.NDArray[np.complexfloating], first: int, count: int, ratio: float = 1.0
    ) -> np.ndarray:
        """``count`` samples from position ``first`` of a clock on that is so much slower."""
        if ratio != 1.0:
            return resampled(source, first * ratio, ratio, count)
        offset = first % len(source)
        if offset + count <= len(source):
            return source[offset : offset + count]
        return np.resize(np.roll(source, -offset), count)


@dataclass(slots=True)
class Crystal:
    """How far off an oscillator is: its own error, and what warming up adds.

    Attributes:
        error_ppm: cold.
        warming_ppm: by the time it is warm.
        cold_c: degrees Celsius of the chip when it is switched on.
        warming_k: kelvins until it is warm.
        time_constant_s: of both.
    """

    error_ppm: float = 0.0
    warming_ppm: float = 0.0
    cold_c: float = 36.0
    warming_k: float = 12.0
    time_constant_s: float = 600.0

    def ratio(self, moment_s: float) -> float:
        """True over nominal frequency."""
        return 1.0 + 1e-6 * (self.error_ppm + self.warming_ppm * self._warmth(moment_s))

    def temperature_c(self, moment_s: float) -> float:
        """The chip's temperature."""
        return self.cold_c + self.warming_k * self._warmth(moment_s)

    def _warmth(self, moment_s: float) -> float:
        return -math.expm1(-moment_s / self.time_constant_s)


@dataclass(slots=True)
class Radio:
    """One radio on the air: a transmitter and a receiver on one crystal.

    Attributes:
        index: its place on the air.
        crystal: of both.
        impairments: of both chains.
        rate_hz: of both converters.
        sending: how the transmitter is set.
        hearing: how the receiver is set.
        bursts: on air, past ones as long as somebody may still hear them.
        unread_s: from when until when its open receive buffer holds or will hold blocks; nothing
            without one.
    """

    index: int
    crystal: Crystal
    impairments: Impairments
    rate_hz: float
    sending: Timeline[TransmitState] = field(default_factory=lambda: Timeline(TransmitState()))
    hearing: Timeline[ReceiveState] = field(default_factory=lambda: Timeline(ReceiveState()))
    bursts: list[Burst] = field(default_factory=list)
    unread_s: tuple[float, float] | None = None

    def mixed(self, samples: npt.NDArray[np.complexfloating]) -> Complex128Array:
        """Samples as they reach the attenuator."""
        return self.impairments.transmitted(samples.astype(np.complex64))

    def is_radiating(self) -> bool:
        """Whether anything, be it an unmodulated carrier, leaves the antenna port."""
        return self.sending.latest.amplitude > 0.0


class VirtualAir:
    """All radios, the paths between them, and one time.

    Args:
        clock: what time it is.
        noise_power: at every receiver's antenna, over full scale at a gain of 0 dB.
        seed: of noise, phases and phase noise.
    """

    def __init__(self, clock: Clock, *, noise_power: float, seed: int) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self._noise_power = check_not_negative("noise_power", noise_power)
        self._rng = np.random.default_rng(seed)
        self._radios: list[Radio] = []
        self._gains: dict[tuple[int, int], complex] = {}
        self._links: dict[tuple[int, int], _Link] = {}

    def add(self, crystal: Crystal, impairments: Impairments, rate_hz: float) -> Radio:
        """A further radio, which hears nobody yet."""
        radio = Radio(len(self._radios), crystal, impairments, rate_hz)
        self._radios.append(radio)
        return radio

    def connect(self, sender: Radio, receiver: Radio, gain: complex) -> None:
        """The path between two radios, one way.

        Raises:
            RadioConfigurationError: the gain is not finite.
        """
        if not (math.isfinite(gain.real) and math.isfinite(gain.imag)):
            raise RadioConfigurationError(f"path gain: got {gain}, wanted a finite number.")
        self._gains[sender.index, receiver.index] = gain

    def radios(self) -> Sequence[Radio]:
        """In the order in which they were added."""
        return tuple(self._radios)

    def converted(self, receiver: Radio, start_s: float, count: int) -> npt.NDArray[np.int16]:
        """What a receiver's converter makes of [start_s, start_s + count / rate).

        Returns:
            int16 [count, 2], in phase and quadrature, 12 bits each.
        """
        with self.lock:
            state = receiver.hearing.at(start_s)
            if state.is_looped_back:
                # The upper 12 of 16 bits, as they are; nothing rounds them.
                sent = self._own_samples(receiver, start_s, count).view(np.float64)
                return np.floor(sent.reshape(count, 2) * 2048.0).astype("<i2")
            else:
                signal = self._antenna(receiver, state, start_s, count)
                signal *= amplitude_ratio_from_db(self._gain_db(state, signal))
                signal = receiver.impairments.received(signal)
        parts = np.rint(signal.view(np.float64).reshape(count, 2) * 2048.0)
        return np.clip(parts, -2048, 2047).astype("<i2")

    def forget_unheard(self) -> None:
        """Drop what no open receive buffer can hold any more."""
        with self.lock:
            now_s = self.clock.now_s()
            unread = [r.unread_s for r in self._radios if r.unread_s is not None]
            needed_s = min([now_s, *(since_s for since_s, _ in unread)])

            def is_needed(burst: Burst) -> bool:
                waits = any(burst.start_s < end and burst.end_s > since for since, end in unread)
                return burst.end_s > now_s or waits

            for radio in self._radios:
                radio.sending.forget_before(needed_s)
                radio.hearing.forget_before(needed_s)
                radio.bursts = [burst for burst in radio.bursts if is_needed(burst)]

    def agc_gain_db(self, receiver: Radio, window_samples: int = 1024) -> float:
        """What the receiver's gain is now, if it sets itself."""
        with self.lock:
            now_s = self.clock.now_s()
            state = receiver.hearing.latest
            if state.gain_db is not None:
                return state.gain_db
            start_s = max(0.0, now_s - window_samples / receiver.rate_hz)
            return self._gain_db(state, self._antenna(receiver, state, start_s, window_samples))

    def _gain_db(self, state: ReceiveState, antenna: Complex128Array) -> float:
        if state.gain_db is not None:
            return state.gain_db
        power = float(np.mean(np.abs(antenna) ** 2))
        low, high = GAIN_RANGE_DB
        if power == 0.0:
            return high
        return float(min(max(math.floor(AGC_TARGET_DBFS - db_from_power_ratio(power)), low), high))

    def _antenna(
        self, receiver: Radio, state: ReceiveState, start_s: float, count: int
    ) -> Complex128Array:
        total = np.zeros(count, dtype=np.complex128)
        end_s = start_s + count / receiver.rate_hz
        for sender in self._radios:
            gain = self._gains.get((sender.index, receiver.index), 0j)
            if state.is_deaf or gain == 0 or sender.rate_hz != receiver.rate_hz:
                continue
            link = self._links.setdefault(
                (sender.index, receiver.index), _Link(cycles=self._rng.random())
            )
            for first_s, last_s, sending in sender.sending.between(start_s, end_s):
                first = math.ceil(_samples(first_s - start_s, receiver.rate_hz))
                last = min(count, math.ceil(_samples(last_s - start_s, receiver.rate_hz)))
                if first >= last:
                    continue
                moment_s = start_s + first / receiver.rate_hz
                offset_hz = _carrier(sender, sending, moment_s) - _carrier(
                    receiver, state, moment_s
                )
                link.advance_to(moment_s, offset_hz)
                if sending.amplitude > 0.0 and abs(offset_hz) <= receiver.rate_hz / 2:
                    clocks = _clock(sender, sending, moment_s) / _clock(receiver, state, moment_s)
                    heard = _emitted(sender, sending, moment_s, last - first, clocks)
                    heard *= turns(offset_hz / receiver.rate_hz, last - first)
                    heard *= (
                        gain
                        * sending.amplitude
                        * turn(link.cycles + sending.phase_cycles - state.phase_cycles)
                    )
                    self._wander(link, sender, receiver, heard)
                    total[first:last] += heard
                link.advance_to(start_s + last / receiver.rate_hz, offset_hz)
        if self._noise_power > 0.0:
            noise = self._rng.standard_normal(2 * count)
            noise *= math.sqrt(self._noise_power / 2.0)
            total += noise.view(np.complex128)
        return total

    def _wander(self, link: _Link, sender: Radio, receiver: Radio, heard: Complex128Array) -> None:
        linewidth_hz = sender.impairments.linewidth_hz + receiver.impairments.linewidth_hz
        if linewidth_hz == 0.0:
            return
        step = math.sqrt(2.0 * math.pi * linewidth_hz / receiver.rate_hz)
        walk = np.cumsum(step * self._rng.standard_normal(heard.size))
        heard *= np.exp(1j * walk)
        link.cycles += float(walk[-1]) / (2.0 * math.pi)

    def _own_samples(self, radio: Radio, start_s: float, count: int) -> Complex128Array:
        total = np.zeros(count, dtype=np.complex128)
        for burst, first, last, position in _parts(radio, start_s, count):
            total[first:last] = burst.read(burst.samples, position, last - first)
        return total


@dataclass(slots=True)
class _Link:
    """Where the carriers of two radios stand to each other, in turns."""

    cycles: float
    moment_s: float = 0.0

    def advance_to(self, moment_s: float, offset_hz: float) -> None:
        if moment_s > self.moment_s:
            turned = self.cycles + offset_hz * (moment_s - self.moment_s)
            self.cycles, self.moment_s = math.fmod(turned, 1.0), moment_s


def _carrier(radio: Radio, state: TransmitState | ReceiveState, moment_s: float) -> float:
    return state.carrier_hz * _clock(radio, state, moment_s)


def _clock(radio: Radio, state: TransmitState | ReceiveState, moment_s: float) -> float:
    """True over nominal, of everything that is made from the crystal."""
    return state.trim * radio.crystal.ratio(moment_s)


def _emitted(
    sender: Radio, state: TransmitState, start_s: float, count: int, clocks: float
) -> Complex128Array:
    """What reaches the attenuator: bursts, and between them tones and what the mixer leaks.

    ``clocks`` is the sender's over that of who hears it.
    """
    if state.tones:
        emitted = sender.mixed(_tones(state.tones, start_s, count, sender.rate_hz, clocks))
    else:
        idle = sender.mixed(np.zeros(1, dtype=np.complex64))
        emitted = np.full(count, idle[0])
    for burst, first, last, position in _parts(sender, start_s, count):
        emitted[first:last] = burst.read(burst.analogue, position, last - first, clocks)
    return emitted


def _parts(radio: Radio, start_s: float, count: int) -> list[tuple[Burst, int, int, int]]:
    """Bursts within ``count`` samples from ``start_s``: where they are, and where they begin."""
    parts = []
    for burst in radio.bursts:
        if burst.rate_hz != radio.rate_hz:
            continue
        begin = math.ceil(_samples(burst.start_s - start_s, radio.rate_hz))
        end_s = burst.end_s - start_s
        stop = count if math.isinf(end_s) else math.ceil(_samples(end_s, radio.rate_hz))
        first, last = max(begin, 0), min(stop, count)
        if first < last:
            parts.append((burst, first, last, first - begin))
    return parts


def _samples(duration_s: float, rate_hz: float) -> float:
    """In samples, whole where it is meant to be whole."""
    return round(duration_s * rate_hz, 3)


def _tones(
    tones: Sequence[Tone], start_s: float, count: int, rate_hz: float, clocks: float
) -> Complex128Array:
    moments = clocks * (start_s + np.arange(count) / rate_hz)
    total = np.zeros(count, dtype=np.complex128)
    for tone in tones:
        angle = 2.0 * math.pi * np.fmod(tone.frequency_hz * moments, 1.0) + tone.phase_rad
        total += tone.amplitude * np.cos(angle) * (1j if tone.is_quadrature else 1.0)
    return total
