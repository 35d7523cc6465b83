"""The transceiver chip of a virtual Pluto, `ad9361-phy`: its attributes, and what follows."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable

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
    anything,
    fixed,
    flag,
    one_of,
    refused,
    whole,
    within,
)

MAX_RATE_HZ = 61_440_000
MIN_RATE_HZ = 25_000_000 // 12
MIN_RATE_WITH_FIR_HZ = 520_833
LO_RANGE_HZ = (325_000_000, 3_800_000_000)
LO_STEP_HZ = NOMINAL_CRYSTAL_HZ / 8_388_593
"""Of the fractional synthesizer: a frequency reads back up to half of it off."""

ATTENUATION_RANGE_DB = (0.0, 89.75)

_FDD = "fdd"
_MODES = ("sleep", "wait", "alert", _FDD, "pinctrl", "pinctrl_fdd_indep")
_GAIN_MODES = ("manual", "fast_attack", "slow_attack", "hybrid")
_CALIBRATIONS = ("auto", "manual", "manual_tx_quad", "tx_quad", "rf_dc_offs", "rssi_gain_step")
_GOVERNORS = ("nominal", "highest_osr")
_RX_PORTS = (
    "A_BALANCED", "B_BALANCED", "C_BALANCED", "A_N", "A_P", "B_N", "B_P", "C_N", "C_P",
    "TX_MONITOR1", "TX_MONITOR2", "TX_MONITOR1_2",
)  # fmt: skip
_TX_PORTS = ("A", "B")
_GAIN_TABLE = "<gaintable AD9361 type=FULL dest=3 start=1300000000 end=4000000000>"
_STEP_ERRORS = "lna_error: 0 0 0 0\nmixer_error: " + " ".join("0" * 16)
_STEP_ERRORS += "\ngain_step_calib_reg_val: 0 0 0 0 0"
_PRODUCT_ID_REGISTER, _PRODUCT_ID = 0x037, 0x0A


class Chip:
    """What is set, what is read back, and the state of the radio that follows.

    Args:
        air: that the radio is on.
        radio: its place there.
        on_change: called after something was set that the air has to know.
    """

    def __init__(self, air: VirtualAir, radio: Radio, on_change: Callable[[], None]) -> None:
        self._air = air
        self._radio = radio
        self._on_change = on_change
        self._retuned = np.random.default_rng([radio.index, 0x10])
        self._phases = [0.0, 0.0]
        self._manual_gain_db = float(GAIN_RANGE_DB[1])
        self._registers = {_PRODUCT_ID_REGISTER: _PRODUCT_ID}
        self._register = 0
        self._rx_fir, self._tx_fir = flag("0"), flag("0")
        self.rate = Attribute(str(int(radio.rate_hz)), self._accept_rate, on_change=on_change)
        of_receiver, of_transmitter = self._shared_by_inputs(), self._shared_by_outputs()
        self._receiver = self._receiver_attributes()
        self._transmitter = self._transmitter_attributes()
        self._oscillators = [self._oscillator(2_400_000_000, 0), self._oscillator(2_450_000_000, 1)]
        self._crystal = within("40000000", 39_992_000, 40_008_000, show=whole, on_change=on_change)
        self._mode = one_of(_FDD, _MODES, on_change)
        self._loopback = one_of("0", ("0", "1", "2"), on_change)
        aux_dac = {"raw": within("306", 0, 1023, show=whole), "scale": fixed("1.000000")}
        aux_adc = {"raw": fixed("1049"), "scale": fixed("0.305250"), "offset": fixed("57")}
        self.device = Device(
            "iio:device0",
            "ad9361-phy",
            [
                Channel("voltage0", False, self._receiver, shared=of_receiver),
                Channel("voltage0", True, self._transmitter, shared=of_transmitter),
                Channel("altvoltage0", True, self._oscillators[0], name="RX_LO"),
                Channel("altvoltage1", True, self._oscillators[1], name="TX_LO"),
                Channel("voltage2", False, aux_adc, shared=of_receiver),
                Channel("voltage2", True, aux_dac, shared=of_transmitter),
                Channel("voltage3", True, dict(aux_dac), shared=of_transmitter),
                Channel("temp0", False, {"input": Attribute(compute=self._show_temperature)}),
                Channel("out", False, {"voltage_filter_fir_en": self._both_firs()}),
            ],
            attributes=self._device_attributes(),
            debug=self._debug_attributes(),
        )

    # -- the state that the attributes describe

    @property
    def rate_hz(self) -> float:
        """The sample rate of both converters."""
        return self.rate.number()

    def sending(self, tones: tuple[Tone, ...]) -> TransmitState:
        """The transmitter's state, with what the converter gets while it has no samples."""
        oscillator = self._oscillators[1]
        is_on = self._is_awake and oscillator["powerdown"].read() == "0"
        attenuation_db = self._transmitter["hardwaregain"].number()
        return TransmitState(
            amplitude=amplitude_ratio_from_db(attenuation_db) if is_on else 0.0,
            carrier_hz=oscillator["frequency"].number(),
            trim=self._trim,
            phase_cycles=self._phases[1],
            tones=tones,
        )

    def hearing(self) -> ReceiveState:
        """The receiver's state."""
        oscillator = self._oscillators[0]
        return ReceiveState(
            gain_db=self._manual_gain_db if self._is_manual else None,
            carrier_hz=oscillator["frequency"].number(),
            trim=self._trim,
            phase_cycles=self._phases[0],
            is_looped_back=self._loopback.read() == "1",
            is_deaf=not self._is_awake or oscillator["powerdown"].read() == "1",
        )

    @property
    def _is_awake(self) -> bool:
        return self._mode.read() == _FDD

    @property
    def _is_manual(self) -> bool:
        return self._receiver["gain_control_mode"].read() == "manual"

    @property
    def _trim(self) -> float:
        return NOMINAL_CRYSTAL_HZ / self._crystal.number()

    # -- attributes

    def _receiver_attributes(self) -> Attributes:
        return {
            "gain_control_mode": one_of("slow_attack", _GAIN_MODES, self._on_change),
            "hardwaregain": Attribute(
                "71.000000 dB", self._accept_gain, self._show_gain, self._on_change
            ),
            "hardwaregain_available": fixed("[-3 1 71]"),
            "rssi": fixed("100.00 dB"),
            "rf_port_select": one_of("A_BALANCED", _RX_PORTS),
        }

    def _transmitter_attributes(self) -> Attributes:
        return {
            "hardwaregain": within(
                "-10.000000 dB",
                -ATTENUATION_RANGE_DB[1],
                -ATTENUATION_RANGE_DB[0],
                show=lambda db: f"{round(db * 4) / 4:.6f} dB",
                on_change=self._on_change,
            ),
            "hardwaregain_available": fixed("[0 250 89750]"),
            "rssi": fixed("0.00 dB"),
            "rf_port_select": one_of("A", _TX_PORTS),
        }

    def _shared_by_inputs(self) -> Attributes:
        return {
            **self._rates(),
            "filter_fir_en": self._rx_fir,
            "rf_bandwidth": within("18000000", 200e3, 56e6, show=whole),
            "rf_bandwidth_available": fixed("[200000 1 56000000]"),
            "gain_control_mode_available": fixed(" ".join(_GAIN_MODES)),
            "rf_port_select_available": fixed(" ".join(_RX_PORTS)),
            "bb_dc_offset_tracking_en": flag("1"),
            "rf_dc_offset_tracking_en": flag("1"),
            "quadrature_tracking_en": flag("1"),
        }

    def _shared_by_outputs(self) -> Attributes:
        return {
            **self._rates(),
            "filter_fir_en": self._tx_fir,
            "rf_bandwidth": within("18000000", 200e3, 40e6, show=whole),
            "rf_bandwidth_available": fixed("[200000 1 40000000]"),
            "rf_port_select_available": fixed(" ".join(_TX_PORTS)),
        }

    def _rates(self) -> Attributes:
        def available() -> str:
            return f"[{self._min_rate_hz()} 1 {MAX_RATE_HZ}]"

        return {
            "sampling_frequency": self.rate,
            "sampling_frequency_available": Attribute(compute=available),
        }

    def _device_attributes(self) -> Attributes:
        return {
            "calib_mode": one_of("auto", _CALIBRATIONS),
            "calib_mode_available": fixed(" ".join(_CALIBRATIONS)),
            # Of a crystal at the chip; a Pluto's is outside.
            "dcxo_tune_coarse": refused(errno.ENODEV, str),
            "dcxo_tune_coarse_available": fixed("[0 0 0]"),
            "dcxo_tune_fine": refused(errno.ENODEV, str),
            "dcxo_tune_fine_available": fixed("[0 0 0]"),
            "ensm_mode": self._mode,
            "ensm_mode_available": fixed(" ".join(_MODES)),
            "filter_fir_config": Attribute("FIR Rx: 0,0 Tx: 0,0", _accept_fir),
            "gain_table_config": anything(_GAIN_TABLE),
            "multichip_sync": refused(errno.EACCES, str),
            "rssi_gain_step_error": fixed(_STEP_ERRORS),
            "rx_path_rates": Attribute(compute=lambda: self._path_rates("ADC", "R")),
            "tx_path_rates": Attribute(compute=lambda: self._path_rates("DAC", "T")),
            "trx_rate_governor": one_of("nominal", _GOVERNORS),
            "trx_rate_governor_available": fixed(" ".join(_GOVERNORS)),
            "xo_correction": self._crystal,
            "xo_correction_available": fixed("[39992000 1 40008000]"),
        }

    def _debug_attributes(self) -> Attributes:
        return {
            "bist_prbs": one_of("0", ("0", "1", "2")),
            "bist_timing_analysis": fixed("0"),
            "bist_tone": anything("0"),
            "calibration_switch_control": anything("0"),
            "digital_tune": anything("0"),
            "direct_reg_access": Attribute("0", self._accept_register, self._show_register),
            "gaininfo_rx1": Attribute(compute=lambda: f"{int(self._gain_db())} 76 0 0 0 0 0 0"),
            "gaininfo_rx2": refused(errno.EAGAIN),
            "gpo_set": anything("0"),
            "initialize": anything("0"),
            "loopback": self._loopback,
            "multichip_sync": anything("0"),
        }

    def _oscillator(self, frequency_hz: int, which: int) -> Attributes:
        low, high = LO_RANGE_HZ

        def tune() -> None:
            self._phases[which] = float(self._retuned.random())
            self._on_change()

        return {
            "frequency": within(
                str(frequency_hz),
                low,
                high,
                show=lambda hz: str(math.floor(round(hz / LO_STEP_HZ) * LO_STEP_HZ)),
                on_change=tune,
            ),
            "frequency_available": fixed(f"[{low} 1 {high}]"),
            "external": flag("0"),
            "powerdown": flag("0", self._on_change),
            "fastlock_store": anything("0"),
            "fastlock_save": anything("0"),
            "fastlock_load": anything("0"),
            "fastlock_recall": refused(errno.EINVAL, str),  # until a profile was stored
        }

    def _both_firs(self) -> Attribute:
        both = (self._rx_fir, self._tx_fir)

        def accept(value: str) -> str:
            for own in both:
                own.write(value)
            return value

        return Attribute(accept=accept, compute=lambda: str(min(int(f.read()) for f in both)))

    # -- what is read and written

    def _accept_rate(self, value: str) -> str:
        rate_hz = int(float(value))
        if not self._min_rate_hz() <= rate_hz <= MAX_RATE_HZ:
            raise ValueError(value)
        return str(rate_hz)

    def _min_rate_hz(self) -> int:
        are_on = self._rx_fir.read() == self._tx_fir.read() == "1"
        return MIN_RATE_WITH_FIR_HZ if are_on else MIN_RATE_HZ

    def _accept_gain(self, value: str) -> str:
        if not self._is_manual:
            raise IioError(errno.EOPNOTSUPP)
        gain_db = float(value.split()[0]) if value else math.nan
        low, high = GAIN_RANGE_DB
        if not low <= gain_db <= high:
            raise ValueError(value)
        self._manual_gain_db = float(round(gain_db))
        return value

    def _gain_db(self) -> float:
        return self._air.agc_gain_db(self._radio)

    def _show_gain(self) -> str:
        return f"{self._gain_db():.6f} dB"

    def _show_temperature(self) -> str:
        return str(round(1e3 * self._radio.crystal.temperature_c(self._air.clock.now_s())))

    def _path_rates(self, converter: str, path: str) -> str:
        rate_hz = int(self.rate_hz)
        fir_hz = rate_hz * (4 if rate_hz < 20e6 else 2)
        return (
            f"BBPLL:{fir_hz * 32} {converter}:{fir_hz * 4} {path}2:{fir_hz * 4} "
            f"{path}1:{fir_hz * 2} {path}F:{fir_hz} {path}XSAMP:{rate_hz}"
        )

    def _accept_register(self, value: str) -> str:
        """An address, to be read next, or an address and what is to stand there, for nothing."""
        address, *content = (int(word, 0) for word in value.split())
        if not 0 <= address <= 0x3FF or len(content) > 1:
            raise ValueError(value)
        self._register = address
        if content:
            self._registers[address] = content[0] & 0xFF
        return value

    def _show_register(self) -> str:
        return f"0x{self._registers.get(self._register, 0):X}"


def _accept_fir(text: str) -> str:
    """The text of a filter file; only its length is of interest here."""
    taps = [line for line in text.splitlines() if line.lstrip()[:1] in set("-0123456789")]
    if not 16 <= len(taps) <= 128 or len(taps) % 16:
        raise ValueError(text)
    decimation = "4" if "DEC 4" in text else "2"
    return f"FIR Rx: {len(taps)},{decimation} Tx: {len(taps)},{decimation}"
