"""A round over radios that share neither carrier nor clock, from the server's side.

What happens on the air is ordered by answers, not by clocks::

    learn_channel   everybody silent | capture | for each device: its pilot, held | capture | silent
    carry           plan: all compute and make ready; meanwhile a capture of the silence |
                    all hold all their numbers | capture | all fall silent

A capture lies anywhere inside its plateau (`radio.waveforms.energy`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from edge_runtime.control.channel import ControlChannel
from edge_runtime.protocol.rounds import (
    NumbersHold,
    Participation,
    PilotHold,
    RoundPlan,
)
from radio.arrays import Complex64Array, Float64Array
from radio.errors import RadioCalibrationError
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.energy_calibration import Calibration, CalibrationLimits, Moment, calibrate
from radio.waveforms.energy_error_model import measured_sum_variances
from radio.waveforms.energy_intruders import find_intruder
from radio.waveforms.energy_offset import estimate_offset_hz
from server.air.base import Heard, HeldAir, OnSpoken, check_devices
from server.air.orders import ask, check_none_missing, have_done, silence_all, those_who
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
        self.wait_until_silent()
        silence_all(control, run_id, block_start)
        silence = self.waveform.energies(self._capture("silence"))
        pilots: dict[int, Float64Array] = {}
        offsets_hz: dict[int, float] = {}
        try:
            for device in range(self.num_devices):
                if not self._holds_pilot(
                    control, PilotHold(run_id, block_start, device, self.pilot_amplitude)
                ):
                    continue
                capture = self._capture(f"pilot of device {device}")
                pilots[device] = self.waveform.energies(capture)
                offsets_hz[device] = estimate_offset_hz(
                    self.waveform, capture, likely_hz=self.waveform.max_offset_hz
                )
        finally:
            ended = silence_all(control, run_id, block_start)
        calibration = calibrate(
            self.waveform,
            num_devices=self.num_devices,
            silence=silence,
            pilots=pilots,
            amplitude=self.pilot_amplitude,
            made=self._moment(block_start),
        )
        for device in ended:
            calibration = calibration.without(device)
        return self._usable(calibration, offsets_hz)

    def _holds_pilot(self, control: ControlChannel, order: PilotHold) -> bool:
        """Whether a device's pilot is to be heard, and nothing else; not of one that is away."""
        while order.device_index not in control.away_devices:
            if not have_done(control, order).missing or not control.lets_go:
                return True
            # Whoever went may be heard beside it; once more, without them.
            self.wait_until_silent()
        return False

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
        on_spoken: OnSpoken,
    ) -> Heard:
        """The plan, and then one plateau with all numbers."""
        if not isinstance(power, EnergyPowerPlan):
            raise TypeError(f"power: got {type(power).__name__}, wanted an EnergyPowerPlan.")
        self.simulation.begin_payload(plan.round_index)
        # Devices that compute are silent: what it sounds like costs no time of its own.
        with ThreadPoolExecutor(max_workers=1) as meanwhile:
            silence = meanwhile.submit(self._capture, "silence")
            answers = ask(control, plan)
        ready = those_who(Participation.READY, answers)
        if not ready:
            check_none_missing(answers, plan.round_index)
            return Heard(())
        quiet = self.waveform.bin_powers(silence.result())
        speakers: tuple[int, ...] = ()
        unknown: tuple[int, ...] = ()
        try:
            # Whoever did not answer the plan is not told to hold, and stays silent.
            hold = NumbersHold(plan.run_id, plan.round_index)
            answers = ask(control, hold, control.hosts_of(ready))
            unknown = answers.unknown_devices
            speakers = those_who(Participation.TRANSMITTED, answers)
            bins = self.waveform.bin_powers(self._capture("numbers"))
        finally:
            try:
                ended = silence_all(control, plan.run_id, plan.round_index)
            finally:
                on_spoken(speakers, unknown)
        if unknown or ended or not speakers:
            # A sum that somebody may be part of, or may not, is nobody's.
            return Heard(speakers, unknown=unknown)
        scales = {report.device_index: report.scale for report in answers.reports}
        weights = np.array([np.array(power.weights[k]) * scales[k] for k in speakers])
        return self._heard(plan.round_index, power, speakers, weights, bins, quiet)

    def _heard(
        self,
        round_index: int,
        power: EnergyPowerPlan,
        speakers: tuple[int, ...],
        weights: Float64Array,
        bins: Float64Array,
        quiet: Float64Array,
    ) -> Heard:
        """What a capture of numbers says beside one of the silence; weights [speakers, Q]."""
        plateau, silence = self.waveform.band_energies(bins), self.waveform.band_energies(quiet)
        levels, totals = np.array(power.levels), weights.sum(axis=0)
        # A number that nobody said is 0, and weighs what lets it stay so.
        is_said = totals > 0.0
        arrival_power = self.waveform.arrival_power(np.where(is_said, levels, 1.0))
        totals = np.where(is_said, totals, 1.0)
        self._tell_intruder(round_index, bins, quiet, arrival_power)
        shares = self.waveform.estimate_sums(plateau, silence, arrival_power, totals)
        counts = np.count_nonzero(weights, axis=0)
        variances = measured_sum_variances(
            self.waveform,
            plateau,
            silence,
            arrival_power=arrival_power,
            num_speakers=np.maximum(counts, 1),
        )
        return Heard(
            speakers=speakers,
            sums=tuple((power.full_range * np.where(is_said, shares, 0.0)).tolist()),
            num_speakers=tuple(counts.tolist()),
            total_weights=tuple(totals.tolist()),
            sum_noise_std=power.full_range * float(np.sqrt(variances[is_said].max())),
        )

    def _capture(self, label: str) -> Complex64Array:
        return self.capture(self.waveform.plateau_samples, label)

    def _tell_intruder(
        self,
        round_index: int,
        plateau: Float64Array,
        silence: Float64Array,
        arrival_power: Float64Array,
    ) -> None:
        """Into the log, if somebody else was on the air while the numbers were, and not before."""
        found = find_intruder(self.waveform, plateau, silence, arrival_power)
        if found is not None:
            _logger.warning(
                "round %d: somebody else was on the air: %s. Choose another carrier, or look for "
                "what sends there",
                round_index,
                found,
            )

    def _moment(self, round_index: int) -> Moment:
        return Moment(round_index, self.clock(), self.transceiver.temperature_c)
