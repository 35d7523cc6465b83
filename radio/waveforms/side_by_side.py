"""Every device's packet at a place of its own in the band: all at once, one capture for all.

A packet is that of `radio.waveforms.slotted` in a sample rate D times lower, shaped to a symbol
rate on each side of its centre and moved to its place; places are mirrored about the carrier::

       device 3    device 1        device 0    device 2
    ...[======]....[======]...|...[======]....[======]...        frequency ->
                           carrier, leakages

With R the sample rate, r = R / (8 D) the symbol rate, F the largest offset of a carrier and T =
r / 4 the slope of the receiver's filter, neighbours' centres are 2 r + 2 F + T apart, and D is the
smallest with which all devices find a place. A device's buffer repeats, so that shaping and moving
are exact: lines of its transform are kept, weighted and moved. Shaping takes 10 % of the power and
adds peaks; one factor, `peak_factor`, keeps every packet there may be below full scale,

    peak_factor = max_t sum_k abs(g[t + k L]),        g a symbol, shaped

The receiver transforms its capture once; a place is a piece of that, filtered flat over r + F, and
read as the capture of a receiver of its own. What the ends of a capture spill into other places
is over within `_EDGE_SYMBOLS`, which are not read. A bit is wrong as with packets in time, with

    Es/N0 = D L abs(h)^2 A^2 power / N0,     power = mean power of a packet of amplitude 1

Left out of that: what symbols shaped so leave of one another (-18 dB), the images of mixers (an
image of device 0 falls on device 1), and the leakage of a carrier, which lies between the places.
"""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from radio.arrays import Complex64Array, Complex128Array, Float64Array
from radio.checks import check_all_finite, check_integer, check_not_negative, check_positive
from radio.errors import RadioConfigurationError
from radio.waveforms.energy_bands import USED_SHARE
from radio.waveforms.slotted import SlottedWaveform

SAMPLES_PER_SYMBOL = 8
"""L, of a packet by itself."""

MAX_DEVICES = 1024
_FLAT_SYMBOL_RATES = 0.75
"""Of a shaped packet, on each side of its centre; at 1 there is nothing any more."""

_SLOPE_SYMBOL_RATES = 0.25
_EDGE_SYMBOLS = 16
_FINER = 8


@dataclass(frozen=True, slots=True)
class PacketsSideBySide:
    """Packets of a band, and how to read them.

    Guarantees: pure, no state; no sample above the ordered amplitude; no power beyond a symbol rate
    from a place, before a radio distorts it; what `demodulate` returns passed its checksum.

    Attributes:
        num_devices: K; device k has place k.
        num_scalars: Q, of every device.
        sample_rate_hz: R, of all ends.
        max_offset_hz: F, largest carrier offset between a device and the receiver.
        decimation: D.
        packet: of a place, in a D times lower sample rate.

    Raises:
        RadioConfigurationError: more devices than the band has room for, or a value that cannot be.
    """

    num_devices: int
    num_scalars: int
    sample_rate_hz: float = 20e6
    max_offset_hz: float = 46e3
    decimation: int = field(init=False)
    packet: SlottedWaveform = field(init=False)

    def __post_init__(self) -> None:
        check_integer("num_devices", self.num_devices, minimum=1, maximum=MAX_DEVICES)
        check_positive("sample_rate_hz", self.sample_rate_hz)
        check_not_negative("max_offset_hz", self.max_offset_hz)
        object.__setattr__(self, "decimation", self._find_decimation())
        rate_hz = self.sample_rate_hz / self.decimation
        packet = SlottedWaveform(
            num_scalars=self.num_scalars,
            sample_rate_hz=rate_hz,
            samples_per_symbol=SAMPLES_PER_SYMBOL,
            centre_hz=rate_hz / 4.0,
            max_offset_hz=self.max_offset_hz,
        )
        object.__setattr__(self, "packet", packet)

    def _find_decimation(self) -> int:
        """The smallest D: the fastest packets that all find a place and tell their carriers."""
        wanted = math.ceil(self.num_devices / 2)
        # From there on a carrier could be taken for another.
        rate_hz, least_hz = _symbol_rate_hz(self.sample_rate_hz, 1), 2.0 * self.max_offset_hz
        end = math.ceil(rate_hz / least_hz) if least_hz else MAX_DEVICES
        most = 0
        for decimation in range(1, max(end, 2)):
            places = _places_a_side(self.sample_rate_hz, decimation, self.max_offset_hz)
            if places >= wanted:
                return decimation
            most = max(most, places)
        raise RadioConfigurationError(
            f"packets side by side: got {self.num_devices} devices, and {2 * most} find a place at "
            f"sample_rate_hz = {self.sample_rate_hz:g} where carriers are up to "
            f"{self.max_offset_hz:g} Hz off. Raise the rate, or let them speak one after the other."
        )

    @property
    def largest_integer(self) -> int:
        """That a share of 1 is."""
        return self.packet.largest_integer

    @property
    def packet_samples(self) -> int:
        """The period of what a device holds."""
        return self.decimation * self.packet.packet_samples

    @property
    def _place_samples(self) -> int:
        """A place's part of a capture, in the rate of its packet; a length that transforms well."""
        needed = self.packet.capture_samples + 2 * _EDGE_SYMBOLS * SAMPLES_PER_SYMBOL
        return 256 * math.ceil(needed / 256)

    @property
    def capture_samples(self) -> int:
        """In which every packet lies whole, and away from the ends."""
        return self.decimation * self._place_samples

    @property
    def airtime_s(self) -> float:
        """How long the one capture of a round takes."""
        return self.capture_samples / self.sample_rate_hz

    def airtime_of_round_s(self, num_devices: int) -> float:
        """How long the captures of a round take: one, whoever speaks."""
        return self.airtime_s

    def place_hz(self, device: int) -> float:
        """The centre of a device's packet beside the carrier.

        A multiple of the rate at which packets repeat, so that one that was moved there repeats
        without a seam.
        """
        rate_hz = _symbol_rate_hz(self.sample_rate_hz, self.decimation)
        width_hz = _place_width_hz(rate_hz, self.max_offset_hz)
        innermost_hz = _first_edge_hz(rate_hz, self.max_offset_hz) + width_hz / 2.0
        centre_hz = innermost_hz + device // 2 * width_hz
        line_hz = self.sample_rate_hz / self.packet_samples
        return (-1.0 if device % 2 else 1.0) * round(centre_hz / line_hz) * line_hz

    @property
    def peak_factor(self) -> float:
        """By which a packet's largest sample may exceed that of one with constant amplitude."""
        return _shaped_symbol(self.packet.packet_samples)[0]

    @property
    def mean_power(self) -> float:
        """Power of a packet of amplitude 1, over full scale; the mean over random bits."""
        return _shaped_symbol(self.packet.packet_samples)[1]

    def check_offset(self, offset_hz: float) -> None:
        """Return if a carrier that far from the receiver's can be read.

        Raises:
            RadioConfigurationError: it cannot.
        """
        self.packet.check_offset(offset_hz)

    def check_clock(self, clock_ppm: float) -> None:
        """Return if packets of a clock that far from the receiver's can be read.

        Raises:
            RadioConfigurationError: they cannot.
        """
        self.packet.check_clock(clock_ppm)

    def erased_share(self, sample_to_noise: float) -> float:
        """Erasures over packets that arrive with abs(h)^2 A^2 / N0 per sample of the whole band."""
        return self.packet.erased_share(self._in_its_place(sample_to_noise))

    def check_can_be_read(self, sample_to_noise: float) -> None:
        """Return if a packet through unit gain would be read now and then.

        Raises:
            RadioConfigurationError: 99 of 100 would be erased.
        """
        self.packet.check_can_be_read(self._in_its_place(sample_to_noise))

    def _in_its_place(self, sample_to_noise: float) -> float:
        """That ratio per sample of a place, where there is less noise."""
        return self.decimation * self.mean_power * sample_to_noise

    def modulate(
        self, shares: Sequence[float], amplitude: float, *, sender: int, round_index: int
    ) -> Complex64Array:
        """The packet at its sender's place, to be held.

        Args:
            shares: s, numbers over the largest [Q].
            amplitude: of the largest sample there may be, over full scale, 0 to 1.
            sender: whose place it is, and who the checksum says it is from.
            round_index: and when.

        Raises:
            RadioConfigurationError: an argument out of range.
        """
        self._check_device(sender)
        packet = self.packet.modulate(shares, amplitude, sender=sender, round_index=round_index)
        period = packet.size
        lines = np.arange(-(half := period // SAMPLES_PER_SYMBOL), half + 1)
        centre = period // 4
        kept = np.fft.fft(packet)[(centre + lines) % period] * _shape(lines / half)
        line_hz = self.sample_rate_hz / self.packet_samples
        place = round(self.place_hz(sender) / line_hz)
        spectrum = np.zeros(self.packet_samples, dtype=np.complex128)
        spectrum[(place + lines) % spectrum.size] = kept * (self.decimation / self.peak_factor)
        return np.fft.ifft(spectrum).astype(np.complex64)

    def demodulate(
        self, capture: Complex64Array, senders: Sequence[int], *, round_index: int
    ) -> list[tuple[float, ...] | None]:
        """The shares of each sender's packet [Q], or None for an erasure, in their order.

        Args:
            capture: of `capture_samples`, from anywhere while all hold.
            senders: devices whose packets are looked for at their places.
            round_index: of which round they must be.

        Raises:
            RadioConfigurationError: another length, or a sample that is not finite.
        """
        places = self.separated(capture, senders)
        return [
            self.packet.demodulate(place, sender=sender, round_index=round_index)
            for sender, place in zip(senders, places, strict=True)
        ]

    def separated(self, capture: Complex64Array, devices: Sequence[int]) -> list[Complex64Array]:
        """What a receiver of its own would have captured at each device's place.

        Args:
            capture: of `capture_samples`.
            devices: whose places.

        Returns:
            Of each a capture of `packet`, its centre where a packet has it.

        Raises:
            RadioConfigurationError: another length, or a sample that is not finite.
        """
        if capture.shape != (self.capture_samples,):
            raise RadioConfigurationError(
                f"capture: got shape {capture.shape}, wanted ({self.capture_samples},)."
            )
        check_all_finite("capture", capture)
        spectrum, size = np.fft.fft(capture), self._place_samples
        bin_hz = self.sample_rate_hz / self.capture_samples
        symbol_rate_hz = self.packet.sample_rate_hz / SAMPLES_PER_SYMBOL
        flat_hz = symbol_rate_hz + self.max_offset_hz
        slope_hz = _SLOPE_SYMBOL_RATES * symbol_rate_hz
        reach = int((flat_hz + slope_hz) / bin_hz)
        bins = np.arange(-reach, reach + 1)
        passed = _falling((np.abs(bins) * bin_hz - flat_hz) / slope_hz) / self.decimation
        edge = _EDGE_SYMBOLS * SAMPLES_PER_SYMBOL
        found = []
        for device in devices:
            self._check_device(device)
            # To the nearest bin: what is left turns like a carrier's offset, by a few hertz.
            place = round(self.place_hz(device) / bin_hz)
            piece = np.zeros(size, dtype=np.complex128)
            piece[(size // 4 + bins) % size] = spectrum[(place + bins) % spectrum.size] * passed
            samples = np.fft.ifft(piece).astype(np.complex64)
            found.append(samples[edge : edge + self.packet.capture_samples])
        return found

    def constellation(self, capture: Complex64Array) -> Complex128Array:
        """The turned phase steps of every device's packet, device by device.

        Raises:
            RadioConfigurationError: as `separated`.
        """
        places = self.separated(capture, range(self.num_devices))
        return np.concatenate([self.packet.constellation(place) for place in places])

    def _check_device(self, device: int) -> None:
        if not 0 <= device < self.num_devices:
            raise RadioConfigurationError(
                f"place in the band: got device {device}, and there are {self.num_devices}."
            )


class Slots(enum.StrEnum):
    """By what packets are told apart."""

    TIME = "time"
    FREQUENCY = "frequency"


Packets = SlottedWaveform | PacketsSideBySide


def packets_of(
    slots: Slots, *, num_devices: int, num_scalars: int, sample_rate_hz: float
) -> Packets:
    """The packets of so many devices.

    Args:
        slots: by what they are told apart.
        num_devices: K.
        num_scalars: Q, of each.
        sample_rate_hz: of all radios.

    Raises:
        RadioConfigurationError: no room, or a value that cannot be.
    """
    if slots is Slots.FREQUENCY:
        return PacketsSideBySide(num_devices, num_scalars, sample_rate_hz)
    return SlottedWaveform(num_scalars, sample_rate_hz, centre_hz=sample_rate_hz / 4.0)


def _symbol_rate_hz(sample_rate_hz: float, decimation: int) -> float:
    return sample_rate_hz / (SAMPLES_PER_SYMBOL * decimation)


def _place_width_hz(symbol_rate_hz: float, max_offset_hz: float) -> float:
    return (2.0 + _SLOPE_SYMBOL_RATES) * symbol_rate_hz + 2.0 * max_offset_hz


def _first_edge_hz(symbol_rate_hz: float, max_offset_hz: float) -> float:
    """Beside the carrier: no filter of a place reaches a leakage, wherever its carrier is."""
    return _SLOPE_SYMBOL_RATES / 2.0 * symbol_rate_hz + max_offset_hz


def _places_a_side(sample_rate_hz: float, decimation: int, max_offset_hz: float) -> int:
    rate_hz = _symbol_rate_hz(sample_rate_hz, decimation)
    room_hz = USED_SHARE * sample_rate_hz / 2.0 - _first_edge_hz(rate_hz, max_offset_hz)
    return max(0, int(room_hz / _place_width_hz(rate_hz, max_offset_hz)))


def _falling(distance: Float64Array) -> Float64Array:
    """1 up to 0, 0 from 1 on, half a cosine between."""
    between = np.clip(distance, 0.0, 1.0)
    return np.asarray(0.5 * (1.0 + np.cos(np.pi * between)))


def _shape(symbol_rates: Float64Array) -> Float64Array:
    """What a line that far from a packet's centre is weighted by."""
    return _falling((np.abs(symbol_rates) - _FLAT_SYMBOL_RATES) / (1.0 - _FLAT_SYMBOL_RATES))


@functools.lru_cache(maxsize=8)
def _shaped_symbol(packet_samples: int) -> tuple[float, float]:
    """Peak factor and mean power of packets of that length."""
    frequencies = np.asarray(np.fft.fftfreq(packet_samples) * SAMPLES_PER_SYMBOL, dtype=np.float64)
    symbol = np.zeros(packet_samples)
    symbol[:SAMPLES_PER_SYMBOL] = 1.0
    lines = np.fft.fft(symbol) * _shape(frequencies)
    # Peaks lie between the samples of a packet, where those of a faster rate are.
    half, finer = packet_samples // 2, np.zeros(_FINER * packet_samples, dtype=np.complex128)
    finer[:half], finer[-half:] = lines[:half], lines[half:]
    shaped = np.abs(np.fft.ifft(finer)) * _FINER
    peak = float(shaped.reshape(-1, _FINER * SAMPLES_PER_SYMBOL).sum(axis=0).max())
    power = float(np.sum(np.square(shaped))) / (_FINER * SAMPLES_PER_SYMBOL)
    return peak, power / peak**2
