r"""How long is a round on the air? Orders, captures, airtime and seconds, adding beside packets.

Eight numbers of K devices over virtual Plutos at the pace of the wall: every sample passes the real
driver, every capture waits 50 ms for the radio to settle, and every order is answered by all
devices some time later, as over a network of that delay. Devices have their numbers ready 100 ms
after the plan, in place of computing them, which is taken off again: what is left is what the air
costs a round. Calibrations are counted at one in ten rounds.

    python benchmarks/round_time.py times.jsonl          # some ten minutes, nothing beside it
    python benchmarks/round_time.py times.jsonl --show --json round_time.json
    python benchmarks/round_time.py quick.jsonl --quick  # one device, one delay

Every waveform and K is a line of the file. The radios of a bench are simulated on the processors
at hand, and 50 that send 20 million samples a second are more than those can do in time: what the
simulation has computed a round is told beside the seconds, and hardware has none of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from edge_runtime.control.channel import Answers, ControlChannel
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.orders import Answer, OrderMessage
from edge_runtime.protocol.rounds import (
    NumbersHold,
    PacketHold,
    Participation,
    PilotHold,
    RoundPlan,
    RoundReport,
    SilenceOrder,
    Vote,
)
from edge_runtime.uplink import Uplink
from edge_runtime.vote import said_plainly
from radio.arrays import Float64Array
from radio.self_closing import all_at_once
from radio.waveforms.energy_bands import USED_SHARE
from server.air.base import HeldAir
from server.air.link import RadioLink, build_radio_link
from server.air.uplink_use import uplink_use
from server.config.files import load_config
from server.config.run_config import RunConfig
from server.planning.round_plan import plan_round

WAVEFORMS = {
    "energy": {"radio.waveform": "energy"},
    "vote": {"radio.waveform": "vote"},
    "packets in time": {"radio.waveform": "slotted"},
    "packets in time, 20 MS/s": {"radio.waveform": "slotted", "radio.sample_rate_hz": 20e6},
    "packets in frequency": {"radio.waveform": "slotted", "radio.slots": "frequency"},
}
NUM_DEVICES = (1, 5, 20, 50)
DELAYS_S = (0.0, 0.002, 0.025)
ROUNDS_PER_BLOCK = 10
SETTLING_S = 0.05
COMPUTING_S = 0.1
ROUNDS = 5
SEED = 1


def config_of(waveform: str, num_devices: int) -> RunConfig:
    """The preset's radios, with the pauses that real ones take."""
    return load_config(
        "virtual-pluto",
        {
            "federation.num_devices": num_devices,
            "radio.coherence_rounds": ROUNDS_PER_BLOCK,
            # A bench of 50 is simulated slower than it would be; none of its radios hangs.
            "radio.max_hold_s": 120.0,
            "virtual_pluto.clock": "wall",
            "pluto.settling_s": SETTLING_S,
            "privacy.enabled": False,
            **WAVEFORMS[waveform],
        },
    )


class AnsweringDevices(ControlChannel):
    """Devices that have their numbers: orders reach all of them at once, answers come later.

    Args:
        uplinks: of the devices.
        numbers: of each [K, Q].
        vote: whether signs are said.
        delay_s: from what a device does to its answer.

    Attributes:
        num_orders: that were answered.
        on_air_s: of each device: from its hold to the silence after it.
    """

    def __init__(
        self, uplinks: Sequence[Uplink], numbers: Float64Array, vote: Vote, delay_s: float
    ) -> None:
        super().__init__("bench", {"bench": range(len(uplinks))})
        self._uplinks, self._numbers, self._vote = uplinks, numbers, vote
        self._delay_s = delay_s
        self._reports: list[RoundReport] = []
        self._since: dict[int, float] = {}
        self.num_orders = 0
        self.on_air_s = [0.0] * len(uplinks)

    def ask(
        self,
        message: OrderMessage,
        hosts: Sequence[str] | None = None,
        deadline_s: float | None = None,
    ) -> Answers:
        """Done by all, and answered."""
        self.num_orders += 1
        self._reports = []
        everybody = range(len(self._uplinks))
        match message:
            case RoundPlan():
                started = time.monotonic()
                for order in message.orders:
                    said = said_plainly(self._numbers[order.device_index].tolist(), self._vote)
                    did = self._uplinks[order.device_index].send_scalars(said, order, message)
                    self._report(message.round_index, order.device_index, did)
                time.sleep(max(0.0, COMPUTING_S - (time.monotonic() - started)))
            case NumbersHold():
                all_at_once([self._holding(k, message.round_index) for k in everybody])
            case PacketHold():
                self._silence([k for k in everybody if k != message.device_index])
                self._holding(message.device_index, message.round_index)()
            case PilotHold():
                self._silence([k for k in everybody if k != message.device_index])
                self._since[message.device_index] = time.monotonic()
                self._uplinks[message.device_index].hold_pilot(message.device_index, message)
            case SilenceOrder():
                self._silence(everybody)
        time.sleep(self._delay_s)
        answer = Answer("bench", 0, self.num_orders, "bench", tuple(self._reports))
        return Answers({"bench": answer})

    def _holding(self, device: int, round_index: int) -> Any:
        def hold() -> None:
            self._since[device] = time.monotonic()
            scale = self._uplinks[device].hold_numbers()
            self._report(round_index, device, Participation.TRANSMITTED, scale)

        return hold

    def _silence(self, devices: Sequence[int]) -> None:
        all_at_once([self._uplinks[k].fall_silent for k in devices])
        for device in devices:
            if device in self._since:
                self.on_air_s[device] += time.monotonic() - self._since.pop(device)

    def _report(
        self, round_index: int, device: int, did: Participation, scale: float = 1.0
    ) -> None:
        self._reports.append(RoundReport("bench", round_index, device, did, scale=scale))

    def send(self, data: bytes, hosts: Sequence[str]) -> None:
        """Nothing is sent: see `ask`."""

    def receive(self, timeout_s: float) -> bytes | None:
        """Nothing comes: see `ask`."""

    def close(self) -> None:
        """Nothing is held here."""


class CountedCaptures:
    """In place of captures that are kept."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, *_: Any) -> None:
        """One more."""
        self.count += 1

    @contextlib.contextmanager
    def of_round(self, *_: Any) -> Iterator[None]:
        """Nothing of it is kept."""
        yield


def measure(waveform: str, num_devices: int, delays_s: Sequence[float]) -> dict[str, Any]:
    """Opens the bench once; a calibration and some rounds for each delay."""
    config = config_of(waveform, num_devices)
    link, captures = build_radio_link(config), CountedCaptures()
    try:
        assert isinstance(link.air, HeldAir)
        air = dataclasses.replace(link.air, kept=captures)
        timed = [timed_rounds(config, link, air, delay_s) for delay_s in delays_s]
    finally:
        link.close()
    radio, numbers = config.radio, config.optimizer.directions
    use = uplink_use(radio, num_devices, numbers, ROUNDS_PER_BLOCK, SETTLING_S)
    # Packets in time: a symbol rate, an eighth of the sample rate, on each side of their centre.
    width_hz = USED_SHARE * radio.rate_hz if radio.fills_the_band else radio.rate_hz / 4.0
    return {
        "orders": timed[0]["orders"],
        "captures": timed[0]["captures"],
        "airtime_s": use.airtime_s,
        "bandwidth_hz": width_hz,
        "bandwidth_times_time": width_hz * use.airtime_s,
        "delays": timed,
    }


def timed_rounds(
    config: RunConfig, link: RadioLink, air: HeldAir, delay_s: float
) -> dict[str, float]:
    """What a round takes, its share of a calibration included."""
    rng, vote = np.random.default_rng(SEED), config.vote
    shape = (config.federation.num_devices, config.optimizer.directions)
    # Typical numbers are a seventh of the clip.
    control = AnsweringDevices(
        link.uplinks, rng.normal(0.0, 0.14 * config.optimizer.clip, shape), vote, delay_s
    )

    def cost_of(act: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        control.num_orders, control.on_air_s, air.kept.count = 0, [0.0] * shape[0], 0
        started, simulated_s = time.monotonic(), _processor_s(link)
        result = act()
        return result, {
            "round_s": time.monotonic() - started,
            "simulating_s": _processor_s(link) - simulated_s,
            "on_air_s": statistics.fmean(control.on_air_s),
            "orders": control.num_orders,
            "captures": air.kept.count,
        }

    channel, calibration = cost_of(lambda: air.learn_channel(control, "bench", 0))
    power = plan_round(config, None, 0, channel, link.noise_symbols).power
    rounds = []
    for index in range(ROUNDS):
        plan = RoundPlan(
            run_id="bench", round_index=index, direction_seed=index, direction_generator=GENERATOR,
            perturbation_scale=2.0**-10, clip=config.optimizer.clip, batch_size=1,
            access=config.access, frame_start_sample=0, orders=power.orders(),
            num_directions=shape[1], vote=vote,
        )  # fmt: skip
        act = functools.partial(air.carry, control, plan, power, lambda *_: None, lambda: None)
        heard, cost = cost_of(act)
        assert len(heard.speakers) == shape[0], heard
        rounds.append(cost | {"round_s": cost["round_s"] - COMPUTING_S})
    return {"delay_s": delay_s} | {
        name: round(statistics.median(cost[name] for cost in rounds) + value / ROUNDS_PER_BLOCK, 4)
        for name, value in calibration.items()
    }


def _processor_s(link: RadioLink) -> float:
    """What simulating the radios has taken of the processors so far."""
    assert link.served is not None
    fields = Path(f"/proc/{link.served.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'':25s}{'K':>3s}{'orders':>8s}{'captures':>9s}{'airtime':>10s}{'MHz s':>8s}"
          "   seconds a round (simulating) with answers after 0, 2, 25 ms; on air")  # fmt: skip
    for row in rows:
        result = row["result"]
        times = "".join(
            f"{timed['round_s']:8.3f} ({timed['simulating_s']:.2f})" for timed in result["delays"]
        )
        print(
            f"{row['waveform']:25s}{row['devices']:3d}{result['orders']:8.1f}"
            f"{result['captures']:9.1f}{1e3 * result['airtime_s']:7.2f} ms"
            f"{1e-6 * result['bandwidth_times_time']:8.4f}{times}"
            f"{1e3 * result['delays'][0]['on_air_s']:8.0f} ms"
        )


def main() -> None:
    study = Study(__doc__, quick="one device, one delay")
    args = study.begin()
    counts, delays_s = ((1,), DELAYS_S[:1]) if args.quick else (NUM_DEVICES, DELAYS_S)
    wanted = [(waveform, count) for count in counts for waveform in WAVEFORMS]
    for waveform, count in study.missing(wanted, lambda row: (row["waveform"], row["devices"])):
        result = measure(waveform, count, delays_s)
        row = {"waveform": waveform, "devices": count, "result": result}
        study.add(row, f"{waveform}, {count} devices: {result['delays']}")
    show(study.rows)
    study.finish(
        settling_s=SETTLING_S, rounds_per_calibration=ROUNDS_PER_BLOCK, rounds=ROUNDS,
        numbers=8, seed=SEED, cells=study.rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
