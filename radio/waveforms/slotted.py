"""A digital packet per device, one device after another: what over-the-air sums are held against.

A device quantises its Q numbers, shares s_q of the largest, to ``bits`` each, and repeats one
packet without end while the receiver captures two periods anywhere inside::

    | preamble, 64 symbols | number 0 | number 1 | ... | number Q-1 | CRC-32 |      and again

    integer_q = round(s_q (2^(bits-1) - 1)),         a share beyond -1..1 is sent as its end

Differential binary phase shift keying: a 1 turns the phase by half a turn. A symbol is a rectangle
of ``samples_per_symbol`` samples, shifted ``centre_hz`` above the carrier, away from its leakage.
The receiver shifts back, averages over symbols (m) and takes phase steps d[n] = m[n + L]
conj(m[n]); with c the steps of the preamble, its place and the turn of the carrier per symbol are

    place = argmax_n abs(sum_i c_i d[n + i L]),      2 pi f L / rate = angle of that sum

and the bits are the signs of the steps that follow, turned back. Where the clocks differ, the
places of later steps slip; of every slip a packet may have, half a sample apart, that one is taken
under which the steps, turned back, lie farthest from zero in all. The CRC covers the bits and who
sent them in which round: what does not fit is an *erasure*, reported and never guessed.

With Es/N0 = L abs(h)^2 A^2 / N0 a bit is wrong with probability 1/2 exp(-Es/N0), so a packet of B
bits is erased with 1 - (1 - 1/2 exp(-Es/N0))^B, place and turn being known; rounding adds an error
of variance 1 / (12 (2^(bits-1) - 1)^2) to a share.

Left out: what an offset takes off a rectangle's average (-1.9 dB at 0.36 of a symbol rate).
"""

from __future__ import annotations

import functools
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from radio.arrays import BoolArray, Complex64Array, Complex128Array
from radio.checks import check_all_finite, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError

PREAMBLE_SYMBOLS = 64
CRC_BITS = 32
MAX_NUMBERS = 256
MAX_CLOCK_PPM = 60.0
"""Of a device's sampling clock beside the receiver's: 25 ppm at both ends, and warming up."""

_SLIPS_PER_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class SlottedWaveform:
    """Packets and how to read them.

    Guarantees: pure, no state; constant amplitude; what `demodulate` returns passed its checksum,
    which a capture without that packet does with probability 2^-32.

    Attributes:
        num_scalars: Q.
        sample_rate_hz: of both ends.
        samples_per_symbol: L.
        centre_hz: of the spectrum above the carrier; a multiple of the symbol rate, whose average
            the leakage of a carrier falls out of.
        bits: of a number.
        max_offset_hz: largest carrier offset between a device and the receiver.

    Raises:
        RadioConfigurationError: numbers that do not fit together.
    """

    num_scalars: int
    sample_rate_hz: float = 1e6
    samples_per_symbol: int = 8
    centre_hz: float = 250e3
    bits: int = 16
    max_offset_hz: float = 46e3

    def __post_init__(self) -> None:
        check_integer("num_scalars", self.num_scalars, minimum=1)
        check_positive("sample_rate_hz", self.sample_rate_hz)
        check_integer("samples_per_symbol", self.samples_per_symbol, minimum=4)
        check_integer("bits", self.bits, minimum=2)
        check_not_negative("max_offset_hz", self.max_offset_hz)
        if self.num_scalars > MAX_NUMBERS or self.bits > 32:
            raise RadioConfigurationError(
                f"packet: got {self.num_scalars} numbers of {self.bits} bits, wanted at most "
                f"{MAX_NUMBERS} of 32."
            )
        rate_hz = self.sample_rate_hz / self.samples_per_symbol
        if self.max_offset_hz >= rate_hz / 2:
            raise RadioConfigurationError(
                f"max_offset_hz: got {self.max_offset_hz:g}, wanted below half of the symbol rate, "
                f"{rate_hz / 2:g}: a turn would be taken for another."
            )
        if not rate_hz <= self.centre_hz <= self.sample_rate_hz / 2 - rate_hz:
            raise RadioConfigurationError(
                f"centre_hz: got {self.centre_hz:g}, wanted {rate_hz:g} to "
                f"{self.sample_rate_hz / 2 - rate_hz:g}, a symbol rate from the carrier and from "
                "the end of the spectrum."
            )

    @property
    def num_bits(self) -> int:
        """B, those of the numbers and of the checksum."""
        return self.num_scalars * self.bits + CRC_BITS

    @property
    def num_symbols(self) -> int:
        """Symbols of a packet."""
        return PREAMBLE_SYMBOLS + self.num_bits

    @property
    def packet_samples(self) -> int:
        """The period of what a device holds."""
        return self.num_symbols * self.samples_per_symbol

    @property
    def max_slip_samples(self) -> int:
        """How far a packet's end may slip, where the clocks differ most."""
        return math.ceil(1e-6 * MAX_CLOCK_PPM * self.packet_samples)

    @property
    def capture_samples(self) -> int:
        """Two periods and a slip, in which one packet lies whole wherever they begin."""
        return 2 * (self.packet_samples + self.max_slip_samples)

    @property
    def airtime_s(self) -> float:
        """How long the capture of one device takes."""
        return self.capture_samples / self.sample_rate_hz

    def airtime_of_round_s(self, num_devices: int) -> float:
        """How long the captures of a round take: one for each device."""
        return num_devices * self.airtime_s

    @property
    def largest_integer(self) -> int:
        """That a share of 1 is."""
        return int(2 ** (self.bits - 1) - 1)

    def check_offset(self, offset_hz: float) -> None:
        """Return if a carrier that far from the receiver's can be read.

        Raises:
            RadioConfigurationError: it cannot.
        """
        if not abs(offset_hz) <= self.max_offset_hz:
            raise RadioConfigurationError(
                f"carrier offset: up to {offset_hz:g} Hz, packets are read within "
                f"{self.max_offset_hz:g} Hz. Correct the crystals (xo_correction), or use a lower "
                "carrier frequency."
            )

    def check_clock(self, clock_ppm: float) -> None:
        """Return if packets of a clock that far from the receiver's can be read.

        Raises:
            RadioConfigurationError: they cannot.
        """
        if not abs(clock_ppm) <= MAX_CLOCK_PPM:
            raise RadioConfigurationError(
                f"sampling clock: up to {clock_ppm:g} ppm, packets are read within "
                f"{MAX_CLOCK_PPM:g} ppm. Correct the crystals (xo_correction)."
            )

    def check_can_be_read(self, sample_to_noise: float) -> None:
        """Return if a packet through unit gain would be read now and then.

        Raises:
            RadioConfigurationError: 99 of 100 would be erased.
        """
        erased = self.erased_share(sample_to_noise)
        if erased > 0.99:
            raise RadioConfigurationError(
                f"at this noise {erased:.2%} of the packets would be erased: nobody would be "
                "heard. Raise the SNR, or send fewer numbers a round."
            )

    def bit_error_probability(self, symbol_to_noise: float) -> float:
        """1/2 exp(-Es/N0), as power ratio."""
        return 0.5 * math.exp(-check_not_negative("symbol_to_noise", symbol_to_noise))

    def erasure_probability(self, symbol_to_noise: float) -> float:
        """The probability that a packet cannot be read; see the module."""
        right = 1.0 - self.bit_error_probability(symbol_to_noise)
        return 1.0 - right**self.num_bits

    def erased_share(self, sample_to_noise: float) -> float:
        """Erasures over packets that arrive with abs(h)^2 A^2 / N0 per sample."""
        return self.erasure_probability(self.samples_per_symbol * sample_to_noise)

    def modulate(
        self, shares: Sequence[float], amplitude: float, *, sender: int, round_index: int
    ) -> Complex64Array:
        """The packet, to be held; every sample has the same amplitude.

        Args:
            shares: s, numbers over the largest [Q].
            amplitude: over full scale, 0 to 1.
            sender: who the checksum says it is from.
            round_index: and when.

        Raises:
            RadioConfigurationError: an argument out of range.
        """
        if not 0.0 <= amplitude <= 1.0:
            raise RadioConfigurationError(f"amplitude: got {amplitude}, wanted 0 to 1.")
        bits = _bits_of(self._quantised(shares), self.bits)
        checksum = _bits_of([_checksum(bits, sender, round_index)], CRC_BITS)
        steps = np.concatenate([_preamble_steps(), bits, checksum])
        # The first symbol begins the phase, every step turns it or does not.
        symbols = np.concatenate([[1.0], np.where(steps, -1.0, 1.0)]).cumprod()[: self.num_symbols]
        samples = np.repeat(symbols, self.samples_per_symbol) * self._carrier(self.packet_samples)
        return (amplitude * samples).astype(np.complex64)

    def _quantised(self, shares: Sequence[float]) -> list[int]:
        if len(shares) != self.num_scalars:
            raise RadioConfigurationError(
                f"packet: got {len(shares)} numbers, wanted {self.num_scalars}."
            )
        for share in shares:
            if not math.isfinite(share):
                raise RadioConfigurationError(
                    f"number: got {share}, wanted a finite one. A device whose scalar is not "
                    "finite stays silent this round."
                )
        return [round(max(-1.0, min(1.0, share)) * self.largest_integer) for share in shares]

    def demodulate(
        self, capture: npt.NDArray[np.complex64], *, sender: int, round_index: int
    ) -> tuple[float, ...] | None:
        """The shares of a packet [Q], or None where the checksum does not fit: an erasure.

        Args:
            capture: of `capture_samples`, from anywhere in the plateau.
            sender: from whom the packet must be.
            round_index: and of which round.

        Raises:
            RadioConfigurationError: another length, or a sample that is not finite.
        """
        bits = self.constellation(capture)[PREAMBLE_SYMBOLS - 1 :].real < 0.0
        numbers, checksum = bits[:-CRC_BITS], bits[-CRC_BITS:]
        if _integers_of(checksum, CRC_BITS, signed=False) != [
            _checksum(numbers, sender, round_index)
        ]:
            return None
        integers = _integers_of(numbers, self.bits, signed=True)
        return tuple(integer / self.largest_integer for integer in integers)

    def constellation(self, capture: npt.NDArray[np.complex64]) -> Complex128Array:
        """The phase steps of a whole packet, preamble first, the carrier's turn taken off.

        Left of zero is a 1.

        Raises:
            RadioConfigurationError: as `demodulate`.
        """
        if capture.shape != (self.capture_samples,):
            raise RadioConfigurationError(
                f"capture: got shape {capture.shape}, wanted ({self.capture_samples},), two "
                "periods of a packet."
            )
        check_all_finite("capture", capture)
        steps = self._phase_steps(capture)
        first, turn = self._find_preamble(steps)
        return self._follow(steps * turn.conjugate(), first)

    def _phase_steps(self, capture: npt.NDArray[np.complex64]) -> Complex128Array:
        """d, one for each sample from which a symbol and its successor can be averaged."""
        shifted = capture * self._carrier(capture.size).conj()
        sums = np.concatenate([[0.0], np.cumsum(shifted)])
        length = self.samples_per_symbol
        averages = sums[length:] - sums[:-length]
        steps: Complex128Array = averages[length:] * averages[:-length].conj()
        return steps

    def _find_preamble(self, steps: Complex128Array) -> tuple[int, complex]:
        """Where its first step is, and the turn of the carrier in a symbol."""
        length = self.samples_per_symbol
        pattern = np.zeros((PREAMBLE_SYMBOLS - 2) * length + 1)
        pattern[::length] = np.where(_preamble_steps(), -1.0, 1.0)
        last = steps.size - (self.num_symbols - 2) * length - self.max_slip_samples
        window = steps[: last - 1 + pattern.size]
        size = 1 << (window.size + pattern.size - 1).bit_length()
        spectrum = np.fft.fft(window, size) * np.fft.fft(pattern, size).conj()
        matched = np.fft.ifft(spectrum)[:last]
        first = int(np.argmax(np.abs(matched)))
        turn = complex(matched[first])
        return first, turn / abs(turn) if turn else 1.0 + 0j

    def _follow(self, steps: Complex128Array, first: int) -> Complex128Array:
        """The steps of a packet from its first one on, at the places where its clock has them."""
        count = self.num_symbols - 1
        on_time = self.samples_per_symbol * np.arange(count)
        most = _SLIPS_PER_SAMPLE * self.max_slip_samples

        def under(slip: int) -> Complex128Array:
            late = np.rint(slip / _SLIPS_PER_SAMPLE * np.arange(count) / count)
            # Only a false preamble is so near an end that its steps would lie beyond.
            places = np.clip(first + on_time + late.astype(int), 0, steps.size - 1)
            return steps[places]

        # From the middle outwards: of equals the smallest slip.
        slips = sorted(range(-most, most + 1), key=abs)
        return max(map(under, slips), key=lambda read: float(np.sum(np.abs(read.real))))

    def _carrier(self, num_samples: int) -> Complex128Array:
        return _carrier(self.centre_hz / self.sample_rate_hz, num_samples)


@functools.lru_cache(maxsize=8)
def _carrier(cycles_per_sample: float, num_samples: int) -> Complex128Array:
    """The shift up; a packet holds whole periods of it, so that it repeats without a seam."""
    turns: Complex128Array = np.exp(2j * math.pi * cycles_per_sample * np.arange(num_samples))
    turns.flags.writeable = False
    return turns


@functools.lru_cache(maxsize=1)
def _preamble_steps() -> BoolArray:
    """63 steps: a maximum-length sequence of x^6 + x + 1, whose shifts do not look like itself."""
    state, steps = 1, []
    for _ in range(PREAMBLE_SYMBOLS - 1):
        steps.append(bool(state & 1))
        state = (state >> 1) | (((state ^ (state >> 1)) & 1) << 5)
    return np.array(steps)


def _bits_of(integers: Sequence[int], width: int) -> BoolArray:
    """Two's complement, most significant bit first."""
    words = np.array([integer % (1 << width) for integer in integers], dtype=np.uint64)
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    bits: BoolArray = ((words[:, None] >> shifts) & np.uint64(1)).astype(bool).reshape(-1)
    return bits


def _integers_of(bits: BoolArray, width: int, *, signed: bool) -> list[int]:
    rows = bits.reshape(-1, width)
    weights = np.ldexp(1.0, np.arange(width - 1, -1, -1))
    if signed:
        weights[0] = -weights[0]
    return [int(value) for value in rows @ weights]


def _checksum(bits: BoolArray, sender: int, round_index: int) -> int:
    return zlib.crc32(np.packbits(bits).tobytes() + struct.pack(">QQ", sender, round_index))
