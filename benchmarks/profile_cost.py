r"""What profiling costs a step, and how near its figures are to the truth.

Rounds are carried out twice each, with a meter around every phase and without, in turn, in one
process; the ratio is the median of those of neighbours. In processes of their own: the largest peak
of any phase beside that of a process whose peak is never set back; and what was predicted without
the model beside what was measured with it.

    python benchmarks/make_random_opt.py --size 125m --out MODEL
    pairzero export MODEL BUNDLE --task snips
    python benchmarks/profile_cost.py cost.jsonl --bundle BUNDLE --json cost.json
    python benchmarks/profile_cost.py quick.jsonl --quick        # the bundled model
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study import Study

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, open_bundle
from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.profiling.phases import PhaseMeter
from edge_runtime.profiling.profile import DeviceRounds, ProfileSettings
from edge_runtime.profiling.sensors import Sensors

SIZES = ((16, 64), (8, 64))
PAIRS, QUICK_PAIRS = 20, 10
NEVER = "import edge_runtime.profiling.memory as m; m.set_peak_back = lambda: None"


class NoMeter(PhaseMeter):
    """Measures nothing."""

    @contextlib.contextmanager
    def phase(self, name: str, **_: Any) -> Iterator[None]:
        """Whatever happens within."""
        yield


def cost(settings: ProfileSettings, num_pairs: int) -> dict[str, Any]:
    """Seconds of a round with and without a meter."""
    bundle = open_bundle(settings.bundle)
    store = ParameterStore.from_bundle(bundle, settings.trainable, settings.threads)
    forward = OnnxForward(bundle, store, intra_op_threads=settings.threads)
    energy = Sensors().energy_meter()
    with contextlib.closing(store), contextlib.closing(forward):
        metered, bare = (
            DeviceRounds(settings, bundle, store, forward, meter)
            for meter in (PhaseMeter(energy), NoMeter())
        )
        seconds: dict[str, list[float]] = {"metered": [], "bare": []}
        for number in range(1 + num_pairs):
            order = [("metered", metered), ("bare", bare)]
            for name, rounds in order if number % 2 else order[::-1]:
                begun_s = time.perf_counter()
                rounds.carry_out(number)
                if number:
                    seconds[name].append(time.perf_counter() - begun_s)
    ratios = [m / b for m, b in zip(seconds["metered"], seconds["bare"], strict=True)]
    return {
        "round_s": statistics.median(seconds["bare"]),
        "metered_to_bare": statistics.median(ratios),
        "pairs": num_pairs,
    }


def figures(settings: ProfileSettings, config: Path) -> dict[str, Any]:
    """Bytes: of the phases, of a process never set back, and as predicted."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.json"

        def ask(*arguments: object, before: str = "") -> dict[str, Any]:
            code = f"{before}\nimport sys\nfrom edge_runtime.cli import main\nsys.exit(main())"
            words = [sys.executable, "-c", code, "profile", *map(str, arguments), "--json", file]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            found: dict[str, Any] = json.loads(file.read_text())
            return found

        size = ("--batch", settings.batch, "--seq", settings.seq, "--threads", settings.threads)
        measured = ask(settings.bundle, *size, "--rounds", 2)
        whole = ask(settings.bundle, *size, "--rounds", 2, before=NEVER)
        predicted = ask("--dimensions", config, *size)
    return {
        "largest_phase": max(phase["peak_rss_bytes"] for phase in measured["phases"]),
        "never_set_back": whole["phases"][-1]["peak_rss_bytes"],
        "predicted": predicted["peak"],
        "phases": measured["phases"],
    }


def main() -> None:
    study = Study(__doc__, quick="the bundled model, few rounds")
    study.parser.add_argument("--bundle", type=Path, default=BUNDLED_MODEL_FOLDER)
    study.parser.add_argument("--threads", type=int, default=2)
    args = study.begin()
    bundle = BUNDLED_MODEL_FOLDER if args.quick else args.bundle
    sizes = SIZES[:1] if args.quick else SIZES
    for batch, seq in study.missing(sizes, lambda row: (row["batch"], row["seq"])):
        settings = ProfileSettings(bundle=bundle, batch=batch, seq=seq, threads=args.threads)
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.json"
            config.write_text(json.dumps(open_bundle(bundle).manifest.architecture))
            row = {
                "batch": batch, "seq": seq, "threads": args.threads,
                **cost(settings, QUICK_PAIRS if args.quick else PAIRS),
                **figures(settings, config),
            }  # fmt: skip
        study.add(row, f"{batch} x {seq}: {row['metered_to_bare']:.4f} of a bare round")
    for row in study.rows:
        print(
            f"{row['batch']} x {row['seq']}: a round of {row['round_s']:.3f} s takes "
            f"{row['metered_to_bare']:.4f} of it with a meter; largest phase "
            f"{row['largest_phase'] / 1e6:.1f} MB, never set back "
            f"{row['never_set_back'] / 1e6:.1f}, predicted {row['predicted'] / 1e6:.1f}"
        )
    study.finish(rows=study.rows)


if __name__ == "__main__":
    main()
