"""`VirtualPluto`: one radio as its driver sees it - attributes, buffers, and their traps."""

from __future__ import annotations

import errno
import math

import numpy as np

from radio.units import amplitude_ratio_from_db
from radio.virtual_pluto.air import (
    GAIN_RANGE_DB,
    NOMINAL_CRYSTAL_HZ,
    Radio,
    ReceiveState,
    Tone,
    TransmitState,
    VirtualAir,
)
from radio.virtual_pluto.attributes import (
    Attribute,
    Attributes,
    Channel,
    Device,
    IioError,
    fixed,
    flag,
    one_of,
    within,
)
from radio.virtual_pluto.buffers import BYTES_PER_SAMPLE, ReceiveBuffer, TransmitBuffer

MAX_RATE_HZ = 61_440_000
MIN_RATE_HZ = 25_000_000 // 12
MIN_RATE_WITH_FIR_HZ = 520_833
LO_RANGE_HZ = (325_000_000, 3_800_000_000)
LO_STEP_HZ = NOMINAL_CRYSTAL_HZ / 8_388_593
"""Of the fractional synthesizer: a frequency reads back up to half of it off."""

ATTENUATION_RANGE_DB = (0.0, 89.75)
MAX_BUFFER_BYTES = 256 << 20

_FDD = "fdd"
_STATUS_REGISTER = 0x80000088
_UNDERFLOW, _OVERFLOW = 1, 4
_DEFAULT_BLOCKS = 4
_GAIN_MODES = ("manual", "fast_attack", "slow_attack", "hybrid")
_TONES = ("TX1_I_F1", "TX1_I_F2", "TX1_Q_F1", "TX1_Q_F2")


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
        self._status = {"iio:device2": 0, "iio:device3": 0}
        self._register = {"iio:device2": 0, "iio:device3": 0}
        self._retuned = np.random.default_rng([radio.index, 0x10])
        self._phases = [0.0, 0.0]
        self._manual_gain_db = float(GAIN_RANGE_DB[1])
        self.devices: dict[str, Device] = {}
        self.phy = self._make_phy()
        self.dac = self._make_dac()
        self.adc = self._make_adc()
        self.devices = {d.identifier: d for d in (self.phy, self.dac, self.adc)}
        self.context_attributes = {
            "hw_model": "Virtual PlutoSDR (software, no hardware)",
            "hw_serial": serial,
            "fw_version": "v0.39-virtual",
            "ad9361-phy,model": "ad9363a",
            "ad9361-phy,xo_correction": "40000000",
        }
        self._apply()

    # -- devices and their attributes

    def _make_phy(self) -> Device:
        rate = self._rate_attribute()
        fir_is_on = flag("0")
        shared = {
            "sampling_frequency": rate,
            "sampling_frequency_available": Attribute(
                compute=lambda: f"[{self._min_rate_hz()} 1 {MAX_RATE_HZ}]"
            ),
            "filter_fir_en": fir_is_on,
        }
        receive = Channel(
            "voltage0",
            False,
            {
                **shared,
                "rf_bandwidth": within("18000000", 200e3, 56e6, show=_whole),
                "rf_bandwidth_available": fixed("[200000 1 56000000]"),
                "gain_control_mode": one_of("slow_attack", _GAIN_MODES, self._apply),
                "gain_control_mode_available": fixed(" ".join(_GAIN_MODES)),
                "hardwaregain": Attribute(
                    "71.000000 dB", self._accept_gain, self._show_gain, self._apply
                ),
                "hardwaregain_available": fixed("[-3 1 71]"),
                "rssi": fixed("100.00 dB"),
                "rf_port_select": one_of("A_BALANCED", ("A_BALANCED",)),
                "bb_dc_offset_tracking_en": flag("1"),
                "rf_dc_offset_tracking_en": flag("1"),
                "quadrature_tracking_en": flag("1"),
            },
        )
        transmit = Channel(
            "voltage0",
            True,
            {
                **shared,
                "rf_bandwidth": within("18000000", 200e3, 40e6, show=_whole),
                "rf_bandwidth_available": fixed("[200000 1 40000000]"),
                "hardwaregain": within(
                    "-10.000000 dB",
                    -ATTENUATION_RANGE_DB[1],
                    -ATTENUATION_RANGE_DB[0],
                    show=lambda db: f"{round(db * 4) / 4:.6f} dB",
                    on_change=self._apply,
                ),
                "hardwaregain_available": fixed("[-89.750000 0.250000 0.000000]"),
                "rssi": fixed("0.00 dB"),
                "rf_port_select": one_of("A", ("A",)),
            },
        )
        return Device(
            "iio:device0",
            "ad9361-phy",
            [
                receive,
                transmit,
                Channel("altvoltage0", True, self._oscillator("2400000000", 0), name="RX_LO"),
                Channel("altvoltage1", True, self._oscillator("2450000000", 1), name="TX_LO"),
                Channel("temp0", False, {"input": Attribute(compute=self._show_temperature)}),
                Channel("out", False, {"voltage_filter_fir_en": fir_is_on}),
            ],
            attributes={
                "calib_mode": one_of("auto", ("auto", "manual", "rf_dc_offs", "tx_quad")),
                "ensm_mode": one_of("fdd", (_FDD, "alert", "sleep"), self._apply),
                "ensm_mode_available": fixed("sleep alert fdd"),
                "filter_fir_config": Attribute("FIR Rx: 0,0 Tx: 0,0", _accept_fir),
                "rx_path_rates": Attribute(compute=lambda: self._path_rates("ADC", "R")),
                "tx_path_rates": Attribute(compute=lambda: self._path_rates("DAC", "T")),
                "trx_rate_governor": one_of("nominal", ("nominal", "highest_osr")),
                "xo_correction": within(
                    "40000000", 39_992_000, 40_008_000, show=_whole, on_change=self._apply
                ),
                "xo_correction_available": fixed("[39992000 1 40008000]"),
            },
            debug={"loopback": one_of("0", ("0", "1", "2"), self._apply)},
        )

    def _make_dac(self) -> Device:
        identifier = "iio:device2"
        tones = [
            Channel(
                f"altvoltage{index}",
                True,
                {
                    "frequency": within(
                        "1000000", 0, MAX_RATE_HZ, show=_whole, on_change=self._apply
                    ),
                    "phase": within("0", 0, 360_000, show=_whole, on_change=self._apply),
                    "raw": flag("1", self._apply),
                    "scale": within("0.000000", 0.0, 1.0, show=_decimal, on_change=self._apply),
                    "sampling_frequency": self._rate,
                },
                name=name,
            )
            for index, name in enumerate(_TONES)
        ]
        return Device(
            identifier,
            "cf-ad9361-dds-core-lpc",
            [*self._scanned(True, "le:S16/16>>0"), *tones],
            debug=self._registers(identifier),
            buffer=_buffer_attributes(),
        )

    def _make_adc(self) -> Device:
        identifier = "iio:device3"
        return Device(
            identifier,
            "cf-ad9361-lpc",
            self._scanned(False, "le:S12/16>>0"),
            debug=self._registers(identifier),
            buffer=_buffer_attributes(),
        )

    def _scanned(self, is_output: bool, scan_format: str) -> list[Channel]:
        return [
            Channel(
                f"voltage{index}",
                is_output,
                {
                    "calibphase": within("0.000000", -1.0, 1.0, show=_decimal),
                    "calibscale": within("1.000000", 0.0, 2.0, show=_decimal),
                    "sampling_frequency": self._rate,
                    "sampling_frequency_available": Attribute(
                        compute=lambda: f"{self._rate.read()} {int(self._rate.number()) // 8} "
                    ),
                },
                scan_index=index,
                scan_format=scan_format,
            )
            for index in (0, 1)
        ]

    def _oscillator(self, text: str, which: int) -> Attributes:
        low, high = LO_RANGE_HZ

        def tune() -> None:
            self._phases[which] = float(self._retuned.random())
            self._apply()

        return {
            "frequency": within(
                text,
                low,
                high,
                show=lambda hz: str(math.floor(round(hz / LO_STEP_HZ) * LO_STEP_HZ)),
                on_change=tune,
            ),
            "frequency_available": fixed(f"[{low} 1 {high}]"),
            "external": flag("0"),
            "powerdown": flag("0", self._apply),
        }

    def _rate_attribute(self) -> Attribute:
        def accept(value: str) -> str:
            rate_hz = int(float(value))
            if not self._min_rate_hz() <= rate_hz <= MAX_RATE_HZ:
                raise ValueError(value)
            return str(rate_hz)

        self._rate = Attribute(str(int(self.radio.rate_hz)), accept, on_change=self._apply)
        return self._rate

    def _min_rate_hz(self) -> int:
        fir = self.phy.channel("out", is_output=False).attributes["voltage_filter_fir_en"]
        return MIN_RATE_WITH_FIR_HZ if fir.read() == "1" else MIN_RATE_HZ

    def _registers(self, identifier: str) -> Attributes:
        """The status bits that GNU Radio and others poll: underflow and overflow."""

        def accept(value: str) -> str:
            words = [int(word, 0) for word in value.split()]
            if not 1 <= len(words) <= 2:
                raise ValueError(value)
            self._register[identifier] = words[0]
            if len(words) == 2 and words[0] == _STATUS_REGISTER:
                self._status[identifier] &= ~words[1]  # written ones clear
            return value

        def compute() -> str:
            is_status = self._register[identifier] == _STATUS_REGISTER
            return f"0x{self._status[identifier] if is_status else 0:X}"

        return {"direct_reg_access": Attribute("0", accept, compute)}

    def _accept_gain(self, value: str) -> str:
        if self._receiver["gain_control_mode"].read() != "manual":
            raise IioError(errno.EOPNOTSUPP)
        gain_db = float(value.split()[0]) if value else math.nan
        low, high = GAIN_RANGE_DB
        if not low <= gain_db <= high:
            raise ValueError(value)
        self._manual_gain_db = float(round(gain_db))
        return value

    def _show_gain(self) -> str:
        return f"{self.air.agc_gain_db(self.radio):.6f} dB"

    def _show_temperature(self) -> str:
        return str(round(1e3 * self.radio.crystal.temperature_c(self.air.clock.now_s())))

    def _path_rates(self, converter: str, path: str) -> str:
        rate_hz = int(self._rate.number())
        fir_hz = rate_hz * (4 if rate_hz < 20e6 else 2)
        return (
            f"BBPLL:{fir_hz * 32} {converter}:{fir_hz * 4} {path}2:{fir_hz * 4} "
            f"{path}1:{fir_hz * 2} {path}F:{fir_hz} {path}XSAMP:{rate_hz}"
        )

    @property
    def _receiver(self) -> Attributes:
        return self.phy.channel("voltage0", is_output=False).attributes

    def _apply(self) -> None:
        """Bring the radio into the state that the attributes describe."""
        if not self.devices:
            return  # still being built
        air, phy = self.air, self.phy
        attenuator = phy.channel("voltage0", is_output=True).attributes["hardwaregain"]
        rx_lo = phy.channel("RX_LO", is_output=True).attributes
        tx_lo = phy.channel("TX_LO", is_output=True).attributes
        is_awake = phy.attributes["ensm_mode"].read() == _FDD
        trim = NOMINAL_CRYSTAL_HZ / phy.attributes["xo_correction"].number()
        is_on = is_awake and tx_lo["powerdown"].read() == "0"
        is_manual = self._receiver["gain_control_mode"].read() == "manual"
        with air.lock:
            air.forget_unheard()
            now_s = air.clock.now_s()
            rate_hz = self._rate.number()
            if rate_hz != self.radio.rate_hz:
                self._end_bursts(now_s)
                self.radio.rate_hz = rate_hz
            self.radio.sending.change(
                now_s,
                TransmitState(
                    amplitude=amplitude_ratio_from_db(attenuator.number()) if is_on else 0.0,
                    carrier_hz=tx_lo["frequency"].number(),
                    trim=trim,
                    phase_cycles=self._phases[1],
                    tones=self._tones(),
                ),
            )
            self.radio.hearing.change(
                now_s,
                ReceiveState(
                    gain_db=self._manual_gain_db if is_manual else None,
                    carrier_hz=rx_lo["frequency"].number(),
                    trim=trim,
                    phase_cycles=self._phases[0],
                    is_looped_back=phy.debug["loopback"].read() == "1",
                ),
            )

    def _tones(self) -> tuple[Tone, ...]:
        tones = []
        for channel in self.dac.channels:
            if channel.scan_index is not None:
                continue
            values = channel.attributes
            amplitude = values["scale"].number()
            if values["raw"].read() == "1" and amplitude > 0.0:
                tones.append(
                    Tone(
                        frequency_hz=values["frequency"].number(),
                        amplitude=amplitude,
                        phase_rad=math.radians(values["phase"].number() / 1e3),
                        is_quadrature="_Q_" in channel.name,
                    )
                )
        return tuple(tones)

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
        blocks = self._blocks(self.adc, num_samples)
        return ReceiveBuffer(self, num_samples, blocks)

    def open_transmit(self, num_samples: int, *, is_cyclic: bool) -> TransmitBuffer:
        """Make ready to send blocks; what an earlier buffer left on the air ends.

        Raises:
            IioError: ENOMEM.
        """
        blocks = self._blocks(self.dac, num_samples)
        with self.air.lock:
            self._end_bursts(self.air.clock.now_s())
        return TransmitBuffer(self, num_samples, blocks, is_cyclic)

    def _blocks(self, device: Device, num_samples: int) -> int:
        blocks = self._kernel_buffers.get(device.identifier, _DEFAULT_BLOCKS)
        if not 1 <= num_samples * BYTES_PER_SAMPLE * blocks <= MAX_BUFFER_BYTES:
            raise IioError(errno.ENOMEM)
        return blocks

    def end_bursts(self) -> None:
        """Send no more samples; tones and leakage stay."""
        with self.air.lock:
            self._end_bursts(self.air.clock.now_s())

    def _end_bursts(self, now_s: float) -> None:
        for burst in self.radio.bursts:
            burst.end_s = min(burst.end_s, now_s)

    def note_overflow(self) -> None:
        """Samples were lost between two blocks."""
        self._status[self.adc.identifier] |= _OVERFLOW

    def note_underflow(self) -> None:
        """The converter ran out of samples between two blocks."""
        self._status[self.dac.identifier] |= _UNDERFLOW


def _whole(number: float) -> str:
    return str(int(number))


def _decimal(number: float) -> str:
    return f"{number:.6f}"


def _accept_fir(text: str) -> str:
    """The text of a filter file; only its length is of interest here."""
    taps = [line for line in text.splitlines() if line.lstrip()[:1] in set("-0123456789")]
    if not 16 <= len(taps) <= 128 or len(taps) % 16:
        raise ValueError(text)
    decimation = "4" if "DEC 4" in text else "2"
    return f"FIR Rx: {len(taps)},{decimation} Tx: {len(taps)},{decimation}"


def _buffer_attributes() -> Attributes:
    return {
        "data_available": fixed("0"),
        "length_align_bytes": fixed("8"),
        "watermark": within("2048", 1, 1 << 24, show=_whole),
    }
