"""pairzero: the command of the person who runs experiments."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from edge_runtime.protocol.errors import EdgeError
from radio.errors import RadioError
from server.config import RunConfig, available_presets, load_config, toml_value
from server.errors import ConfigurationError, ServerError

EXIT_BAD_INPUT = 2
EXIT_BUDGET_EXHAUSTED = 3
EXIT_BUDGET_EXCEEDED = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # what a shell reports for SIGPIPE
DEFAULT_PRESET = "snips"
NUM_COMPARED_TEXTS = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done; 2 a named error; 3 the privacy budget ended the run early; 4 more than the
    budget was spent; 130 interrupted.
    """
    parser = _build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=args.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        code: int = args.command(args)
        return code
    except (ServerError, EdgeError, RadioError) as error:
        print(f"pairzero: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except ModuleNotFoundError as error:
        print(
            f"pairzero: the library {error.name!r} is not installed. From pairzero's folder: "
            "pip install '.[server]', or '.[export]' for export.",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # The reader has gone (| head). Nothing more can be said, and the interpreter's own last
        # flush must not complain about it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        print("pairzero: stopped at once. What a run had recorded is kept.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairzero",
        description="Fine-tune OPT over the air: forward passes only, one scalar per round, "
        "an exact privacy budget.",
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="fine-tune in one process over the software radio",
        description="Presets: "
        + "; ".join(f"{name}: {text}" for name, text in available_presets().items()),
    )
    run.add_argument(
        "config", nargs="?", metavar="PRESET|FILE.toml",
        help=f"preset name or configuration file (default: {DEFAULT_PRESET})",
    )  # fmt: skip
    run.add_argument("--rounds", type=int, help="rounds of the run; privacy is planned for them")
    run.add_argument("--seed", type=int, help="seed of everything that is simulated")
    run.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help="change one setting, in TOML notation: --set radio.snr_db=0",
    )  # fmt: skip
    run.add_argument("--out", type=Path, help="run folder (default: runs/NAME-N)")
    run.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run")
    run.add_argument(
        "--compare", action="store_true",
        help="then run the same without privacy and noise, as a second line of the table; "
        "refused where real people are promised privacy",
    )  # fmt: skip
    run.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    run.set_defaults(command=_run)

    destroy_keys = commands.add_parser(
        "destroy-keys",
        help="end an interrupted run for good: delete its devices' private keys",
        description="Whoever has the keys of a run can take the noise off what it released. A run "
        "that has ended has none; an interrupted one keeps them to be resumed.",
    )
    destroy_keys.add_argument("run", type=Path, metavar="RUN", help="run folder")
    destroy_keys.set_defaults(command=_destroy_keys)

    export = commands.add_parser("export", help="turn a Hugging Face OPT into a bundle")
    export.add_argument("model", help="hub id (facebook/opt-125m) or local folder")
    export.add_argument("out", type=Path, help="folder of the bundle; must not exist")
    export.add_argument("--task", required=True, help="task name or task file")
    export.add_argument(
        "--head", default="label_words", choices=("label_words", "full_vocabulary"),
        help="loss over the task's words, or over the whole vocabulary",
    )  # fmt: skip
    export.add_argument(
        "--via", default="native", choices=("native", "optimum"),
        help="graph from the model's dimensions (default), or from the ecosystem's exporter",
    )  # fmt: skip
    export.set_defaults(command=_export)
    return parser


def _run(args: argparse.Namespace) -> int:
    # Imported here so that --help and mistakes in a configuration answer at once.
    from server import report
    from server.device_keys import DeviceKeys
    from server.experiment import Experiment
    from server.progress import ProgressPrinter
    from server.run_store import Outcome, look_at

    printer = ProgressPrinter(sys.stderr if args.json else sys.stdout)
    experiment = None
    if args.resume is not None:
        if args.config or args.overrides or args.rounds is not None or args.seed is not None:
            raise ConfigurationError(
                "--resume continues a run as it was planned; it takes no other settings."
            )
        folder = args.resume
        config, outcome = look_at(folder)
        if args.compare:
            _check_comparable(config)
        if outcome.is_final:
            # Nothing is left to do but to show it; and to delete keys that a crash left behind.
            DeviceKeys.destroy(folder)
            if outcome is Outcome.ABANDONED:
                raise ConfigurationError(
                    f"{folder}: the run was ended on request and its private keys are destroyed. "
                    "There is nothing to continue; start a new run."
                )
        else:
            experiment = Experiment.resume(folder)
    else:
        config = load_config(args.config or DEFAULT_PRESET, _overrides(args))
        if args.compare:
            _check_comparable(config)
        folder = args.out or _next_folder(config)
        experiment = Experiment.start(config, folder)

    complete = outcome is Outcome.COMPLETE if experiment is None else _drive(experiment, printer)
    summaries = [report.write_run(folder)]
    if complete and args.compare:
        reference = _reference_config(config)
        reference_folder = folder / "reference"
        second = _start_or_resume(reference, reference_folder)
        complete = _drive(second, printer, is_fresh_process=False)
        summaries.append(report.write_run(reference_folder))
        report.write_run(folder, reference_folder)

    if args.json:
        document = dict(summaries[0])
        if len(summaries) > 1:
            document["reference"] = summaries[1]
        print(report.to_json(document))
    else:
        printer.table(summaries, folder)
    if complete:
        return 0
    if summaries[-1]["outcome"] == Outcome.BUDGET_EXHAUSTED:
        print(
            "The privacy budget is spent: the run stopped by itself and stays silent. The report "
            "holds what was learnt so far.",
            file=sys.stderr,
        )
        return EXIT_BUDGET_EXHAUSTED
    if summaries[-1]["outcome"] == Outcome.BUDGET_EXCEEDED:
        print(
            f"More than the privacy budget was spent: epsilon {summaries[-1]['epsilon']:.3f} of "
            f"{summaries[-1]['epsilon_budget']:g}. Devices fell silent after the price of a round "
            "was paid, and their noise was missing. The run has ended and stays silent.",
            file=sys.stderr,
        )
        return EXIT_BUDGET_EXCEEDED
    compare = " --compare" if args.compare else ""
    print(f"Interrupted. Continue with: pairzero run --resume {folder}{compare}", file=sys.stderr)
    return EXIT_INTERRUPTED


def _drive(experiment: Any, printer: Any, is_fresh_process: bool = True) -> bool:
    """Run to the end, or until Ctrl-C asks for a stop between two rounds."""
    try:
        printer.header(experiment)
        with _stop_on_signal() as should_stop:
            complete: bool = experiment.run(
                printer.update, should_stop, is_fresh_process=is_fresh_process
            )
        return complete
    finally:
        experiment.close()


def _destroy_keys(args: argparse.Namespace) -> int:
    from server.device_keys import DeviceKeys
    from server.run_store import Outcome, RunStore

    store = RunStore.open(args.run)  # refused while a process is at work on it
    try:
        if not store.outcome.is_final:
            store.set_meta("outcome", Outcome.ABANDONED)
        found = DeviceKeys.destroy(args.run)
    finally:
        store.close()
    print(f"{args.run}: {'private keys destroyed' if found else 'no private keys there'}.")
    return 0


def _check_comparable(config: RunConfig) -> None:
    """Under a real promise nothing noiseless is computed from the data, let alone stored."""
    if config.privacy.has_system_keys:
        raise ConfigurationError(
            "--compare: the run promises privacy to the people in its data, and the reference "
            "would publish the same data without noise. Leave --compare out; to see what privacy "
            'costs, use public data and privacy.noise_source = "simulation".'
        )


def _start_or_resume(config: RunConfig, folder: Path) -> Any:
    from server.experiment import Experiment
    from server.run_store import STORE_FILE

    if (folder / STORE_FILE).exists():
        return Experiment.resume(folder)
    return Experiment.start(config, folder)


def _reference_config(config: RunConfig) -> RunConfig:
    """The same run, clip included, without privacy noise and without a radio."""
    import msgspec

    replace = msgspec.structs.replace
    return replace(
        config,
        description=f"{config.description} (reference: no privacy, no noise)",
        radio=replace(config.radio, backend="ideal"),
        privacy=replace(config.privacy, enabled=False),
    )


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    for item in args.overrides:
        name, equals, text = item.partition("=")
        if not equals or "." not in name:
            raise ConfigurationError(
                f"--set: got {item!r}, wanted SECTION.KEY=VALUE, as in --set radio.snr_db=0."
            )
        overrides[name.strip()] = toml_value(text.strip())
    if args.rounds is not None:
        overrides["optimizer.rounds"] = args.rounds
    if args.seed is not None:
        overrides["run.seed"] = args.seed
    return overrides


def _next_folder(config: RunConfig) -> Path:
    number = 1
    while (folder := Path("runs") / f"{Path(config.task.name).stem}-{number}").exists():
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


def _export(args: argparse.Namespace) -> int:
    from edge_runtime.task_spec import load_task
    from edge_runtime.tasks import read_examples
    from server.export import export_bundle

    task, folder = load_task(args.task)
    texts = [
        example.text
        for name in (task.train, task.validation)
        if name and (folder / name).is_file()
        for example in read_examples(folder / name, task)[:NUM_COMPARED_TEXTS]
    ]
    out = export_bundle(args.model, args.out, task=task, head=args.head, via=args.via, texts=texts)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: bundle for task {task.name!r}, {size_mb:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
