"""The radio of a run: every device's way out, the receiver, and the simulated channel between."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.uplink import (
    IdealUplink,
    ScalarBox,
    SendingGate,
    Uplink,
    uplink_with,
)
from radio.pluto.settings import PlutoSettings
from radio.recordings.sigmf import utc_now
from radio.self_closing import silence_each
from radio.software_air.channel_models import channel_from_name
from radio.software_air.impairments import Crystals, Impairments
from radio.software_air.loopback import LoopbackTransceiver
from radio.software_air.medium import SoftwareMedium
from radio.transceiver import Transceiver
from radio.virtual_pluto.process import VirtualPlutoProcess
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import CalibrationLimits
from radio.waveforms.side_by_side import Packets, PacketsSideBySide
from server.air.base import Air, CoherentAir, HeldAir, nobody_is_left
from server.air.channel_simulation import (
    ChannelSimulation,
    NoChannelSimulation,
    SoftwareChannelSimulation,
)
from server.air.energy import EnergyAir
from server.air.kept_captures import KeptCaptures
from server.air.receiver import IdealReceiver, RadioReceiver
from server.air.slotted import SideBySideAir, SlottedAir
from server.config.plan_config import PlanConfig
from server.config.run_config import RunConfig
from server.seeds import simulation_rng


@dataclass(frozen=True, slots=True)
class RadioLink:
    """Both ends of the air.

    Attributes:
        uplinks: each device's, in device order.
        air: the server's end.
        noise_symbols: silent samples of a frame, from which noise power is measured.
        served: what serves virtual radios, to be closed after both ends.
    """

    uplinks: tuple[Uplink, ...]
    air: Air
    noise_symbols: int
    served: VirtualPlutoProcess | None = None

    def keep_captures_in(self, run_folder: Path) -> None:
        """Where captures of chosen rounds go, if this kind of radio has any."""
        if isinstance(self.air, HeldAir):
            self.air.kept.put_into(run_folder)

    def close(self) -> None:
        """Silence every device, let the receiver go, end what served them. Idempotent.

        Raises:
            RadioNotSilentError: of those that are not known to be silent; they keep no other from
                being so.
        """
        try:
            silence_each([*(uplink.close for uplink in self.uplinks), self.air.close])
        finally:
            if self.served is not None:
                self.served.close()


@dataclass(frozen=True, slots=True)
class _Ends:
    """Open transceivers, and what brings the channel between them into its state."""

    transmitters: Sequence[Transceiver]
    listener: Transceiver
    simulation: ChannelSimulation
    served: VirtualPlutoProcess | None = None


def build_radio_link(config: RunConfig, noise_seed: int | str | None = None) -> RadioLink:
    """The link of a configuration; everything that a simulation draws is drawn from its seed.

    Args:
        config: of the run.
        noise_seed: of the noise of a software receiver instead (`LocalHost.software_noise_seed`).

    Raises:
        RadioError: a radio cannot be opened; those that could be are closed again.
    """
    if config.radio.backend == "ideal":
        return _ideal_link(config)
    if config.radio.has_plutos:
        ends = _open_plutos(config)
    else:
        ends = _software_ends(config, config.run.seed if noise_seed is None else noise_seed)
    return _link(config, ends)


def played_link(
    config: PlanConfig, noise_seed: int | str
) -> tuple[RadioLink, tuple[Transceiver, ...]]:
    """The server's end of a software air, and what plays each device's radio on it.

    Args:
        config: of the run.
        noise_seed: of the noise of the receiver.
    """
    ends = _software_ends(config, noise_seed)
    air = air_on(ends.listener, config, ends.simulation)
    return RadioLink((), air, noise_symbols(config)), tuple(ends.transmitters)


def listening_link(
    config: PlanConfig, receiver: PlutoSettings, wait_until_silent: Callable[[], None]
) -> RadioLink:
    """The server's end of an air where devices have radios of their own.

    Args:
        config: of the run.
        receiver: how the server's radio is set.
        wait_until_silent: see `HeldAir`.

    Raises:
        RadioError: it cannot be opened.
    """
    listener = _open_pluto(receiver, config.radio.max_amplitude)
    air = air_on(listener, config, NoChannelSimulation(), wait_until_silent=wait_until_silent)
    return RadioLink((), air, noise_symbols(config))


def _ideal_link(config: PlanConfig) -> RadioLink:
    box = ScalarBox()
    uplinks = (IdealUplink(box),) * config.federation.num_devices
    return RadioLink(uplinks=uplinks, air=ideal_air(config, box), noise_symbols=1)


def ideal_air(config: PlanConfig, box: ScalarBox) -> Air:
    """The server's end of the link without a radio, which adds exactly what is in a box."""
    num_devices = config.federation.num_devices
    return CoherentAir(
        IdealReceiver(box, num_devices),
        NoChannelSimulation(),
        num_devices,
        config.radio.max_amplitude,
        config.radio.coherence_rounds,
    )


def _link(config: PlanConfig, ends: _Ends) -> RadioLink:
    """The waveform of a configuration on open radios."""
    gate, waveform = SendingGate(), waveform_of(config)
    return RadioLink(
        uplinks=tuple(uplink_with(waveform, radio, gate) for radio in ends.transmitters),
        air=air_on(ends.listener, config, ends.simulation, gate),
        noise_symbols=noise_symbols(config),
        served=ends.served,
    )


def waveform_of(config: PlanConfig) -> CoherentWaveform | EnergyWaveform | Packets:
    """What both ends of the air agree on."""
    waveform = config.radio.waveform
    if waveform.adds_powers:
        return config.energy_waveform
    return config.coherent_waveform if waveform.superposes else config.packets


def air_on(
    listener: Transceiver,
    config: PlanConfig,
    simulation: ChannelSimulation,
    gate: SendingGate | None = None,
    wait_until_silent: Callable[[], None] = nobody_is_left,
) -> Air:
    """The server's end of the air.

    Args:
        listener: its radio.
        config: of the run.
        simulation: of the channel.
        gate: the devices', where they are in this process.
        wait_until_silent: see `HeldAir`.
    """
    radio, num_devices = config.radio, config.federation.num_devices
    if radio.waveform.needs_common_clock:
        return CoherentAir(
            RadioReceiver(listener, config.coherent_waveform),
            simulation,
            num_devices,
            radio.max_amplitude,
            radio.coherence_rounds,
            gate,
        )
    kept = KeptCaptures(
        radio.keep_captures,
        radio.carrier_hz,
        now=None if config.privacy.has_system_keys else utc_now,
    )
    if radio.waveform.adds_powers:
        return EnergyAir(
            listener,
            simulation,
            num_devices,
            kept,
            config.energy_waveform,
            pilot_amplitude=radio.max_amplitude,
            limits=CalibrationLimits(
                max_rounds=radio.coherence_rounds, max_age_s=radio.calibration_max_age_s
            ),
            wait_until_silent=wait_until_silent,
        )
    packets = config.packets
    common = (listener, simulation, num_devices, kept)
    if isinstance(packets, PacketsSideBySide):
        return SideBySideAir(*common, packets, wait_until_silent=wait_until_silent)
    return SlottedAir(*common, packets, wait_until_silent=wait_until_silent)


def noise_symbols(config: PlanConfig) -> int:
    """Silent samples of a frame, from which noise power is measured."""
    waveform = config.radio.waveform
    if waveform.adds_powers:
        return config.energy_waveform.plateau_samples
    return config.coherent_waveform.noise_symbols if waveform.superposes else 1


def _software_ends(config: PlanConfig, noise_seed: int | str) -> _Ends:
    """Loopback transceivers on a medium of their own."""
    radio, seed = config.radio, config.run.seed
    num_devices, impairments = config.federation.num_devices, config.impaired_by
    channel = channel_from_name(
        radio.channel, rician_k_db=radio.rician_k_db, delay_spread_s=radio.delay_spread_s
    )
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=radio.rate_hz,
        noise_power=radio.noise_power,
        noise_rng=simulation_rng(noise_seed, "noise/start", 0),
        channel_name="+".join([channel.name, *_label(config)]),
        impairments=impairments,
        carrier_hz=radio.carrier_hz,
    )
    simulation = SoftwareChannelSimulation(
        medium,
        channel,
        path_gains=impairments.path_gains(num_devices),
        crystals=Crystals(
            impairments, radio.carrier_hz, num_devices, simulation_rng(seed, "crystals", 0)
        ),
        seed=seed,
        noise_seed=noise_seed,
        coherence_rounds=radio.coherence_rounds,
    )
    transmitters = [
        LoopbackTransceiver(medium, index, max_amplitude=radio.max_amplitude)
        for index in range(num_devices)
    ]
    return _Ends(transmitters, LoopbackTransceiver(medium, None), simulation)


def _open_plutos(config: RunConfig) -> _Ends:
    """Plutos, the receiver first; of a process of their own if they are virtual."""
    radio, pluto, num_devices = config.radio, config.pluto, config.federation.num_devices
    with contextlib.ExitStack() as opened:
        served = None
        if radio.backend == "virtual-pluto":
            served = opened.enter_context(VirtualPlutoProcess(config.bench))
            uris = served.uris
        else:
            pluto.check_has_all(num_devices)
            uris = [pluto.receiver, *pluto.devices]
        listener, *transmitters = (
            opened.enter_context(_open_pluto(settings, radio.max_amplitude))
            for settings in pluto.settings(uris, radio)
        )
        opened.pop_all()
    return _Ends(transmitters, listener, NoChannelSimulation(), served)


def _open_pluto(settings: PlutoSettings, max_amplitude: float) -> Transceiver:
    # Here and not above: a run without Plutos needs none of their libraries.
    from radio.pluto.transceiver import PlutoTransceiver

    return PlutoTransceiver(settings, max_amplitude=max_amplitude)


def _label(config: PlanConfig) -> list[str]:
    """What the air is called beside its channel; nothing where nothing is impaired."""
    return [] if config.impaired_by == Impairments() else [config.impairments_label]
