"""The sections of a configuration that are about radios."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radio.errors import RadioError
from radio.pluto.settings import PlutoSettings, Role
from radio.software_air.impairments import Impairments
from radio.units import power_ratio_from_db
from radio.virtual_pluto.server import Bench
from radio.waveforms import WaveformName
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform, Mapping
from radio.waveforms.energy_bands import USED_SHARE
from radio.waveforms.side_by_side import Packets, Slots, packets_of
from server.config.section import MAX_SYMBOLS, Section, check_count, check_within
from server.errors import ConfigurationError
from server.numeric import check_positive

_NARROW_RATE_HZ, _WIDE_RATE_HZ, _LONG_FROM_HZ = 1e6, 20e6, 8e6


class RadioSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The air.

    Attributes:
        backend: "loopback", the software air. "pluto": real radios, see `PlutoSection`.
            "virtual-pluto": the same driver on radios without hardware, see `VirtualPlutoSection`.
            "ideal": no radio at all, the exact mean of the scalars.
        waveform: "coherent": amplitudes add, the devices share carrier and clock. "energy": powers
            add, every radio has a carrier and a clock of its own. "vote" and "coherent_vote": the
            same for signs instead of numbers. "slotted": digital packets, each device's in a
            slot of its own.
        impairments: name of a set in `radio.software_air.impairments`: "ideal", "desk-cabled",
            "pluto-stock", "worst" or "uncorrected"; [impairments] changes single ones. Left out,
            what the waveform is for: ideal for the coherent one, pluto-stock for others.
        channel: of the loopback: "awgn", "rayleigh", "rician" or "multipath".
        rician_k_db: power of the line of sight over that of the echoes.
        delay_spread_s: of the echoes of "multipath", root mean square.
        snr_db: of the loopback: mean received power of one device at full scale over the noise
            power, per sample. The buffers of the energy waveform stay 12 dB below full scale, for
            their peaks.
        coherence_rounds: rounds for which a fading block keeps its gains; pilots are sent once
            per block, and a calibration holds as long.
        min_gain: devices whose estimated gain is below this amplitude stay silent.
        min_band_gain: the same where powers add, and the weak weigh less
            (`server.power.energy_waveform`).
        pilot_symbols: length of each device's pilot.
        payload_symbols: length of the sequence that carries one number.
        plateau_samples: energy waveform: period of a held buffer and length of a capture. Left
            out, 131,072, and 65,536 below 8 MS/s.
        energy_mapping: energy waveform: "signed" or "self_normalised".
        slots: of packets: "time", one device after another, or "frequency", all at once, each at a
            place of its own in the band.
        calibration_max_age_s: energy waveform: new pilots are sent after this time at the latest.
        carrier_hz: what the crystals' errors are parts of.
        max_amplitude: peak of a transmitted sample, 1 = full scale.
        sample_rate_hz: of all radios. Left out, 20 MS/s where all numbers or packets of a round
            stand side by side in frequency, and 1 MS/s elsewhere.
        keep_captures: rounds of which the receiver's captures, and those of the calibration before,
            are kept as SigMF in the run folder; for waveforms without a common clock.
        max_hold_s: longest that a Pluto holds one burst. A program that holds one longer is taken
            for hung: a guardian ends it and silences its radios (`radio.pluto.guardian`).
    """

    backend: Literal["loopback", "pluto", "virtual-pluto", "ideal"] = "loopback"
    waveform: WaveformName = WaveformName.COHERENT
    impairments: str = ""
    channel: Literal["awgn", "rayleigh", "rician", "multipath"] = "rayleigh"
    rician_k_db: float = 6.0
    delay_spread_s: float = 100e-9
    snr_db: float = 10.0
    coherence_rounds: int = 10
    min_gain: float = 0.3
    min_band_gain: float = 0.1
    pilot_symbols: int = 1024
    payload_symbols: int = 64
    plateau_samples: int | None = None
    energy_mapping: Mapping = Mapping.SIGNED
    slots: Slots = Slots.TIME
    calibration_max_age_s: float = 600.0
    carrier_hz: float = 915e6
    max_amplitude: float = 1.0
    sample_rate_hz: float | None = None
    keep_captures: tuple[int, ...] = ()
    max_hold_s: float = 10.0

    def __post_init__(self) -> None:
        """Check every value by itself; bands, offsets and noise are checked by the run."""
        check_within("radio.rician_k_db", self.rician_k_db, -60.0, 60.0)
        check_within("radio.delay_spread_s", self.delay_spread_s, 1e-9, 1e-5)
        check_within("radio.snr_db", self.snr_db, -60.0, 120.0)
        check_count("radio.coherence_rounds", self.coherence_rounds, 1)
        check_positive("radio.min_gain", self.min_gain)
        check_positive("radio.min_band_gain", self.min_band_gain)
        check_count("radio.pilot_symbols", self.pilot_symbols, 16, MAX_SYMBOLS)
        check_count("radio.payload_symbols", self.payload_symbols, 1, MAX_SYMBOLS)
        if self.plateau_samples is not None:
            check_count("radio.plateau_samples", self.plateau_samples, 1, MAX_SYMBOLS)
        if self.sample_rate_hz is not None:
            check_positive("radio.sample_rate_hz", self.sample_rate_hz)
        check_within("radio.max_amplitude", self.max_amplitude, 1e-6, 1.0)
        check_positive("radio.carrier_hz", self.carrier_hz)
        check_positive("radio.calibration_max_age_s", self.calibration_max_age_s)
        check_positive("radio.max_hold_s", self.max_hold_s)
        for round_index in self.keep_captures:
            check_count("radio.keep_captures", round_index, 0)

    @property
    def has_plutos(self) -> bool:
        """Whether samples pass the Pluto driver, on hardware or not."""
        return self.backend in ("pluto", "virtual-pluto")

    @property
    def impairments_name(self) -> str:
        """The set of impairments, also where it was left out."""
        home = "ideal" if self.waveform.needs_common_clock else "pluto-stock"
        return self.impairments or home

    @property
    def rate_hz(self) -> float:
        """The sample rate, also where it was left out."""
        if self.sample_rate_hz is not None:
            return self.sample_rate_hz
        return _WIDE_RATE_HZ if self.fills_the_band else _NARROW_RATE_HZ

    @property
    def fills_the_band(self) -> bool:
        """Whether what is sent stands side by side in all of the band."""
        is_side_by_side = not self.waveform.superposes and self.slots is Slots.FREQUENCY
        return self.waveform.adds_powers or is_side_by_side

    @property
    def period_samples(self) -> int:
        """The length of a plateau, also where it was left out."""
        if self.plateau_samples is not None:
            return self.plateau_samples
        return 1 << (17 if self.rate_hz >= _LONG_FROM_HZ else 16)

    def energy_waveform(self, num_scalars: int, *, are_votes: bool = False) -> EnergyWaveform:
        """The energy waveform of these radios."""
        return EnergyWaveform(
            sample_rate_hz=self.rate_hz,
            plateau_samples=self.period_samples,
            num_scalars=num_scalars,
            mapping=self.energy_mapping,
            are_votes=are_votes,
        )

    def coherent_waveform(self, num_devices: int, num_scalars: int) -> CoherentWaveform:
        """The coherent waveform of these radios."""
        return CoherentWaveform(
            num_devices=num_devices,
            pilot_symbols=self.pilot_symbols,
            payload_symbols=self.payload_symbols,
            num_scalars=num_scalars,
        )

    def packets(self, num_devices: int, num_scalars: int) -> Packets:
        """The packets of these radios."""
        return packets_of(
            self.slots,
            num_devices=num_devices,
            num_scalars=num_scalars,
            sample_rate_hz=self.rate_hz,
        )

    @property
    def noise_power(self) -> float:
        """N0 per complex sample: full scale through unit mean power gain arrives snr_db above."""
        return self.max_amplitude**2 * power_ratio_from_db(-self.snr_db)


class ImpairmentsSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What single values of the set ``radio.impairments`` are changed to; left out, the set's.

    Attributes: those of `radio.software_air.impairments.Impairments`, where equations, units and
        ranges stand.
    """

    crystal_ppm: float | None = None
    drift_ppm: float | None = None
    linewidth_hz: float | None = None
    timing_offset_s: float | None = None
    distance_ratio: float | None = None
    path_loss_exponent: float | None = None
    dac_bits: float | None = None
    pa_saturation_db: float | None = None
    iq_gain_db: float | None = None
    iq_phase_deg: float | None = None
    leakage_db: float | None = None
    dc_offset_db: float | None = None
    adc_bits: float | None = None
    adc_full_scale_db: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What was set, as `Impairments` takes it."""
        values: dict[str, float | None] = msgspec.structs.asdict(self)
        changed = {name: value for name, value in values.items() if value is not None}
        # A TOML number may be written without a point, or bits with one.
        return {
            name: int(value) if name.endswith("_bits") and float(value).is_integer() else value
            for name, value in changed.items()
        }


class PlutoSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The radios of ``radio.backend = "pluto"``, and how they are set (`radio.pluto.transceiver`).

    URIs are ip:ADDRESS, ip:ADDRESS:PORT, usb:BUS.DEVICE.INTERFACE or serial:SERIAL. With
    ``"virtual-pluto"`` they are left out, and the levels are those of the virtual radios.

    Attributes:
        devices: a URI for each device, in device order; none with ``pairzero serve``, where each
            host names its own (`pairzero-device join --radio`).
        receiver: the server's URI.
        tx_attenuation_db: of every transmitter while it sends.
        rx_gain_db: of the receiver.
        rf_bandwidth_hz: of the analogue filters; left out, the sample rate.
        xo_corrections: what each device's crystal is taken to be, Hz; empty leaves them alone.
        receiver_xo_correction: the receiver's; 0 leaves it alone.
        settling_s: waited for before every capture, after the last device has said that it holds
            its burst: a host says so before the radio has quite begun.
    """

    devices: tuple[str, ...] = ()
    receiver: str = ""
    tx_attenuation_db: float = 10.0
    rx_gain_db: float = 50.0
    rf_bandwidth_hz: float | None = None
    xo_corrections: tuple[int, ...] = ()
    receiver_xo_correction: int = 0
    settling_s: float = 0.05

    def check_radios(self, num_devices: int) -> None:
        """Return if there is a radio for all, or for the receiver alone, and none has two tasks.

        Raises:
            ConfigurationError: there is not.
        """
        if self.devices or not self.receiver:
            self.check_has_all(num_devices)
        everybody = [*self.devices, self.receiver]
        twice = {uri for uri in everybody if everybody.count(uri) > 1}
        if twice:
            raise ConfigurationError(
                f"pluto.devices: {sorted(twice)} is named twice; a radio has one task."
            )
        if self.xo_corrections and len(self.xo_corrections) != num_devices:
            raise ConfigurationError(
                f"pluto.xo_corrections: got {len(self.xo_corrections)}, wanted one for each of "
                f"federation.num_devices = {num_devices}, or none."
            )

    def check_has_all(self, num_devices: int) -> None:
        """Return if every device's radio is named, as it has to be where one program has them all.

        Raises:
            ConfigurationError: one is not.
        """
        if len(self.devices) != num_devices or not self.receiver:
            raise ConfigurationError(
                f"pluto.devices: got {len(self.devices)} URIs and receiver {self.receiver!r}, "
                f"wanted one for each of federation.num_devices = {num_devices} and one for the "
                "receiver. `pairzero-radio doctor` lists the radios that are there. With pairzero "
                "serve each host names its own, and pluto.devices stays empty."
            )

    def settings(self, uris: list[str], radio: RadioSection) -> list[PlutoSettings]:
        """How the receiver and then every device are set.

        Args:
            uris: of the receiver and then of every device.
            radio: the section of that name.

        Raises:
            ConfigurationError: a value that no Pluto can have.
        """
        check_within("pluto.settling_s", self.settling_s, 0.0, 1.0)
        capture_s = self.settling_s + radio.period_samples / radio.rate_hz
        if radio.max_hold_s < 2.0 * capture_s:
            raise ConfigurationError(
                f"radio.max_hold_s: got {radio.max_hold_s:g}, wanted at least twice the "
                f"{capture_s:g} s of a capture: a hold that outlasts it ends the program."
            )
        passed_hz = self.rf_bandwidth_hz or radio.rate_hz
        span_hz = USED_SHARE * radio.rate_hz if radio.fills_the_band else 0.0
        if passed_hz < span_hz:
            raise ConfigurationError(
                f"pluto.rf_bandwidth_hz: got {passed_hz:g}, and the numbers of a round fill "
                f"{span_hz:g} Hz at radio.sample_rate_hz = {radio.rate_hz:g}: the outer ones would "
                "not pass. Leave it out, or lower the rate."
            )
        num_devices = len(uris) - 1
        theirs = self.xo_corrections[:num_devices] or (0,) * num_devices
        trims = [self.receiver_xo_correction, *theirs]
        try:
            return [
                PlutoSettings(
                    uri=uri,
                    role=Role.TRANSMITTER if index else Role.RECEIVER,
                    sample_rate_hz=radio.rate_hz,
                    carrier_hz=radio.carrier_hz,
                    rf_bandwidth_hz=passed_hz,
                    tx_attenuation_db=self.tx_attenuation_db,
                    rx_gain_db=self.rx_gain_db,
                    xo_correction=trim or None,
                    settling_s=self.settling_s,
                    max_hold_s=radio.max_hold_s,
                )
                for index, (uri, trim) in enumerate(zip(uris, trims, strict=True))
            ]
        except RadioError as error:
            raise ConfigurationError(f"[pluto]: {error}") from error


class VirtualPlutoSection(Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The radios of ``radio.backend = "virtual-pluto"``; see `radio.virtual_pluto`.

    Crystals, mixers and the spread of the path losses are those of ``radio.impairments``.

    Attributes:
        clock: "stepped": time passes when somebody listens. "wall": as slow as hardware.
        path_loss_db: of the nearest device, from full scale of a transmitter at no attenuation to
            full scale of the receiver at a gain of 0 dB.
        noise_dbfs: of the receiver at a gain of 0 dB, in its sample rate.
    """

    clock: Literal["stepped", "wall"] = "stepped"
    path_loss_db: float = 50.0
    noise_dbfs: float = -105.0

    def bench(self, num_devices: int, impairments: Impairments, seed: int) -> Bench:
        """The receiver and the devices.

        Raises:
            ConfigurationError: a number that cannot be.
        """
        try:
            return Bench(
                num_radios=1 + num_devices,
                path_loss_db=self.path_loss_db,
                path_spread_db=impairments.path_spread_db,
                noise_dbfs=self.noise_dbfs,
                impairments=impairments,
                is_stepped=self.clock == "stepped",
                seed=seed,
            )
        except RadioError as error:
            raise ConfigurationError(f"[virtual_pluto]: {error}") from error
