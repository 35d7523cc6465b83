"""The radio of a run: every device's way out, the receiver, and the simulated channel between."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.uplink import IdealUplink, OverTheAirUplink, ScalarBox, Uplink
from radio.channel_models import channel_from_name
from radio.loopback import LoopbackTransceiver
from radio.medium import SoftwareMedium
from radio.waveforms.coherent import CoherentWaveform
from server.air import Air, CoherentAir
from server.config import RadioSection
from server.receiver import IdealReceiver, RadioReceiver, Receiver
from server.simulation import (
    ChannelSimulation,
    NoChannelSimulation,
    SoftwareChannelSimulation,
    simulation_rng,
)


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


def build_radio_link(
    radio: RadioSection, *, num_devices: int, num_scalars: int, seed: int
) -> RadioLink:
    """The link of a configuration's radio section.

    Args:
        radio: the section.
        num_devices: K.
        num_scalars: Q, numbers that each device sends in a round.
        seed: of everything that the simulated channel draws.
    """

    def coherent_air(receiver: Receiver, simulation: ChannelSimulation) -> CoherentAir:
        return CoherentAir(receiver, simulation, radio.max_amplitude, radio.coherence_rounds)

    if radio.backend == "ideal":
        box = ScalarBox()
        return RadioLink(
            uplinks=(IdealUplink(box),) * num_devices,
            air=coherent_air(IdealReceiver(box, num_devices), NoChannelSimulation()),
            noise_symbols=1,
        )
    waveform = CoherentWaveform(
        num_devices=num_devices,
        pilot_symbols=radio.pilot_symbols,
        payload_symbols=radio.payload_symbols,
        num_scalars=num_scalars,
    )
    channel = channel_from_name(radio.channel)
    medium = SoftwareMedium(
        num_devices=num_devices,
        sample_rate_hz=radio.sample_rate_hz,
        noise_power=radio.noise_power,
        noise_rng=simulation_rng(seed, "noise/start", 0),
        channel_name=channel.name,
    )
    simulation = SoftwareChannelSimulation(
        medium, channel, seed=seed, coherence_rounds=radio.coherence_rounds
    )
    transmitters = (
        LoopbackTransceiver(medium, index, max_amplitude=radio.max_amplitude)
        for index in range(num_devices)
    )
    return RadioLink(
        uplinks=tuple(OverTheAirUplink(transmitter, waveform) for transmitter in transmitters),
        air=coherent_air(RadioReceiver(LoopbackTransceiver(medium, None), waveform), simulation),
        noise_symbols=waveform.noise_symbols,
    )
