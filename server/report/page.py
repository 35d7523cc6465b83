"""What a run leaves for people: summary.json, plots, and one HTML page that opens offline.

Everything is read from the run store, so a report can be written again at any time.
"""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.protocol.rounds import Vote
from radio.units import db_from_power_ratio
from server.air.uplink_use import uplink_use
from server.config.plan_config import PlanConfig
from server.config.run_config import RunConfig
from server.errors import ReportError
from server.files import to_json
from server.planning.privacy_statement import (
    assumed_receiver_noise,
    largest_sum_noise_std,
)
from server.report.columns import tabulated
from server.report.statements import (
    NO_HARDWARE,
    about_secrets,
    about_the_end,
    about_the_promise,
    about_what_was_heard,
    the_result,
)
from server.run.accounts import epsilon_spent
from server.store.records import (
    EvaluationRow,
    Outcome,
    RoundRow,
    best_evaluation,
    heard_and_true,
)
from server.store.run_store import STORE_FILE, RunStore

SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
PLOTS_FOLDER = "plots"
REFERENCE_FOLDER = "reference"


def reference_folder(folder: Path) -> Path:
    """Where the same run without privacy and noise lies."""
    return folder / REFERENCE_FOLDER


@dataclass(frozen=True, slots=True)
class ReportedRun:
    """What a report is made of; ``summary`` are the figures of the run."""

    folder: Path
    config: RunConfig
    rows: list[RoundRow]
    evaluations: list[EvaluationRow]
    summary: dict[str, Any]


def read_runs(folder: Path) -> list[ReportedRun]:
    """A run, and behind it its reference, if it has one.

    Raises:
        RunStoreError: one of them cannot be read.
    """
    reference = reference_folder(folder)
    has_reference = (reference / STORE_FILE).is_file()
    return [_read(folder), *([_read(reference)] if has_reference else [])]


def write_runs(runs: Sequence[ReportedRun]) -> None:
    """Write the reports of a run and its reference, as `read_runs` gives them.

    Raises:
        ReportError: something could not be written. The stores are as they were.
    """
    run, *references = runs
    for reference in references:
        _write_one(reference, None)
    _write_one(run, references[0] if references else None)


def _read(folder: Path) -> ReportedRun:
    store = RunStore.open_to_read(folder)
    try:
        config, rows, evaluations = store.config(), store.rounds(), store.evaluations()
        summary = summarise(store, config, rows, evaluations)
    finally:
        store.close()
    return ReportedRun(folder, config, rows, evaluations, summary)


def _write_one(run: ReportedRun, reference: ReportedRun | None) -> None:
    folder = run.folder
    runs = [run] if reference is None else [run, reference]
    try:
        # What real keys protect is for their owner, as the store and the keys are.
        mode = 0o600 if run.config.privacy.has_system_keys else None
        _write_atomically(folder / SUMMARY_FILE, to_json(run.summary) + "\n", mode)
        # Not before: matplotlib takes as long to load as all of a server.
        from server.report.plots import draw_plots

        plots = draw_plots(
            folder / PLOTS_FOLDER,
            run.config,
            run.rows,
            run.evaluations,
            None if reference is None else reference.evaluations,
            assumed=run.summary["assumed_receiver_noise"],
        )
        page = _page(run.config, [run.summary for run in runs], plots)
        _write_atomically(folder / REPORT_FILE, page, mode)
        if mode is not None:
            for path, _ in plots:
                path.chmod(mode)
    except OSError as error:
        raise ReportError(
            f"{error.filename or folder}: the report cannot be written "
            f"({error.strerror or error}). The result of the run is safe in "
            f"{folder / STORE_FILE}; mend the cause, then: pairzero report {folder}"
        ) from error


def summarise(
    store: RunStore,
    config: RunConfig,
    rows: Sequence[RoundRow],
    evaluations: Sequence[EvaluationRow],
) -> dict[str, Any]:
    """The figures of a run; None where a figure does not exist for it."""
    privacy, radio = config.privacy, config.radio
    last = evaluations[-1] if evaluations else None
    best = best_evaluation(evaluations)
    use = uplink_use(
        config.radio,
        config.federation.num_devices,
        config.optimizer.directions,
        len(rows),
        config.pluto.settling_s,
    )
    spent = epsilon_spent(store, config)
    return {
        "run_id": store.meta("run_id"),
        "complete": store.outcome is Outcome.COMPLETE,
        "outcome": store.outcome,
        "task": Path(config.task.name).stem,
        "source": store.meta("source"),
        "is_simulated": store.meta("is_simulated"),
        "waveform": None if radio.backend == "ideal" else radio.waveform,
        "num_devices": config.federation.num_devices,
        "rounds": len(rows),
        "rounds_planned": config.optimizer.rounds,
        "numbers_per_round": config.optimizer.directions,
        "difference": config.optimizer.difference,
        "forward_sweeps_per_device": config.optimizer.sweeps_per_round * len(rows),
        "accuracy_before": evaluations[0].accuracy if evaluations else None,
        "accuracy_after": last.accuracy if last else None,
        "loss_before": evaluations[0].loss if evaluations else None,
        "loss_after": last.loss if last else None,
        "evaluated_after_rounds": last.num_rounds if last else None,
        "best_accuracy": best.accuracy if best else None,
        "best_after_rounds": best.num_rounds if best else None,
        **_by_class(store),
        "epsilon": spent,
        "epsilon_budget": privacy.epsilon if privacy.enabled else None,
        "delta": privacy.delta if privacy.enabled else None,
        "privacy_unit": privacy.unit if privacy.enabled else None,
        "neighbouring_relation": privacy.relation if privacy.enabled else None,
        "noise_source": privacy.noise_source if privacy.enabled else None,
        "noise_multiplier": max((row.noise_multiplier for row in rows), default=None)
        if privacy.enabled
        else None,
        "access": config.access,
        "assumed_receiver_noise": _assumed_in_rounds(config, rows),
        "trusted_noise_fraction": privacy.trusted_noise_fraction if privacy.enabled else None,
        "missing_devices": privacy.missing_devices if privacy.enabled else None,
        "worth_rounds": store.meta("worth_rounds"),
        "worth_is_bound": store.meta("worth_is_bound"),
        "payload_symbols_per_device_per_round": use.payload_symbols,
        "pilot_symbols_per_device_per_round": use.pilot_symbols,
        "uplink_symbols_per_device_per_round": use.payload_symbols + use.pilot_symbols,
        "airtime_s_per_round": use.airtime_s,
        "on_air_s_per_device_and_round": use.on_air_s,
        **_errors_db(rows),
        "mean_speakers": _rounded(_mean([row.num_speakers for row in rows]), 3),
        "erasures": sum(row.num_erased for row in rows),
        "rounds_without_speakers": sum(not r.num_speakers and not r.is_skipped for r in rows),
        "rounds_skipped": sum(row.is_skipped for row in rows),
        "share_clipped": _rounded(
            _mean([row.share_clipped for row in rows if row.share_clipped is not None]), 5
        ),
        "parameter_digest": store.meta("parameter_digest"),
        "wall_s": _rounded(store.meta("wall_s"), 3),
        "rounds_per_s": _rounded(_mean([1.0 / row.wall_s for row in rows if row.wall_s]), 2),
        "peak_rss_mb": store.meta("peak_rss_mb"),
        "environment": store.meta("environment"),
        "bundle_digest": store.meta("bundle_digest"),
    }


def _assumed_in_rounds(config: PlanConfig, rows: Sequence[RoundRow]) -> float | None:
    """`assumed_receiver_noise` of rounds that were carried out."""
    value = 1.0 if config.vote is Vote.NONE else config.optimizer.vote_value
    return assumed_receiver_noise(
        config,
        largest_sum_noise_std(
            config.privacy.counted_noise_fraction,
            [row.artificial_noise_std for row in rows],
            [row.receiver_noise_std / value for row in rows],
            [row.num_speakers for row in rows],
        ),
    )


def _errors_db(rows: Sequence[RoundRow]) -> dict[str, float | None]:
    """NMSE of the means over the power of the true ones: in all, of privacy noise, of the radio.

    The first is of the estimates that the steps were made of; the other two of what was sent and
    of what was received. None where no truth is known, or nothing was sent.
    """
    heard, true = heard_and_true(rows)
    errors = {
        "nmse_db": math.fsum((a - b) ** 2 for a, b in zip(heard, true, strict=True)),
        "noise_nmse_db": math.fsum(row.squared_error_of_noise or 0.0 for row in rows),
        "radio_nmse_db": math.fsum(row.squared_error_of_radio or 0.0 for row in rows),
    }
    power = math.fsum(value**2 for value in true)
    return {name: _ratio_db(error, power) for name, error in errors.items()}


def _ratio_db(error: float, power: float) -> float | None:
    return round(db_from_power_ratio(error / power), 3) if error > 0 and power > 0 else None


def _by_class(store: RunStore) -> dict[str, Any]:
    """Right answers by class at the last evaluation, and what always saying one label would give.

    None where nothing was evaluated.
    """
    examples, correct = store.meta("class_examples"), store.meta("class_correct")
    if not examples or not correct:
        return {"majority_accuracy": None, "classes": None}
    labels = store.meta("task").label_words
    return {
        "majority_accuracy": round(max(examples) / sum(examples), 5),
        "classes": {
            label: {"examples": n, "correct": right}
            for label, n, right in zip(labels, examples, correct, strict=True)
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _write_atomically(path: Path, text: str, mode: int | None) -> None:
    """A reader sees the old file or the new one, never half of one; of a mode, where it has one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(0o666 if mode is None else mode)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #444; }
.note { background: #f5f2e8; border-left: 4px solid #b08900; padding: .6rem 1rem; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; }
"""


def _page(
    config: RunConfig, summaries: Sequence[dict[str, Any]], plots: Sequence[tuple[Path, str]]
) -> str:
    """One self-contained page: no link leaves it."""
    summary = summaries[0]
    first, *others = [_figure(path, caption) for path, caption in plots] or [""]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pairzero: {html.escape(str(summary["run_id"]))}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(str(summary["run_id"]))}</h1>
<p>{html.escape(config.description)}</p>
<p><strong>{html.escape(the_result(config, summary))}</strong></p>
{first}
{_table(summaries)}
{_notes(config, summary)}
{_class_table(summary)}
{"".join(others)}
<h2>Summary</h2><pre>{html.escape(to_json(summary))}</pre>
</body></html>
"""


def _figure(path: Path, caption: str) -> str:
    said, data = html.escape(caption), base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{said}" src="data:image/png;base64,{data}">'
        f"<figcaption>{said}</figcaption></figure>\n"
    )


def _table(summaries: Sequence[dict[str, Any]]) -> str:
    """A line a run."""
    heads, lines = tabulated(summaries)
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in cells) for cells in lines]
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def _class_table(summary: dict[str, Any]) -> str:
    """Results by class, beside the baseline that any model must beat."""
    if summary["classes"] is None:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{c['examples']}</td><td>{c['correct']}</td>"
        f"<td>{_share(c['correct'], c['examples'])}</td></tr>\n"
        for label, c in summary["classes"].items()
    )
    return f"""<h2>By class, after {summary["evaluated_after_rounds"]} rounds</h2>
<table><thead><tr><th>label</th><th>examples</th><th>right</th><th>share</th></tr></thead>
<tbody>{rows}</tbody></table>
<p>Always saying the commonest label would be right for {summary["majority_accuracy"]:.1%}. The best
evaluation was {summary["best_accuracy"]:.1%}, after {summary["best_after_rounds"]} rounds
(<code>pairzero save RUN OUT --best</code> takes its weights).</p>"""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _notes(config: RunConfig, summary: dict[str, Any]) -> str:
    notes = [NO_HARDWARE] if summary["is_simulated"] else []
    notes += about_the_promise(config, summary)
    if summary["outcome"] != Outcome.BUDGET_EXCEEDED:  # the promise says so above
        notes += about_the_end(summary)
    notes += about_secrets(config)
    notes += about_what_was_heard(summary)
    notes.append(
        "Noise and radio are the errors of the mean, over the power of the true one: by "
        "artificial noise, and by channel and receiver. SNR is that of one device at full scale "
        f"and unit gain, per sample; {_what_carries_a_number(config)} Airtime is that of a "
        "round, pilots and silence included, without the pauses of real radios."
    )
    return "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)


def _what_carries_a_number(config: PlanConfig) -> str:
    radio = config.radio
    if radio.waveform.adds_powers:
        bands = config.energy_waveform
        return (
            f"a number is a power in one of two bands of {bands.bandwidth_hz / 1e3:.0f} kHz of a "
            f"plateau of {bands.plateau_s * 1e3:.1f} ms, the numbers of a round side by side."
        )
    if not radio.waveform.superposes:
        return "a number is 16 bits of a packet, devices speak one after another."
    return f"a number is spread over {radio.payload_symbols} symbols."
