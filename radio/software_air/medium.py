"""`SoftwareMedium`: the air, as an equation.

For bursts x_k placed at start_k, gains h_k and noise power N0, a capture at position s is

    y[i] = sum_k h_k x_k[s + i - start_k] + w[i],    w[i] ~ CN(0, N0) iid,  i = 0..num_samples-1

with x_k zero outside its burst; where there are echoes sum_l h_kl x_k[... - l] in place of h_k x_k.
N0 is per complex sample: N0/2 in each of the two parts. With a carrier f_k beside the receiver's,
gain h_k turns: h_k exp(j psi_k + 2 pi j f_k (s + i) / sample rate), with psi_k drawn in
``begin_round``: between two frames passes a time that nobody knows. The crystal that makes the
carrier makes the sampling clock, so x_k is read at (1 + f_k / carrier) n in place of n
(`radio.software_air.resampling`).

For bursts of N_k samples that are held, a capture hears each from a moment of its own,

    y[i] = sum_k h_k exp(j phi_k + 2 pi j f_k i / sample rate) x_k[(d_k + i) mod N_k] + w[i],

with d_k and phi_k uniform, drawn for every capture. What `radio.software_air.impairments` switches
on is done to every x_k and to y, in the order drawn there.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from radio.arrays import BurstArray, Complex64Array, Complex128Array
from radio.checks import (
    check_all_finite,
    check_burst,
    check_exact_burst,
    check_integer,
    check_not_negative,
    check_positive,
)
from radio.errors import RadioConfigurationError
from radio.software_air.impairments import Impairments
from radio.software_air.phasors import turns
from radio.software_air.resampling import resampled

logger = logging.getLogger(__name__)

_IDEAL = Impairments()
_ALONE = np.ones(1, dtype=np.complex128)
"""No echoes."""
_NOTHING_AFTER = 64
"""Samples behind a burst at a position: what is read around its ends is not the other end."""


class SoftwareMedium:
    """Superposes the bursts of many transmitters at one receiver: at positions, or held.

    Guarantees:
        * Linear in the bursts and in the gains; without bursts a capture is noise alone; a burst
          that starts d samples later arrives d samples later.
        * The sum is formed in float64 in ascending device order and rounded to complex64 once, so
          the order (and the thread) in which devices call ``add`` does not change a bit of it.
        * Noise comes from ``noise_rng`` alone, 2 num_samples normals per capture, none if
          noise_power is 0; `listen` draws a delay and a phase for each held burst before it, and
          ``begin_round`` a phase for each carrier that is off. After
          ``begin_round`` with an equal generator, equal calls give equal bits: a resumed run hears
          what the interrupted one would have heard.

    Each capture draws its own noise: two captures of the same positions hear the same bursts under
    independent noise, unlike two copies of one recording.

    The gains in force when ``capture`` is called apply to all of it (block fading). ``add`` keeps a
    copy of the burst until ``clear`` or ``begin_round``.

    Args:
        num_devices: how many transmitters, >= 1.
        sample_rate_hz: of the common time axis, > 0; carried for the transceivers, not used here.
        noise_power: N0 >= 0.
        noise_rng: generator of the receiver noise, used by nobody else.
        channel_name: what the gains are drawn from, for the transceivers' ``source``.
        impairments: what else happens to a signal; the crystals' are told by
            `set_carrier_offsets_hz`, and path gains are part of `set_gains`.
        carrier_hz: that the offsets lie beside; infinite, and sampling clocks do not differ.
    """

    def __init__(
        self,
        *,
        num_devices: int,
        sample_rate_hz: float,
        noise_power: float,
        noise_rng: np.random.Generator,
        channel_name: str = "unnamed",
        impairments: Impairments = _IDEAL,
        carrier_hz: float = math.inf,
    ) -> None:
        self._num_devices = check_integer("num_devices", num_devices, minimum=1)
        self._sample_rate_hz = check_positive("sample_rate_hz", sample_rate_hz)
        self._noise_power = check_not_negative("noise_power", noise_power)
        self._noise_rng = noise_rng
        self._channel_name = channel_name
        self._impairments = impairments
        # What a transmitter radiates that is told to be silent: the leakage of its mixer.
        self._idle = complex(impairments.transmitted(np.zeros(1, dtype=np.complex64))[0])
        self._gains: Complex128Array | None = None
        self._carrier_hz = carrier_hz
        self._carrier_offsets_hz = np.zeros(self._num_devices)
        self._carrier_phases = np.zeros(self._num_devices)
        self._delays = np.zeros(self._num_devices, dtype=np.int64)
        self._bursts: dict[int, list[tuple[int, Complex128Array]]] = {}
        self._held: dict[int, Complex128Array] = {}
        self._lock = threading.Lock()

    @property
    def num_devices(self) -> int:
        """How many transmitters there are."""
        return self._num_devices

    @property
    def sample_rate_hz(self) -> float:
        """Samples per second of the common time axis."""
        return self._sample_rate_hz

    @property
    def noise_power(self) -> float:
        """True N0 per complex sample. A receiver must measure it, not read it here."""
        return self._noise_power

    @property
    def channel_name(self) -> str:
        """What the gains are drawn from, in one word."""
        return self._channel_name

    def begin_round(self, noise_rng: np.random.Generator) -> None:
        """Forget all bursts at positions and take the noise from ``noise_rng`` from here on.

        A held burst stays on the air until its radio is told to stop.
        """
        with self._lock:
            self._bursts.clear()
            self._noise_rng = noise_rng
            self._carrier_phases = np.zeros(self._num_devices)
            for device in np.flatnonzero(self._carrier_offsets_hz):
                self._carrier_phases[device] = noise_rng.random()
            if self._impairments.timing_offset_s > 0.0:
                latest = self._impairments.timing_offset_s * self._sample_rate_hz
                self._delays = np.round(latest * noise_rng.random(self._num_devices)).astype(int)

    def set_gains(self, gains: npt.ArrayLike) -> None:
        """Begin a coherence block: complex [num_devices], amplitude ratios, or those of echoes.

        Args:
            gains: one of each device, or [num_devices, num_taps], echoes a sample apart.

        Raises:
            RadioConfigurationError: another shape, or a gain that is not finite.
        """
        block = np.array(gains, dtype=np.complex128)
        if block.ndim == 1:
            block = block[:, None]
        if block.ndim != 2 or len(block) != self._num_devices or block.shape[1] == 0:
            raise RadioConfigurationError(
                f"gains: got shape {np.shape(gains)}, wanted ({self._num_devices},), or a row of "
                "echoes of each."
            )
        check_all_finite("gains", block)
        with self._lock:
            self._gains = block

    def set_carrier_offsets_hz(self, offsets_hz: npt.ArrayLike) -> None:
        """Where each device's carrier lies beside the receiver's: real [num_devices], 0 at first.

        Raises:
            RadioConfigurationError: another shape; an offset that is not finite, or beyond half the
                sample rate.
        """
        offsets = np.array(offsets_hz, dtype=np.float64)
        if offsets.shape != (self._num_devices,):
            raise RadioConfigurationError(
                f"carrier offsets: got shape {offsets.shape}, wanted ({self._num_devices},)."
            )
        if not np.all(np.abs(offsets) <= self._sample_rate_hz / 2):  # a NaN is not either
            raise RadioConfigurationError(
                f"carrier offsets: got {offsets.tolist()} Hz, wanted within half of the sample "
                f"rate, {self._sample_rate_hz / 2:g} Hz."
            )
        with self._lock:
            self._carrier_offsets_hz = offsets

    def add(self, device_index: int, burst: BurstArray, start_sample: int) -> None:
        """Put a burst of one device on the time axis.

        Raises:
            RadioConfigurationError: no such device; not a burst; a negative position; or the device
                is on air already at one of these positions (it has one converter; what looks like
                two bursts at once is nearly always a forgotten ``begin_round``).
        """
        device = self._check_device(device_index)
        check_exact_burst("burst", burst)
        start = check_integer("start_sample", start_sample, minimum=0)
        stop = start + burst.size
        with self._lock:
            queue = self._bursts.setdefault(device, [])
            for other_start, other in queue:
                other_stop = other_start + other.size
                if start < other_stop and other_start < stop:
                    raise RadioConfigurationError(
                        f"device {device}: a burst at [{start}, {stop}) overlaps its own burst at "
                        f"[{other_start}, {other_stop}). Call begin_round() between rounds."
                    )
            queue.append((start, self._impairments.transmitted(burst)))

    def capture(self, start_sample: int, num_samples: int) -> Complex64Array:
        """What the receiver hears at [start_sample, start_sample + num_samples).

        Returns:
            complex64 [num_samples], a new array.

        Raises:
            RadioConfigurationError: a position out of range; or there are bursts and no gains yet.
        """
        start = check_integer("start_sample", start_sample, minimum=0)
        count = check_integer("num_samples", num_samples, minimum=1)
        with self._lock:
            if self._held:
                raise RadioConfigurationError(
                    f"capture: devices {sorted(self._held)} hold bursts, which are at no position. "
                    "Tell them to fall silent first."
                )
            return self._received(self._superpose(start, count))

    def hold(self, device_index: int, burst: Complex64Array) -> None:
        """Repeat a burst of one device without end, in place of what it held before.

        Raises:
            RadioConfigurationError: no such device, or not a burst.
        """
        device = self._check_device(device_index)
        check_burst("burst", burst)
        with self._lock:
            self._held[device] = self._impairments.transmitted(burst)

    def fall_silent(self, device_index: int) -> None:
        """End what a device holds, if it holds anything."""
        device = self._check_device(device_index)
        with self._lock:
            self._held.pop(device, None)

    def listen(self, num_samples: int) -> Complex64Array:
        """What the receiver hears for a while, of bursts that are held.

        Returns:
            complex64 [num_samples], a new array.

        Raises:
            RadioConfigurationError: not a number of samples; there are bursts at positions, which
                have none here; or there are bursts and no gains yet.
        """
        count = check_integer("num_samples", num_samples, minimum=1)
        with self._lock:
            if self._bursts:
                raise RadioConfigurationError(
                    f"listen: devices {sorted(self._bursts)} have sent bursts to positions, and "
                    "what is heard at any moment has none. Call begin_round() between rounds."
                )
            total = np.zeros(count, dtype=np.complex128)
            for device in self._on_air(self._held):
                burst = self._held.get(device)
                phase_turns = self._noise_rng.random()
                gain, echoes = self._path(device)
                if burst is None:
                    heard = np.full(count, self._idle * echoes.sum())
                else:
                    delay = int(self._noise_rng.integers(burst.size))
                    if len(echoes) > 1:
                        # A period behind itself: what goes round has echoes of its own end.
                        around = np.arange(1 - len(echoes), burst.size)
                        burst = _through(np.take(burst, around, mode="wrap"), echoes)
                    heard = self._wandered(self._read(device, burst, delay, count))
                total += gain * self._turned(device, heard, phase_turns)
            return self._received(total)

    def clear(self) -> None:
        """Forget all bursts at positions. Gains and the noise generator stay."""
        with self._lock:
            self._bursts.clear()

    def _check_device(self, device_index: int) -> int:
        device = check_integer("device_index", device_index, minimum=0)
        if device >= self._num_devices:
            raise RadioConfigurationError(
                f"device_index: got {device}, wanted 0..{self._num_devices - 1}."
            )
        return device

    def _path(self, device: int) -> tuple[complex, Complex128Array]:
        """A gain, and what echoes make of a signal before it; one of the two is 1."""
        if self._gains is None:
            raise RadioConfigurationError(
                "gains: there are bursts on air and no gains. Call set_gains() first."
            )
        taps = self._gains[device]
        return (complex(taps[0]), _ALONE) if len(taps) == 1 else (1.0 + 0.0j, taps)

    def _on_air(self, sending: Mapping[int, Any]) -> list[int]:
        """Who is heard: those who send, and everybody if mixers leak."""
        return sorted(sending) if self._idle == 0 else list(range(self._num_devices))

    def _turned(self, device: int, heard: Complex128Array, cycles: float) -> Complex128Array:
        """Samples of a device as its carrier brings them, ``cycles`` ahead at the first."""
        turn = np.exp(2j * math.pi * math.fmod(cycles, 1.0))
        if self._carrier_offsets_hz[device] != 0.0:
            return heard * turns(self._cycles_per_sample(device), heard.size) * turn
        return heard if cycles == 0.0 else heard * turn

    def _clock_ratio(self, device: int) -> float:
        """A device's sampling clock over the receiver's: one crystal makes carrier and clock."""
        return 1.0 + float(self._carrier_offsets_hz[device]) / self._carrier_hz

    def _read(
        self, device: int, burst: Complex128Array, start: float, count: int
    ) -> Complex128Array:
        """Samples of a burst without end, from a position on, as the receiver's clock has them."""
        ratio = self._clock_ratio(device)
        if ratio == 1.0:
            return np.take(burst, np.arange(int(start), int(start) + count), mode="wrap")
        return resampled(burst, start, ratio, count)

    def _wandered(self, samples: Complex128Array) -> Complex128Array:
        """Samples under the phase noise of one oscillator."""
        wandering = self._impairments.phase_noise(
            samples.size, self._sample_rate_hz, self._noise_rng
        )
        return samples if wandering is None else samples * wandering

    def _cycles_per_sample(self, device: int) -> float:
        return float(self._carrier_offsets_hz[device] / self._sample_rate_hz)

    def _received(self, total: Complex128Array) -> Complex64Array:
        """The sum as the receiver's oscillator, noise and converter leave it."""
        total = self._wandered(total)
        if self._noise_power > 0.0:
            parts = self._noise_rng.standard_normal(2 * total.size)
            parts *= math.sqrt(self._noise_power / 2.0)
            total += parts.view(np.complex128)
        return self._impairments.received(total).astype(np.complex64)

    def _superpose(self, start: int, count: int) -> Complex128Array:
        total = np.zeros(count, dtype=np.complex128)
        for device in self._on_air(self._bursts):
            gain, echoes = self._path(device)
            cycles = self._cycles_per_sample(device) * start + self._carrier_phases[device]
            begin = start - (len(echoes) - 1)  # what is heard later began before
            window = np.full(start + count - begin, self._idle)
            has_burst = False
            # Bursts of one device never overlap, so their order does not matter.
            for sent_start, burst in self._bursts.get(device, ()):
                burst_start = sent_start + int(self._delays[device])
                first = max(begin, burst_start)
                last = min(start + count, burst_start + burst.size)
                if first < last:
                    has_burst = True
                    once = np.pad(burst, (0, _NOTHING_AFTER), constant_values=self._idle)
                    position = first * self._clock_ratio(device) - burst_start
                    window[first - begin : last - begin] = self._read(
                        device, once, position, last - first
                    )
            if has_burst:
                window = self._wandered(window)
            if has_burst or self._idle != 0:
                total += gain * self._turned(device, _through(window, echoes), cycles)
        return total


def _through(samples: Complex128Array, echoes: Complex128Array) -> Complex128Array:
    """sum_l h_l x[n - l] where all of its terms are there [num_samples - num_taps + 1]."""
    return samples if len(echoes) == 1 else np.convolve(samples, echoes, "valid")
