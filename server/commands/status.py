"""``pairzero status``: how a run stands, also while it goes on."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import msgspec

from server.errors import RunStoreError
from server.files import to_json
from server.hosts.standing import HostStanding
from server.live.status import State, Status, status_file
from server.privacy.shown import shown_epsilon
from server.report import page as report
from server.store.records import STORE_FILE, Outcome


def status(args: argparse.Namespace) -> int:
    """Say how a run stands."""
    folder: Path = args.run
    now = _of_its_process(folder)
    if now is not None:
        print(to_json(msgspec.to_builtins(now, str_keys=True)) if args.json else in_words(now))
        return 0
    if not (folder / STORE_FILE).exists():
        raise RunStoreError(f"{folder}: no run is there. `pairzero list` shows those in a folder.")
    summary = report.read_runs(folder)[0].summary
    if args.json:
        print(to_json({"state": State.ENDED, "process": None, **summary}))
        return 0
    print(
        f"{folder}: {summary['outcome']}, {summary['rounds']} of {summary['rounds_planned']} rounds"
    )
    if summary["outcome"] == Outcome.INTERRUPTED:
        print("  no process carries it on: --resume does")
    return 0


def in_words(now: Status) -> str:
    """A few lines for a person."""
    lines = [
        f"{now.folder}: {now.state}, {now.rounds_done} of {now.rounds_planned} rounds, process "
        f"{now.process}",
        f"  {now.source}" + (f", {now.rounds_per_s:.1f} rounds/s" if now.rounds_per_s else ""),
    ]
    if now.evaluations:
        last = now.evaluations[-1]
        told = [f"after {last.rounds} rounds:"]
        if last.accuracy is not None:
            told.append(f"accuracy {last.accuracy:.1%},")
        spent = "none" if now.epsilon_budget is None else (
            f"{shown_epsilon(last.epsilon)} of {now.epsilon_budget:g}"
        )  # fmt: skip
        lines.append("  " + " ".join([*told, f"epsilon {spent}"]))
    lines += [f"  {_host(host, now)}" for host in now.hosts]
    if (r := now.receiver) is not None:
        warm = "" if r.temperature_c is None else f"{r.temperature_c:.1f} degrees C, "
        lines.append(
            f"  receiver: {warm}{r.num_captures} captures, {r.num_overflows} lost samples, "
            f"{r.overloaded_share:.3%} of samples overloaded"
        )
    if now.phases_s:
        whole = sum(now.phases_s.values()) or 1.0
        shares = sorted(now.phases_s.items(), key=lambda phase: -phase[1])
        lines.append("  time: " + ", ".join(f"{name} {s / whole:.0%}" for name, s in shares))
    return "\n".join(lines)


def _host(host: HostStanding, now: Status) -> str:
    where = "there" if host.is_here else "away"
    if host.away_s is not None:
        where += f" for {host.away_s} s"
    devices = []
    for device in host.devices:
        said = f"device {device}"
        if now.releases:
            said += f", {now.releases.get(device, 0)} releases"
        if device in now.spent:
            spent = now.spent[device]
            said += f", epsilon {shown_epsilon(math.inf if spent is None else spent)}"
        radio = host.radios.get(device)
        if radio is not None and radio.temperature_c is not None:
            said += f", radio at {radio.temperature_c:.1f} degrees C"
        if radio is not None and radio.num_underflows:
            said += f", {radio.num_underflows} underflows"
        devices.append(said)
    return f"{host.name}: {where} ({'; '.join(devices)})"


def _of_its_process(folder: Path) -> Status | None:
    """What the run's own process has said last; None where there is no such process."""
    try:
        found = msgspec.json.decode(status_file(folder).read_bytes(), type=Status)
        os.kill(found.process, 0)
    except (OSError, msgspec.DecodeError, OverflowError):
        return None
    return found
