"""``pairzero run``: from a configuration or an interrupted run to a table and a report."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from edge_runtime.guard.keys import HostKeys
from edge_runtime.prefix_cache import PrefixCache
from radio.command_line import EXIT_INTERRUPTED
from server.commands.settings import overrides, preset_or_file
from server.config.learning import DEADLINE_S
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.files import to_json
from server.live.page import check_can_answer
from server.live.publisher import Publisher
from server.report import page as report
from server.report.statements import about_the_end
from server.report.terminal import ProgressPrinter
from server.run.continuation import plan_more_rounds
from server.run.experiment import Experiment, Progress
from server.store.records import Outcome
from server.store.run_store import STORE_FILE, look_at

EXIT_BUDGET_EXHAUSTED = 3
EXIT_BUDGET_EXCEEDED = 4
_EXIT_CODES: dict[str, int] = {
    Outcome.BUDGET_EXHAUSTED: EXIT_BUDGET_EXHAUSTED,
    Outcome.BUDGET_EXCEEDED: EXIT_BUDGET_EXCEEDED,
}


def run(args: argparse.Namespace) -> int:
    """Carry out a run, or what is left of one; returns the exit code."""
    check_page(args)
    printer = ProgressPrinter(sys.stderr if args.json else sys.stdout)
    folder, config, experiment = _resume(args) if args.resume is not None else _start(args)
    complete = experiment is None or _drive(experiment, printer, args.page)
    if complete and args.compare and look_at(folder)[1] is Outcome.COMPLETE:
        kept = None if experiment is None else experiment.prefixes
        reference = report.reference_folder(folder)
        second = _start_or_resume(_reference_config(config), reference, kept)
        _drive(second, printer, args.page, is_fresh_process=False)
    return _show(folder, printer, args)


def check_page(args: argparse.Namespace) -> None:
    """Return if there can be a page, where one is asked for; before anything is written.

    Raises:
        ServerError: there cannot.
    """
    if args.page is not None:
        check_can_answer(args.page)


def finish(
    experiment: Experiment, folder: Path, printer: ProgressPrinter, args: argparse.Namespace
) -> int:
    """Carry out a run that is started, and show it; returns the exit code."""
    _drive(experiment, printer, args.page)
    return _show(folder, printer, args)


def _show(folder: Path, printer: ProgressPrinter, args: argparse.Namespace) -> int:
    runs = report.read_runs(folder)
    summaries = [each.summary for each in runs]
    if args.json:
        document = dict(summaries[0])
        if len(summaries) > 1:
            document["reference"] = summaries[1]
        print(to_json(document))
    else:
        printer.table(summaries, folder)
    # Last: whatever keeps pictures from being written, the figures are on the screen by now.
    report.write_runs(runs)
    return _exit_code(summaries, folder, args)


def _exit_code(summaries: list[dict[str, Any]], folder: Path, args: argparse.Namespace) -> int:
    """What became of the run, said once more where it is not simply complete."""
    first, last = summaries[0], summaries[-1]
    outcome = first["outcome"] if first["outcome"] != Outcome.COMPLETE else last["outcome"]
    if outcome == Outcome.COMPLETE:
        return 0
    if outcome in _EXIT_CODES:
        print(*about_the_end({**first, "outcome": outcome}), file=sys.stderr)
        return _EXIT_CODES[outcome]
    compare = " --compare" if args.compare or len(summaries) > 1 else ""
    again = f"pairzero {args.again} --resume {folder}{compare}"
    print(f"Interrupted. Continue with: {again}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _start(args: argparse.Namespace) -> tuple[Path, RunConfig, Experiment]:
    config: RunConfig = args.asked_for
    if config.federation.deadline_s != DEADLINE_S:
        raise ConfigurationError(
            f"federation.deadline_s: got {config.federation.deadline_s:g}, and in one process "
            "nobody is waited for. Leave it out; `pairzero up` and `pairzero serve` read it."
        )
    if args.compare:
        _check_comparable(config)
    folder = folder_of(args)
    return folder, config, Experiment.start(config, folder, has_to_learn=not args.force)


def folder_of(args: argparse.Namespace) -> Path:
    """Where a new run goes; nothing is written yet.

    Raises:
        ConfigurationError: other files are there.
    """
    folder = _next_folder(preset_or_file(args)) if args.out is None else Path(args.out)
    _check_folder(args.out, folder)
    return folder


def _resume(args: argparse.Namespace) -> tuple[Path, RunConfig, Experiment | None]:
    changes = overrides(args)
    if args.config is not None or "run.seed" in changes:
        raise ConfigurationError(
            "--resume continues a run as it was planned; it takes no other configuration and seed."
        )
    if args.out is not None:
        raise ConfigurationError("--resume continues in the run's own folder; leave --out away.")
    folder = args.resume
    if changes:
        print(plan_more_rounds(folder, changes), file=sys.stderr)
    config, outcome = look_at(folder)
    if args.compare:
        _check_comparable(config)
    if outcome is Outcome.ABANDONED:
        HostKeys.destroy(folder)
        raise ConfigurationError(
            f"{folder}: the run was ended on request and its private keys are destroyed. "
            "There is nothing to continue; start a new run."
        )
    if outcome.is_final:
        # Nothing is left to do but to show it; and to delete keys that a crash left behind.
        HostKeys.destroy(folder)
        return folder, config, None
    return folder, config, Experiment.resume(folder)


def _drive(
    experiment: Experiment,
    printer: ProgressPrinter,
    page_port: int | None,
    is_fresh_process: bool = True,
) -> bool:
    """Run to the end, or until Ctrl-C asks for a stop between two rounds."""
    try:
        with Publisher(experiment, page_port) as publisher, _stop_on_signal() as should_stop:
            printer.header(experiment, publisher.url)

            def on_progress(progress: Progress) -> None:
                publisher.note(progress)
                printer.update(progress)

            return experiment.run(on_progress, should_stop, is_fresh_process=is_fresh_process)
    finally:
        experiment.close()


def _check_folder(asked: str | None, folder: Path) -> None:
    """A run folder is the run's alone: whatever else lies there stays as it is."""
    if asked == "":
        raise ConfigurationError("--out: got an empty name, wanted the name of a new folder.")
    if folder.is_dir() and not (folder / STORE_FILE).exists() and any(folder.iterdir()):
        raise ConfigurationError(
            f"{folder}: other files are there ({', '.join(sorted(os.listdir(folder))[:3])}, ...), "
            "wanted a new or an empty folder. Name another one with --out."
        )


def _check_comparable(config: RunConfig) -> None:
    """Under a real promise nothing noiseless is computed from the data, let alone stored."""
    if config.privacy.has_system_keys:
        raise ConfigurationError(
            "--compare: the run promises privacy to the people in its data, and the reference "
            "would publish the same data without noise. Leave --compare out; to see what privacy "
            'costs, use public data and privacy.noise_source = "simulation".'
        )


def _start_or_resume(config: RunConfig, folder: Path, prefixes: PrefixCache | None) -> Experiment:
    if (folder / STORE_FILE).exists():
        theirs, outcome = look_at(folder)
        if outcome.is_final and theirs.optimizer.rounds < config.optimizer.rounds:
            optimizer = config.optimizer
            more = {
                "optimizer.rounds": optimizer.rounds,
                "optimizer.learning_rate": optimizer.learning_rate,
                "optimizer.final_learning_rate_fraction": optimizer.final_learning_rate_fraction,
            }
            plan_more_rounds(folder, more)
        return Experiment.resume(folder, prefixes=prefixes)
    return Experiment.start(config, folder, prefixes=prefixes)


def _reference_config(config: RunConfig) -> RunConfig:
    """A configuration's run, clip included, without privacy noise and without a radio."""
    replace = msgspec.structs.replace
    return replace(
        config,
        description=f"{config.description} (reference: no privacy, no noise)",
        radio=replace(config.radio, backend="ideal"),
        privacy=replace(config.privacy, enabled=False),
    )


def _next_folder(named: str) -> Path:
    """Named after the configuration, because there may be many of one task."""
    number, name = 1, Path(named).stem
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the round; a second aborts."""
    requested = False

    def request(signum: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        print("\nStopping after this round ...", file=sys.stderr)

    previous = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
