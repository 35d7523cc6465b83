r"""How far off is a sum over the air? Simulated error beside the formula, cell by cell.

A cell is a waveform, a number of devices K, an SNR and what the radios do to their signals. Numbers
are uniform on [-1, 1], so the power of a true sum is K/3; the eight numbers that the energy
waveform carries side by side are vectors of norm 0.4. SNR is that of one device at full power over
the noise, per sample; full power is full scale for the coherent waveform and 12 dB below it for the
energy waveform, whose buffers have peaks. It has 20 MS/s, and so have packets, in time and side by
side: the same SNR per sample is 13 dB less noise per hertz than at 1 MS/s. ``20kHz-2ms`` has
carriers up to 20 kHz and frames up to 2 ms apart and nothing else; calibrated perfectly, to 0.2 dB,
and from pilots like the presets. One set of cells has echoes, with a delay spread of 100 ns.

Every finished cell is a line of the results file, so an interrupted study goes on where it was::

    python benchmarks/nmse.py nmse.jsonl                     # some hours
    python benchmarks/nmse.py nmse.jsonl --show --json nmse.json --plot nmse.png
    python benchmarks/nmse.py quick.jsonl --quick            # a few cells, under a minute

A cell agrees if the squared error lies where the formula puts it with 99.9 % (`radio.measurement`);
the formula leaves out every impairment but carriers, timing and path loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from study import Study

from radio.errors import RadioError
from radio.measurement import Setting, measure_coherent, measure_energy, measure_slotted
from radio.recordings.drawing import Figure, FigureCanvasAgg
from radio.software_air.channel_models import channel_from_name
from radio.software_air.impairments import IMPAIRMENTS, Impairments
from radio.waveforms import WaveformName
from radio.waveforms.coherent import CoherentWaveform
from radio.waveforms.energy import EnergyWaveform
from radio.waveforms.side_by_side import Slots, packets_of

NUM_DEVICES = (1, 5, 10, 20)
SNRS_DB = (-10.0, 0.0, 10.0, 20.0, 30.0)
OTHER_PRESETS = ("ideal", "desk-cabled", "worst")
OFFSETS = "20kHz-2ms"
DELAY_SPREAD_S = 100e-9
CARRIER_HZ = 915e6
ALL_IMPAIRMENTS = {
    **IMPAIRMENTS,
    OFFSETS: Impairments(crystal_ppm=20e3 / (2e-6 * CARRIER_HZ), timing_offset_s=2e-3),
}
WIDE = {"rate_hz": 20e6, "plateau": 1 << 17, "numbers": 8}
PACKETS: dict[str, Any] = {"num_scalars": WIDE["numbers"], "sample_rate_hz": WIDE["rate_hz"]}
QUICK = {"rate_hz": 5e6, "plateau": 1 << 15, "numbers": 4}
COHERENT_PAYLOAD = 4096
ALPHA = 1e-3
SEED = 1

Cell = dict[str, Any]
_WIDE_CELL: Cell = {"waveform": WaveformName.ENERGY, **WIDE}


def cells(quick: bool) -> Iterator[Cell]:
    """Every cell, cheap ones first; calibration None is from pilots, a number an error in dB."""
    counts = (1, 5) if quick else NUM_DEVICES
    snrs = (0.0, 20.0) if quick else SNRS_DB
    bases = [{"devices": k, "snr_db": snr_db} for k in counts for snr_db in snrs]
    for base in bases:
        for name in ("ideal", "pluto-stock"):
            yield {"waveform": "coherent", **base, "impairments": name}
            for slots in Slots:
                yield {"waveform": "slotted", "slots": slots, **base, "impairments": name}
        yield {"waveform": "coherent_vote", **base, "impairments": "ideal"}
    frame = QUICK if quick else WIDE
    bands = [{"waveform": "energy", **frame, **base} for base in bases]
    for calibration in (0.0, 0.2):
        for energy in bands:
            yield {**energy, "impairments": OFFSETS, "calibration_db": calibration}
    for energy in bands:
        echoes = {"channel": "multipath", "impairments": OFFSETS, "calibration_db": 0.0}
        yield energy | echoes
    for energy in bands:
        if energy["devices"] == 20 and energy["snr_db"] >= 0:
            twice = {"plateau": 2 * frame["plateau"], "impairments": OFFSETS, "calibration_db": 0.0}
            yield energy | twice
    for name in (OFFSETS, "ideal") if quick else ("pluto-stock", OFFSETS, *OTHER_PRESETS):
        for energy in bands:
            yield {**energy, "impairments": name, "calibration_db": None}
    for energy in bands:
        yield energy | {"waveform": "vote", "impairments": "pluto-stock", "calibration_db": None}


def trials_of(cell: Cell, quick: bool) -> int:
    """A trial of the energy waveform has eight numbers and takes a hundred times as long."""
    if quick:
        return 20
    return 40 if WaveformName(cell["waveform"]).adds_powers else 200


def frame_of(cell: Cell) -> EnergyWaveform:
    """The energy waveform of a cell."""
    return EnergyWaveform(
        sample_rate_hz=cell["rate_hz"],
        plateau_samples=cell["plateau"],
        num_scalars=cell["numbers"],
        are_votes=cell["waveform"] == WaveformName.VOTE,
    )


def measure(cell: Cell, trials: int) -> dict[str, Any]:
    """The cell's figures, or why there are none."""
    setting = Setting(
        channel=channel_from_name(cell.get("channel", "awgn"), delay_spread_s=DELAY_SPREAD_S),
        impairments=ALL_IMPAIRMENTS[cell["impairments"]],
        impairments_name=cell["impairments"],
        snr_db=cell["snr_db"],
        num_trials=trials,
        seed=SEED,
        carrier_hz=CARRIER_HZ,
        alpha=ALPHA,
    )
    started = time.perf_counter()
    try:
        name = WaveformName(cell["waveform"])
        if name.needs_common_clock:
            frames = CoherentWaveform(num_devices=cell["devices"], payload_symbols=COHERENT_PAYLOAD)
            result = measure_coherent(frames, setting, signs=name.carries_signs)
        elif name.adds_powers:
            result = measure_energy(
                frame_of(cell),
                setting,
                num_devices=cell["devices"],
                calibration_error_db=cell["calibration_db"],
            )
        else:
            packets = packets_of(Slots(cell["slots"]), num_devices=cell["devices"], **PACKETS)
            result = measure_slotted(packets, setting, num_devices=cell["devices"])
    except RadioError as error:
        return {"failure": str(error)}
    figures = {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(result).items()
    }
    figures["agrees"] = abs(result.deviation_std) <= result.deviation_limit_std
    return figures | {"seconds": round(time.perf_counter() - started, 2)}


def settings() -> dict[str, Any]:
    """What no cell says of itself: everything else that its figures depend on."""
    waveforms = {
        "coherent": CoherentWaveform(num_devices=1, payload_symbols=COHERENT_PAYLOAD),
        "energy": frame_of(_WIDE_CELL),
        "slotted": packets_of(Slots.TIME, num_devices=1, **PACKETS),
    }
    return {
        "channel": "awgn",
        "delay_spread_s": DELAY_SPREAD_S,
        "carrier_hz": CARRIER_HZ,
        "numbers": "uniform on [-1, 1]; several side by side: vectors of norm 0.4",
        "waveforms": {name: dataclasses.asdict(each) for name, each in waveforms.items()},
        "impairments": {
            name: dataclasses.asdict(ALL_IMPAIRMENTS[name])
            for name in (OFFSETS, "pluto-stock", *OTHER_PRESETS)
        },
    }


def demodulation_shares() -> dict[str, float]:
    """CPU time of one capture's energies over the capture's airtime; medians of 20.

    Beside it, of numpy's transform alone, taken in turns.
    """
    shares = {}
    for name, waveform in (("1 MS/s", EnergyWaveform()), ("20 MS/s", frame_of(_WIDE_CELL))):
        capture = waveform.pilot(1.0, np.random.default_rng(0))
        whole, transform = [], []
        for _ in range(21):
            started = time.process_time()
            waveform.energies(capture)
            read = time.process_time()
            np.fft.fft(capture * waveform.window)
            whole.append((read - started) / waveform.plateau_s)
            transform.append((time.process_time() - read) / waveform.plateau_s)
        shares[name] = round(float(np.median(whole[1:])), 4)
        shares[f"{name}, transform alone"] = round(float(np.median(transform[1:])), 4)
    return shares


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'waveform':14s}{'impairments':20s}{'calibrated':>11s}{'ms':>7s}{'K':>4s}  "
          + "".join(f"{snr:>+16.0f} dB" for snr in SNRS_DB))  # fmt: skip

    def line_of(cell: Cell) -> tuple[Any, ...]:
        air = cell["impairments"] + ("+multipath" if "channel" in cell else "")
        return (
            cell["waveform"], air, cell.get("slots", cell.get("calibration_db", "-")),
            1e3 * cell.get("plateau", 0) / cell.get("rate_hz", 1.0), cell["devices"],
        )  # fmt: skip

    rows = sorted(rows, key=lambda row: [str(part).rjust(8) for part in line_of(row["cell"])])
    for (waveform, name, calibration, plateau_ms, count), group in itertools.groupby(
        rows, key=lambda row: line_of(row["cell"])
    ):
        by_snr = {row["cell"]["snr_db"]: row["result"] for row in group}
        calibrated = "pilots" if calibration is None else str(calibration)
        print(
            f"{waveform:14s}{name:20s}{calibrated:>11s}{plateau_ms:7.2f}{count:4d}  "
            + "".join(f"{_text(by_snr.get(snr)):>19s}" for snr in SNRS_DB)
        )
    print("simulated/predicted NMSE in dB; ! where the two are further apart than 99.9 % allow")
    print("votes: NMSE, and majorities that were heard wrong; slotted: erasures, by formula")


def _text(result: dict[str, Any] | None) -> str:
    if result is None:
        return ""
    if "failure" in result:
        return "nobody heard"
    if result.get("erased_share") is not None:
        return f"{result['erased_share']:.1%}/{result['predicted_erased_share']:.1%} "
    mark = " " if result["agrees"] else "!"
    if result.get("wrong_majorities") is not None:
        return f"{result['simulated_nmse_db']:.1f}, {result['wrong_majorities']:.1%}{mark}"
    return f"{result['simulated_nmse_db']:.1f}/{result['predicted_nmse_db']:.1f}{mark}"


def _panel_of(row: dict[str, Any]) -> tuple[Any, ...]:
    cell = row["cell"]
    return cell["waveform"], cell["impairments"], cell.get("calibration_db", "-")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Error over SNR for each number of devices: points simulated, lines predicted."""
    all_panels = [
        ("energy", OFFSETS, 0.0), ("energy", OFFSETS, 0.2), ("energy", "pluto-stock", None),
        ("coherent", "ideal", "-"),
    ]  # fmt: skip
    # A study that goes on later has no points of some.
    panels = [panel for panel in all_panels if any(_panel_of(row) == panel for row in rows)]
    figure = Figure(figsize=(3.7 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    colours = dict(zip(NUM_DEVICES, ("#0072B2", "#D55E00", "#009E73", "#000000"), strict=True))
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        waveform, name, calibration = panel
        for count, colour in colours.items():
            points = sorted(
                (row["cell"]["snr_db"], row["result"]) for row in rows
                if _panel_of(row) == panel and "channel" not in row["cell"]
                and row["cell"]["devices"] == count and "failure" not in row["result"]
                and row["cell"].get("plateau", WIDE["plateau"]) == WIDE["plateau"]
            )  # fmt: skip
            snr = [one for one, _ in points]
            axes.plot(snr, [r["predicted_nmse_db"] for _, r in points], "-", color=colour)
            axes.plot(
                snr, [r["simulated_nmse_db"] for _, r in points], "o", color=colour,
                label=f"K = {count}", markersize=4,
            )  # fmt: skip
        how = {"-": "", None: ", from pilots", 0.0: ", gains known"}
        known = how.get(calibration, f", gains known to {calibration} dB")
        axes.set_title(f"{waveform}, {name}{known}", fontsize=9)
        axes.set_xlabel("SNR of one device at full power (dB)")
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("NMSE of the sum (dB)")
    all_axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    study = Study(__doc__, quick="a few cells of few trials")
    study.parser.add_argument(
        "--trials",
        type=int,
        help="of a cell (default 40 where powers add, 200 elsewhere, quick 20)",
    )
    study.parser.add_argument("--plot", type=Path, help="a PNG")
    args = study.begin()
    wanted = [(cell, args.trials or trials_of(cell, args.quick)) for cell in cells(args.quick)]
    todo = study.missing(wanted, lambda row: (row["cell"], row["trials"]))
    for number, (cell, trials) in enumerate(todo, 1):
        row = {"cell": cell, "trials": trials, "result": measure(cell, trials)}
        study.add(row, f"{number}/{len(todo)} {cell} {_text(row['result'])}")
    show(study.rows)
    shares = demodulation_shares()
    for name, share in shares.items():
        print(f"reading a capture at {name}: {share:.1%} of its duration on one core")
    study.finish(
        seed=SEED,
        alpha=ALPHA,
        settings=settings(),
        demodulation_shares_of_airtime=shares,
        cells=study.rows,
    )
    if args.plot:
        plot(study.rows, args.plot)


if __name__ == "__main__":
    main()
