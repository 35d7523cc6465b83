r"""What a network between costs a round: a plan and a result, both answered by all hosts.

Hosts are processes with everything that a device loads, but for a model, and an agent that does
nothing; broker, channel and hosts' ends are the product's own. Beside the empty round stands a bare
request and its reply through the same face, by turns, so that the ratio is of one machine in one
state. Plainly, and with credentials: TLS with certificates on both sides, and every message signed.
And how much memory such a process takes (VmHWM).

    python benchmarks/control_plane.py plane.jsonl --json control_plane.json    # two minutes, alone
    python benchmarks/control_plane.py quick.jsonl --quick                      # one host
"""

from __future__ import annotations

import contextlib
import datetime
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from study import Study

from edge_runtime.agent import DeviceAgent
from edge_runtime.control.credentials import Credentials
from edge_runtime.control.host_end import HostEnd
from edge_runtime.control.nats_link import NatsLink, Reply
from edge_runtime.control.over_nats import NatsChannel, NatsHost
from edge_runtime.joining import host as everything_that_a_device_loads
from edge_runtime.protocol.direction import GENERATOR
from edge_runtime.protocol.orders import OrderMessage, Report
from edge_runtime.protocol.rounds import (
    Access,
    BandLevels,
    Participation,
    RoundPlan,
    RoundReport,
    RoundResult,
    RunEnded,
    TransmitOrder,
)
from server.hosts.broker import Broker
from server.run.environment import peak_rss_mb

NUM_HOSTS = (1, 4, 8)
ROUNDS = 400
QUICK_ROUNDS = 20
RUN_ID = "plane"
NUM_DIRECTIONS = 8
_HOST = [sys.executable, __file__, "--host"]
_BARE = f"pz.{RUN_ID}.start"


class IdleAgent:
    """One device that has spoken as soon as it is told to."""

    run_id = RUN_ID

    def __init__(self, index: int) -> None:
        self.host, self.device_indices = f"host-{index}", (index,)

    def carry_out(self, message: OrderMessage) -> Sequence[Report]:
        """Nothing."""
        if not isinstance(message, RoundPlan):
            return []
        (index,) = self.device_indices
        return [RoundReport(RUN_ID, message.round_index, index, Participation.READY)]

    def close(self) -> None:
        """Nothing to let go of."""


def be_a_host(url: str, index: int) -> None:
    """The other process: orders, and bare requests, one after the other in one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert everything_that_a_device_loads
    with contextlib.closing(link_to(url, f"host-{index}")) as link:
        asked: queue.SimpleQueue[tuple[bytes, Reply] | None] = queue.SimpleQueue()

        def reply_all() -> None:
            while (one := asked.get()) is not None:
                data, reply = one
                reply(data)

        def take(subject: str, data: bytes, reply: Reply | None) -> None:
            if reply is not None:
                asked.put((data, reply))

        bare = threading.Thread(target=reply_all)
        bare.start()
        link.subscribe(f"{_BARE}.host-{index}", take)
        serving = NatsHost(link, RUN_ID, f"host-{index}")
        print("ready", flush=True)
        serving.serve(HostEnd(cast(DeviceAgent, IdleAgent(index))))
        asked.put(None)
        bare.join()
    print(peak_rss_mb(), flush=True)


def link_to(where: str, name: str) -> NatsLink:
    """To a broker's address, or with the credentials in a folder."""
    if "://" in where:
        return NatsLink(where, name)
    return NatsLink(None, name, credentials=Credentials(Path(where) / f"{name}.pairzero"))


@contextlib.contextmanager
def broker_for(number: int, is_secured: bool) -> Iterator[str]:
    """A broker, and how it is reached."""
    # What makes certificates is no part of a host, whose memory is measured.
    from server.hosts.credentials import write_credentials

    if not is_secured:
        with Broker() as broker:
            yield broker.url
        return
    with tempfile.TemporaryDirectory() as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        folder, names = Path(scratch) / "credentials", [f"host-{k}" for k in range(number)]
        now = datetime.datetime.now(datetime.UTC)
        write_credentials(folder, names, ["127.0.0.1"], port, now)
        with Broker(folder / "broker.conf"):
            yield str(folder)


@contextlib.contextmanager
def hosts(url: str, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes that are ready."""
    with contextlib.ExitStack() as opened:
        running = []
        for index in range(number):
            process = opened.enter_context(
                subprocess.Popen([*_HOST, url, str(index)], stdout=subprocess.PIPE, text=True)
            )
            opened.callback(process.kill)
            running.append(process)
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit("a host did not start")
        yield running


def plan_of(round_index: int, number: int) -> RoundPlan:
    """As large as one of the energy waveform is."""
    bands = BandLevels((0.5,) * (2 * NUM_DIRECTIONS), 12.0)
    return RoundPlan(
        run_id=RUN_ID,
        round_index=round_index,
        direction_seed=round_index,
        direction_generator=GENERATOR,
        perturbation_scale=2.0**-10,
        clip=12.0,
        batch_size=16,
        access=Access.SLOTTED,
        frame_start_sample=0,
        orders=tuple(TransmitOrder(k, 0.0, 0.0, 1.0, bands=bands) for k in range(number)),
        num_directions=NUM_DIRECTIONS,
    )


def measure(number: int, num_rounds: int, is_secured: bool) -> dict[str, Any]:
    """Seconds of rounds and of bare requests by turns, and the hosts' memory."""
    rounds_s, bare_s = [], []
    with broker_for(number, is_secured) as where, hosts(where, number) as running:
        with contextlib.closing(link_to(where, "server")) as link:
            channel = NatsChannel(link, RUN_ID, {f"host-{k}": (k,) for k in range(number)})

            def one_round(index: int) -> None:
                result = RoundResult(RUN_ID, index, index, (1,) * NUM_DIRECTIONS)
                for message in (plan_of(index, number), result):
                    if channel.ask(message).missing:
                        raise SystemExit("a host did not answer")

            def bare(index: int) -> None:
                if link.request(f"{_BARE}.host-{index % number}", b"r" * 100, 10.0) is None:
                    raise SystemExit("a host did not reply")

            for index in range(num_rounds + num_rounds // 10):
                taken = timed(one_round, index), timed(bare, index)
                if index >= num_rounds // 10:  # warm
                    rounds_s.append(taken[0])
                    bare_s.append(taken[1])
            channel.ask(RunEnded(RUN_ID, num_rounds))
        memory = [float(process.stdout.readline()) for process in running if process.stdout]
    return {
        "num_hosts": number,
        "num_rounds": num_rounds,
        "is_secured": is_secured,
        "round_ms": percentiles(rounds_s),
        "bare_ms": percentiles(bare_s),
        "ratio_of_medians": round(statistics.median(rounds_s) / statistics.median(bare_s), 2),
        "host_peak_rss_mb": round(max(memory), 1),
    }


def timed(act: Callable[[int], None], index: int) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    act(index)
    return time.perf_counter() - begun


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    ordered = sorted(1e3 * s for s in seconds)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 3),
    }


def main() -> None:
    if sys.argv[1:2] == ["--host"]:
        be_a_host(sys.argv[2], int(sys.argv[3]))
        return
    study = Study(__doc__, quick="one host, a few rounds")
    args = study.begin()
    num_rounds = QUICK_ROUNDS if args.quick else ROUNDS
    numbers = NUM_HOSTS[:1] if args.quick else NUM_HOSTS
    wanted = [(number, num_rounds, secured) for number in numbers for secured in (False, True)]
    for number, count, is_secured in study.missing(
        wanted, lambda row: (row["num_hosts"], row["num_rounds"], row["is_secured"])
    ):
        row = measure(number, count, is_secured)
        study.add(row, f"{number} hosts: {row['round_ms']['p50']} ms a round")
    for row in study.rows:
        how = ", credentials" * row["is_secured"]
        print(
            f"{row['num_hosts']} hosts{how}: empty round {row['round_ms']['p50']:.2f} ms "
            f"(p99 {row['round_ms']['p99']:.2f}), bare request {row['bare_ms']['p50']:.2f} "
            f"({row['bare_ms']['p99']:.2f}), {row['ratio_of_medians']} times; "
            f"a host peaks at {row['host_peak_rss_mb']} MB"
        )
    study.finish(rows=study.rows)


if __name__ == "__main__":
    main()
