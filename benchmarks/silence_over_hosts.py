r"""How long is somebody heard after a server, a broker or a host has died in a hold?

Processes over a broker, a virtual Pluto for each of two hosts, and a further one that listens: when
it hears a burst, one of them is killed, or stopped, and the time is taken until nothing is heard.
A burst is held for 2.5 s at most here; a server that lives ends it after one.

    python benchmarks/silence_over_hosts.py silence.jsonl --json silence.json    # 40, 5 minutes
    python benchmarks/silence_over_hosts.py quick.jsonl --quick                  # 2
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from study import Study

from radio.virtual_pluto.process import VirtualPlutoProcess
from radio.virtual_pluto.server import Bench

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from radio_site import DEATHS, ENERGY, MAX_HOLD_S, SLOTTED, Site  # noqa: E402

TURNS = 5
WITHIN_S = MAX_HOLD_S + 3.0
GIVE_UP_S = 60.0
WAVEFORMS = {"energy": ENERGY, "slotted": SLOTTED}
BENCH = Bench(num_radios=4, path_loss_db=30.0, is_stepped=True)


def one_death(waveform: str, what: str) -> float | None:
    """Seconds from it to silence; None if there is none."""
    with VirtualPlutoProcess(BENCH) as radios, tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), radios.uris, WAVEFORMS[waveform])
        try:
            until_s = time.monotonic() + GIVE_UP_S
            while not site.is_loud():
                if time.monotonic() > until_s:
                    raise SystemExit(f"nobody holds anything: {site.said()}")
            DEATHS[what](site)
            died_s = time.monotonic()
            while site.is_loud():
                if time.monotonic() - died_s > GIVE_UP_S:
                    return None
            return time.monotonic() - died_s
        finally:
            site.close()


def main() -> None:
    study = Study(__doc__, quick="two deaths")
    args = study.begin()
    wanted = [
        (w, d, turn) for turn in range(TURNS) for w, d in itertools.product(WAVEFORMS, DEATHS)
    ]
    if args.quick:
        wanted = [("slotted", "server", 0), ("slotted", "host", 0)]
    for waveform, what, turn in study.missing(
        wanted, lambda row: (row["waveform"], row["what"], row["turn"])
    ):
        row: dict[str, Any] = {
            "waveform": waveform, "what": what, "turn": turn,
            "silent_after_s": one_death(waveform, what),
        }  # fmt: skip
        study.add(row, json.dumps(row))
    loud = [r for r in study.rows if r["silent_after_s"] is None or r["silent_after_s"] > WITHIN_S]
    for what in DEATHS:
        times = [r["silent_after_s"] for r in study.rows if r["what"] == what and r not in loud]
        if times:
            print(f"{what:16s} silent after {statistics.median(times):.2f} s (median of "
                  f"{len(times)}), {max(times):.2f} s at most")  # fmt: skip
    study.finish(max_hold_s=MAX_HOLD_S, within_s=WITHIN_S, loud=len(loud), rows=study.rows)
    if loud:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
