"""The radio of a run: every device's way out, the receiver, and the simulated channel between."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.uplink import (
    CoherentUplink,
    EnergyUplink,
    IdealUplink,
    ScalarBox,
    SlottedUplink,
    Uplink,
)
from radio.calibration import CalibrationLimits
from radio.channel_models import channel_from_name
from radio.impairments import Crystals, Impairments
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from server.air import Air, CoherentAir
from server.config import RunConfig
from server.energy_air import EnergyAir
from server.receiver import IdealReceiver, RadioReceiver, Receiver
from server.simulation import (
    ChannelSimulation,
    NoChannelSimulation,
    SoftwareChannelSimulation,
    simulation_rng,
)
from server.slotted_air import SlottedAir


@dataclass(frozen=True, slots=True)
class RadioLink:
    """Both ends of the air.

    Attributes:
        uplinks: each device's, in device order.
        air: the server's end.
        noise_symbols: silent samples of a frame, from which noise power is measured.
    """

    uplinks: tuple[Uplink, ...]
    air: Air
    noise_symbols: int


def build_radio_link(config: RunConfig) -> RadioLink:
    """The link of a configuration; everything that a simulation draws is drawn from its seed."""
    radio, seed = config.radio, config.run.seed
    num_devices, num_scalars = config.federation.num_devices, config.optimizer.directions

    def coherent_air(receiver: Receiver, simulation: ChannelSimulation) -> CoherentAir:
        return CoherentAir(
            receiver, simulation, num_devices, radio.max_amplitude, radio.coherence_rounds
        )

    if radio.backend == "ideal":
        box = ScalarBox()
        return RadioLink(
            uplinks=(IdealUplink(box),) * num_devices,
            air=coherent_air(IdealReceiver(box, num_devices), NoChannelSimulation()),
            noise_symbols=1,
        )
    impairments = config.impaired_by
    channel = channel_from_name(radio.channel, rician_k_db=radio.rician_k_db)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=radio.sample_rate_hz,
        noise_power=radio.noise_power,
        noise_rng=simulation_rng(seed, "noise/start", 0),
        channel_name="+".join([channel.name, *_label(config)]),
        impairments=impairments,
    )
    simulation = SoftwareChannelSimulation(
        medium,
        channel,
        path_gains=impairments.path_gains(num_devices),
        crystals=Crystals(
            impairments, radio.carrier_hz, num_devices, simulation_rng(seed, "crystals", 0)
        ),
        seed=seed,
        coherence_rounds=radio.coherence_rounds,
    )
    transmitters = [
        LoopbackTransceiver(medium, index, max_amplitude=radio.max_amplitude)
        for index in range(num_devices)
    ]
    listener = LoopbackTransceiver(medium, None)
    if radio.waveform.adds_powers:
        bands = radio.energy_waveform
        return RadioLink(
            uplinks=tuple(EnergyUplink(transmitter, bands) for transmitter in transmitters),
            air=EnergyAir(
                listener,
                simulation,
                num_devices,
                bands,
                pilot_amplitude=radio.max_amplitude,
                limits=CalibrationLimits(
                    max_rounds=radio.coherence_rounds, max_age_s=radio.calibration_max_age_s
                ),
            ),
            noise_symbols=bands.plateau_samples,
        )
    if not radio.waveform.superposes:
        packets = radio.slotted_waveform(num_scalars)
        return RadioLink(
            uplinks=tuple(SlottedUplink(transmitter, packets) for transmitter in transmitters),
            air=SlottedAir(listener, simulation, num_devices, packets),
            noise_symbols=1,
        )
    waveform = radio.coherent_waveform(num_devices, num_scalars)
    return RadioLink(
        uplinks=tuple(CoherentUplink(transmitter, waveform) for transmitter in transmitters),
        air=coherent_air(RadioReceiver(listener, waveform), simulation),
        noise_symbols=waveform.noise_symbols,
    )


def _label(config: RunConfig) -> list[str]:
    """What the air is called beside its channel; nothing where nothing is impaired."""
    return [] if config.impaired_by == Impairments() else [config.impairments_label]
