"""`VirtualPluto`: one radio as its driver sees it - attributes, buffers, and their traps."""

from __future__ import annotations

import errno

from radio.virtual_pluto.air import Radio, VirtualAir
from radio.virtual_pluto.attributes import Device, IioError
from radio.virtual_pluto.buffers import BYTES_PER_NUMBER, ReceiveBuffer, TransmitBuffer
from radio.virtual_pluto.chip import Chip
from radio.virtual_pluto.converters import OVERFLOW, UNDERFLOW, Adc, Dac
from radio.virtual_pluto.supplies import make_xadc

MAX_BUFFER_BYTES = 256 << 20
_DEFAULT_BLOCKS = 4


class VirtualPluto:
    """A Pluto on a virtual air.

    What it shares with hardware, and a driver must know: a gain is refused unless it is in manual
    mode; a frequency reads back a little off; below 2.08 MS/s a FIR has to be loaded first; a
    receive buffer is filled from the moment it is opened, so what is read first can be old; a
    cyclic buffer goes on until it is closed, even if whoever opened it is gone; then the tones of
    the synthesizer take over, and last the carrier that the mixer leaks, until the local
    oscillator is switched off.

    Args:
        air: that it is on.
        radio: its place there.
        serial: of the context attribute hw_serial.
    """

    def __init__(self, air: VirtualAir, radio: Radio, serial: str) -> None:
        self.air = air
        self.radio = radio
        self.serial = serial
        self._kernel_buffers: dict[str, int] = {}
        self._is_built = False
        self._chip = Chip(air, radio, self._apply)
        self._dac = Dac(self._chip.rate, self._apply)
        self._adc = Adc(self._chip.rate)
        self.phy, self.dac, self.adc = self._chip.device, self._dac.device, self._adc.device
        devices = (self.phy, make_xadc(), self.dac, self.adc)
        self.devices: dict[str, Device] = {d.identifier: d for d in devices}
        self.context_attributes = {
            "hw_model": "Virtual PlutoSDR (software, no hardware)",
            "hw_serial": serial,
            "fw_version": "v0.39-virtual",
            "ad9361-phy,model": "ad9363a",
            "ad9361-phy,xo_correction": "40000000",
        }
        self._is_built = True
        self._apply()

    def _apply(self) -> None:
        """Bring the radio into the state that the attributes describe."""
        if not self._is_built:
            return
        air = self.air
        with air.lock:
            air.forget_unheard()
            now_s = air.clock.now_s()
            rate_hz = self._chip.rate_hz
            if rate_hz != self.radio.rate_hz:
                self._end_bursts(now_s)
                self.radio.rate_hz = rate_hz
            self.radio.sending.change(now_s, self._chip.sending(self._dac.tones()))
            self.radio.hearing.change(now_s, self._chip.hearing())

    # -- buffers

    def set_kernel_buffers(self, device: Device, count: int) -> None:
        """How many blocks the kernel keeps for a device.

        Raises:
            IioError: not a possible number, or not a device with buffers.
        """
        if not device.buffer or not 1 <= count <= 64:
            raise IioError(errno.EINVAL)
        self._kernel_buffers[device.identifier] = count

    def open_receive(self, num_samples: int) -> ReceiveBuffer:
        """Begin to fill blocks.

        Raises:
            IioError: ENOMEM.
        """
        blocks = self._blocks(self.adc, num_samples, 2)
        return ReceiveBuffer(
            self.air, self.radio, num_samples, blocks, lambda: self._adc.status.note(OVERFLOW)
        )

    def open_transmit(
        self, num_samples: int, *, is_cyclic: bool, columns: tuple[int, ...] = (0, 1)
    ) -> TransmitBuffer:
        """Make ready to send blocks; what an earlier buffer left on the air ends.

        Args:
            num_samples: of a block.
            is_cyclic: whether one goes round.
            columns: which of in phase and quadrature come; the other is 0.

        Raises:
            IioError: ENOMEM.
        """
        blocks = self._blocks(self.dac, num_samples, len(columns))
        with self.air.lock:
            self._end_bursts(self.air.clock.now_s())
        return TransmitBuffer(
            self.air,
            self.radio,
            num_samples,
            blocks,
            is_cyclic=is_cyclic,
            columns=columns,
            on_underflow=lambda: self._dac.status.note(UNDERFLOW),
        )

    def _blocks(self, device: Device, num_samples: int, num_columns: int) -> int:
        blocks = self._kernel_buffers.get(device.identifier, _DEFAULT_BLOCKS)
        size = num_samples * num_columns * BYTES_PER_NUMBER * blocks
        if not 1 <= size <= MAX_BUFFER_BYTES:
            raise IioError(errno.ENOMEM)
        return blocks

    def end_bursts(self) -> None:
        """Send no more samples; tones and leakage stay."""
        with self.air.lock:
            self._end_bursts(self.air.clock.now_s())

    def _end_bursts(self, now_s: float) -> None:
        for burst in self.radio.bursts:
            burst.end_s = min(burst.end_s, now_s)
