"""pairzero-device: the command on an edge computer."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.kernel import KERNEL_NAME, KERNEL_REASON
from edge_runtime.processors import usable_processors
from edge_runtime.protocol.errors import EdgeError
from radio import logs
from radio.command_line import (
    EXIT_PROBLEM,
    ShowVersion,
    add_log_options,
    answered,
    at_the_end_of_the_input,
)
from radio.errors import RadioError

_logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 60
_MOST_DEVICES = 256
_LONGEST_WAIT_S = 1e6
_PROBE = """
from edge_runtime.onnx_runtime import onnxruntime
print(onnxruntime.__version__)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 all well, 1 the machine has a problem, 2 a named error."""
    return answered(
        "pairzero-device",
        functools.partial(_carry_out, argv),
        (EdgeError, RadioError),
        installs="pip install '.[device]'",
    )


def _carry_out(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="pairzero-device", description="What runs on an edge computer."
    )
    parser.add_argument("--version", action=ShowVersion)
    add_log_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="can this machine be a device?")
    doctor.set_defaults(command=_doctor)

    selftest = commands.add_parser(
        "selftest", help="one round over the software radio with what is installed here"
    )
    selftest.add_argument("bundle", nargs="?", type=Path, default=BUNDLED_MODEL_FOLDER)
    selftest.add_argument("--task", help="task name or task file (default: the bundle's own)")
    selftest.add_argument("--devices", type=int, default=3, help="virtual devices")
    selftest.add_argument("--json", action="store_true")
    selftest.set_defaults(command=_selftest)

    _add_profile(commands)

    join = commands.add_parser("join", help="take part in the run of a server on this broker")
    join.add_argument(
        "broker", metavar="FILE.pairzero|NATS_URL",
        help="this host's credentials, which say where the broker is; or one on this machine",
    )  # fmt: skip
    join.add_argument("--name", help="of this host; credentials have it")
    join.add_argument(
        "--data", required=True, type=Path, metavar="FILE|FOLDER",
        help="label<TAB>text lines; of a folder each file is a device",
    )  # fmt: skip
    join.add_argument(
        "--bundle", type=Path, metavar="FOLDER",
        help="of the model (default: the bundled one, or that of the run, fetched from the broker)",
    )  # fmt: skip
    join.add_argument(
        "--policy", type=Path, metavar="FILE|FOLDER",
        help="what the owner of the data allows; of a folder the file NAME.toml of each device",
    )  # fmt: skip
    join.add_argument(
        "--state", type=Path, default=Path("pairzero-state"), metavar="FOLDER",
        help="this host's own ledger and keys (default: pairzero-state)",
    )  # fmt: skip
    join.add_argument(
        "--radio", action="append", default=[], metavar="[NAME=]URI",
        help="of a device's own radio, where the run is over real ones",
    )  # fmt: skip
    join.add_argument(
        "--xo-correction", action="append", default=[], metavar="[NAME=]HZ",
        help="what that radio's crystal is taken to be (pairzero-radio calibrate says)",
    )  # fmt: skip
    join.add_argument(
        "--tx-attenuation", type=float, default=0.0, metavar="DB",
        help="of these radios, at least, whatever the run says",
    )  # fmt: skip
    join.add_argument(
        "--prefix-cache", type=int, default=0, metavar="MB",
        help="of --state, to keep what frozen layers give for each prompt (default: 0, nothing)",
    )  # fmt: skip
    join.add_argument("--wait", type=float, default=60.0, metavar="S",
        help="for a server, at first and whenever it or the broker is gone",
    )  # fmt: skip
    # Of `pairzero up`, which starts its devices with them.
    join.add_argument("--simulated-keys", action="store_true", help=argparse.SUPPRESS)
    join.add_argument("--until-input-ends", action="store_true", help=argparse.SUPPRESS)
    join.set_defaults(command=_join)

    args = parser.parse_args(argv)
    logs.set_up(args.log_level, args.log_format)
    code: int = args.command(args)
    return code


def _add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its options are known without the libraries that it profiles."""
    profile = commands.add_parser(
        "profile",
        help="memory, time and energy of a step on this machine, phase by phase",
        description="Carries out rounds with random prompts. With --dimensions no model is needed: "
        "then it only says what a step would take.",
    )
    profile.add_argument("bundle", nargs="?", type=Path, default=BUNDLED_MODEL_FOLDER)
    profile.add_argument("--batch", type=int, default=16, help="examples of a pass")
    profile.add_argument("--seq", type=int, default=64, help="tokens of each")
    profile.add_argument(
        "--directions", type=int, default=1, metavar="Q", help="numbers of a round"
    )
    profile.add_argument("--difference", default="two_sided", choices=("one_sided", "two_sided"))
    profile.add_argument(
        "--trainable", nargs="+", metavar="PATTERN",
        help="tensors that move (default: all; of a prediction with --store int8, none)",
    )  # fmt: skip
    profile.add_argument(
        "--threads", type=int, default=usable_processors(), metavar="N", help="of a pass"
    )
    profile.add_argument("--rounds", type=int, default=5)
    profile.add_argument("--json", type=Path, metavar="FILE", help="valid after every phase")
    profile.add_argument("--plot", type=Path, metavar="FILE.svg", help="memory by phase")
    profile.add_argument(
        "--dimensions", metavar="125m|350m|1.3b|CONFIG.json", help="only predict, without a model"
    )
    profile.add_argument(
        "--store", default="float32", choices=("float32", "int16", "int8"),
        help="with --dimensions: the form of the weights, as of pairzero export",
    )  # fmt: skip
    profile.add_argument(
        "--force", action="store_true", help="even where more memory is predicted than is free"
    )
    profile.set_defaults(command=_profile)


def _profile(args: argparse.Namespace) -> int:
    # Imported here so that `doctor` still answers where onnxruntime does not load.
    from edge_runtime.profiling.command import run

    return run(args)


def _doctor(args: argparse.Namespace) -> int:
    checks = [_check_64_bit(), _check_kernel(), _check_onnxruntime(),
        _check_library("tokenizers"), _check_library("safetensors"), _check_bundle(),
    ]  # fmt: skip
    for passed, text in checks:
        print(f"{'ok     ' if passed else 'PROBLEM'}  {text}")
    if all(passed for passed, _ in checks):
        print("Next: pairzero-device selftest")
        return 0
    return EXIT_PROBLEM


def _check_64_bit() -> tuple[bool, str]:
    bits = 8 * struct.calcsize("P")
    hint = "" if bits == 64 else "; onnxruntime has no 32-bit wheel: install a 64-bit system"
    return bits == 64, f"{bits}-bit Python {sys.version.split()[0]}{hint}"


def _check_kernel() -> tuple[bool, str]:
    """Slow is not broken: both kernels give the same bits."""
    if KERNEL_NAME == "c":
        return True, "kernel in C"
    return True, f"kernel in numpy, the same bits but several times slower: {KERNEL_REASON}"


def _check_onnxruntime() -> tuple[bool, str]:
    """In a process of its own: some builds die with an illegal instruction on older ARM cores."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"onnxruntime: no answer in {_PROBE_TIMEOUT_S} s"
    except OSError as error:  # in an emulator, which starts no programs of its own architecture
        return False, f"onnxruntime: its probe could not start ({error.strerror or error})"
    if probe.returncode == 0:
        return True, f"onnxruntime {probe.stdout.strip()}"
    if probe.returncode < 0:
        return False, (
            f"onnxruntime dies with signal {-probe.returncode} on this processor: "
            "pip install 'onnxruntime>=1.22'"
        )
    reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
    return False, f"onnxruntime: {reason}; pip install '.[device]'"


def _check_library(name: str) -> tuple[bool, str]:
    try:
        return True, f"{name} {version(name)}"
    except PackageNotFoundError:
        return False, f"{name} is missing: pip install '.[device]'"


def _check_bundle() -> tuple[bool, str]:
    try:
        bundle = open_bundle(BUNDLED_MODEL_FOLDER)
    except EdgeError as error:
        return False, str(error)
    return True, f"bundled model intact, {bundle.manifest.architecture['num_parameters']:,} weights"


def _join(args: argparse.Namespace) -> int:
    # Imported here so that `doctor` still answers where onnxruntime or nats do not load.
    from edge_runtime.control.credentials import Credentials
    from edge_runtime.control.nats_link import NatsLink
    from edge_runtime.joining.host import join
    from edge_runtime.joining.host_settings import (
        HostSettings,
        by_device,
        devices_of,
        policies_of,
    )

    if not 0.0 < args.wait <= _LONGEST_WAIT_S:
        raise EdgeError(f"--wait: got {args.wait:g}, wanted seconds, 0 to {_LONGEST_WAIT_S:g}.")
    if args.prefix_cache < 0:
        raise EdgeError(f"--prefix-cache: got {args.prefix_cache}, wanted megabytes, 0 or more.")
    credentials = None
    if "://" not in args.broker:
        credentials = Credentials(Path(args.broker))
        if args.name not in (None, credentials.name):
            raise EdgeError(
                f"--name: got {args.name!r}, these credentials are {credentials.name!r}'s."
            )
        args.name = credentials.name
    if args.name is None:
        raise EdgeError("--name: of this host, is missing; or join with a file of credentials.")
    data = devices_of(args.data, args.name)
    settings = HostSettings(
        host=args.name,
        data=data,
        bundle=args.bundle,
        state=args.state,
        policies=policies_of(args.policy, data),
        radios=by_device("--radio", args.radio, data),
        xo_corrections={
            name: _hertz(text)
            for name, text in by_device("--xo-correction", args.xo_correction, data).items()
        },
        tx_attenuation_db=args.tx_attenuation,
        prefix_cache_mb=args.prefix_cache,
        may_simulate=args.simulated_keys,
        wait_s=args.wait,
        gone_s=args.wait,
    )
    is_over = threading.Event()
    if args.until_input_ends:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        at_the_end_of_the_input(is_over)
    link = NatsLink(args.broker, args.name, credentials=credentials)
    with contextlib.closing(link):
        join(link, settings, _say, is_over)
    return 0


def _say(text: str) -> None:
    """How it goes: for a person on standard output, for who collects logs among them."""
    if logs.is_json():
        logs.tell(_logger, text)
    else:
        print(text, flush=True)


def _hertz(text: str) -> int:
    if not text.isdigit():
        raise EdgeError(f"--xo-correction: got {text!r}, wanted a crystal's frequency in Hz.")
    return int(text)


def _selftest(args: argparse.Namespace) -> int:
    # Imported here so that `doctor` still answers where onnxruntime does not load.
    from edge_runtime.selftest import run_selftest

    if not 1 <= args.devices <= _MOST_DEVICES:
        raise EdgeError(f"--devices: got {args.devices}, wanted 1 to {_MOST_DEVICES}.")
    result = run_selftest(args.bundle, task_name=args.task, num_devices=args.devices)
    if args.json:
        print(json.dumps(msgspec.to_builtins(result)))
        return 0
    print(
        f"{result.num_devices} devices, {result.num_parameters:,} weights: said "
        f"{result.true_mean:+.4f}, heard {result.mean_estimate:+.4f}, restored bit for bit, "
        f"{result.round_s * 1e3:.0f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
