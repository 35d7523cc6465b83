"""A round over radios that share neither carrier nor clock, from the server's side.

What happens on the air is ordered by answers, not by clocks::

    learn_channel   everybody silent | capture | for each device: its pilot, held | capture | silent
    carry           plan: all make ready | capture of the silence | for each number: all hold it |
                    capture | ... | all fall silent

A capture lies anywhere inside its plateau (`radio.waveforms.energy`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol.rounds import (
    NumberHold,
    Participation,
    PilotHold,
    RoundPlan,
    SilenceOrder,
)
from radio.arrays import Complex64Array, Float64Array
from radio.errors import RadioCalibrationError
from radio.waveforms.energy import BandEnergies, EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, CalibrationLimits, Moment, calibrate
from radio.waveforms.energy_error_model import measured_sum_variance
from radio.waveforms.energy_intruders import find_intruder
from radio.waveforms.energy_offset import estimate_offset_hz
from server.air.base import Heard, HeldAir, check_devices, reports_of, those_who
from server.planning.round_plan import ChannelKnowledge, RoundPower
from server.power.energy_waveform import EnergyPowerPlan

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EnergyAir(HeldAir):
    """Powers of paired bands, held and captured.

    Attributes:
        waveform: bands and arithmetic.
        pilot_amplitude: of every pilot, over full scale.
        limits: how long a calibration holds.
        clock: monotonic seconds.
    """

    waveform: EnergyWaveform
    pilot_amplitude: float
    limits: CalibrationLimits
    clock: Callable[[], float] = time.monotonic

    def needs_channel(self, round_index: int, channel: ChannelKnowledge | None) -> bool:
        """When the calibration is too old, by rounds, by seconds or by temperature."""
        try:
            self.check_channel(round_index, channel)
        except RadioCalibrationError:
            return True
        return False

    def check_channel(self, round_index: int, channel: ChannelKnowledge | None) -> None:
        """Return if the calibration holds for this round.

        Raises:
            RadioCalibrationError: it does not, is of other devices, or there is none.
        """
        if not isinstance(channel, Calibration):
            raise RadioCalibrationError("calibration: there is none; send pilots first.")
        check_devices(channel.num_devices, self.num_devices)
        channel.check_fresh(self._moment(round_index), self.limits)

    def learn_channel(
        self, control: ControlChannel, run_id: str, round_index: int
    ) -> ChannelKnowledge:
        """One pilot after the other, as at the start of the round's block."""
        with self.keeping("calibration", round_index):
            return self._calibrate(control, run_id, round_index)

    def _calibrate(
        self, control: ControlChannel, run_id: str, round_index: int
    ) -> ChannelKnowledge:
        block_start = round_index - round_index % self.limits.max_rounds
        self.simulation.begin_sounding(block_start)
        control.broadcast(SilenceOrder(run_id, block_start))
        silence, pilots, offsets_hz = self._listen("silence"), {}, {}
        try:
            for device in range(self.num_devices):
                control.broadcast(PilotHold(run_id, block_start, device, self.pilot_amplitude))
                capture = self._capture(f"pilot of device {device}")
                pilots[device] = self.waveform.energies(capture)
                offsets_hz[device] = estimate_offset_hz(
                    self.waveform, capture, likely_hz=self.waveform.max_offset_hz
                )
        finally:
            control.broadcast(SilenceOrder(run_id, block_start))
        calibration = calibrate(
            self.waveform,
            num_devices=self.num_devices,
            silence=silence,
            pilots=pilots,
            amplitude=self.pilot_amplitude,
            made=self._moment(block_start),
        )
        return self._usable(calibration, offsets_hz)

    def _usable(self, calibration: Calibration, offsets_hz: Mapping[int, float]) -> Calibration:
        """The calibration without those who were not heard, or not where they should be."""
        room_hz = self.waveform.max_offset_hz
        for device, offset_hz in offsets_hz.items():
            if not calibration.is_heard(device):
                _logger.warning(
                    "round %d: the pilot of device %d was not heard; it stays silent until the "
                    "next calibration",
                    calibration.made.round_index,
                    device,
                )
            elif abs(offset_hz) > room_hz:
                # Its numbers would reach into the other band, and count the wrong way.
                calibration = calibration.without(device)
                _logger.warning(
                    "round %d: the carrier of device %d is %.1f kHz off, the bands have room for "
                    "%.1f kHz; it stays silent until the next calibration. Correct its crystal: "
                    "pairzero-radio calibrate says how",
                    calibration.made.round_index,
                    device,
                    offset_hz / 1e3,
                    room_hz / 1e3,
                )
        return calibration

    def carry_out(
        self,
        control: ControlChannel,
        plan: RoundPlan,
        power: RoundPower,
        on_spoken: Callable[[Sequence[int]], None],
    ) -> Heard:
        """The plan, and then a plateau for each number."""
        if not isinstance(power, EnergyPowerPlan):
            raise TypeError(f"power: got {type(power).__name__}, wanted an EnergyPowerPlan.")
        self.simulation.begin_payload(plan.round_index)
        control.broadcast(plan)
        if not those_who(Participation.READY, reports_of(control)):
            return Heard(())
        quiet = self.waveform.bin_powers(self._capture("silence"))
        silence = self.waveform.band_energies(quiet)
        arrival_power = (power.receive_scale * self.waveform.full_power_amplitude) ** 2
        spoke: set[int] = set()
        sums, counts, weights, variances = [], [], [], []
        try:
            for number in range(plan.num_directions):
                control.broadcast(NumberHold(plan.run_id, plan.round_index, number))
                speakers = those_who(Participation.TRANSMITTED, reports_of(control))
                bins = self.waveform.bin_powers(self._capture(f"number {number}"))
                plateau = self.waveform.band_energies(bins)
                self._tell_intruder(plan.round_index, number, bins, quiet, arrival_power)
                weight = math.fsum(power.weights[k] for k in speakers)
                share = self.waveform.estimate_sum(plateau, silence, arrival_power, weight)
                sums.append(power.full_range * share)
                variances.append(
                    measured_sum_variance(
                        self.waveform,
                        plateau,
                        silence,
                        arrival_power=arrival_power,
                        num_speakers=len(speakers),
                    )
                )
                counts.append(len(speakers))
                weights.append(weight)
                spoke.update(speakers)
        finally:
            control.broadcast(SilenceOrder(plan.run_id, plan.round_index))
            on_spoken(sorted(spoke))
        return Heard(
            speakers=tuple(sorted(spoke)),
            sums=tuple(sums),
            num_speakers=tuple(counts),
            total_weights=tuple(weights),
            sum_noise_std=power.full_range * math.sqrt(max(variances)),
        )

    def _capture(self, label: str) -> Complex64Array:
        return self.capture(self.waveform.plateau_samples, label)

    def _listen(self, label: str) -> BandEnergies:
        return self.waveform.energies(self._capture(label))

    def _tell_intruder(
        self,
        round_index: int,
        number: int,
        plateau: Float64Array,
        silence: Float64Array,
        arrival_power: float,
    ) -> None:
        """Into the log, if somebody else was on the air while a number was, and not before."""
        found = find_intruder(self.waveform, plateau, silence, arrival_power)
        if found is not None:
            _logger.warning(
                "round %d, number %d: somebody else was on the air: %s. Choose another carrier, or "
                "look for what sends there",
                round_index,
                number,
                found,
            )

    def _moment(self, round_index: int) -> Moment:
        return Moment(round_index, self.clock(), self.transceiver.temperature_c)
