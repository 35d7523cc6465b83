"""The pictures of a run: colour-blind safe, labelled with units, PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from radio.recordings.drawing import Axes, Figure, FigureCanvasAgg
from server.config.plan_config import PlanConfig
from server.planning.policy_preview import PolicyPreview
from server.planning.privacy_statement import assumption
from server.store.records import EvaluationRow, RoundRow, heard_and_true

# Okabe and Ito's palette: distinct for colour-blind readers and in grey print.
_BLUE, _ORANGE, _GREEN, _BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
_PALETTE = (_BLUE, _ORANGE, _GREEN, _BLACK, "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = ("-", "--", ":")
_SIZE_INCHES = (7.5, 3.6)


def draw_plots(
    folder: Path,
    config: PlanConfig,
    rows: Sequence[RoundRow],
    evaluations: Sequence[EvaluationRow],
    reference: Sequence[EvaluationRow] | None = None,
    *,
    assumed: float | None = None,
) -> list[tuple[Path, str]]:
    """Draw what there is to draw; returns (file, caption) in reading order."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    if any(row.loss is not None for row in evaluations):
        plots.append(_draw_learning(folder, evaluations, reference))
    if any(row.true_means is not None for row in rows):
        plots.append(_draw_estimates(folder, rows))
    if any(row.receiver_noise_std > 0 for row in rows):
        plots.append(_draw_noise(folder, rows))
        plots.append(_draw_channel(folder, config, rows))
    if any(row.epsilon is not None for row in evaluations):
        plots.append(_draw_epsilon(folder, config, evaluations, assumed))
    return plots


def draw_plan(path: Path, config: PlanConfig, previews: Sequence[PolicyPreview]) -> None:
    """Noise, spending and speakers of every policy over the rounds, in one picture."""
    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    FigureCanvasAgg(figure)
    own, total, epsilon, speakers = (figure.add_subplot(2, 2, i + 1) for i in range(4))
    for index, preview in enumerate(previews):
        colour, style = _PALETTE[index % len(_PALETTE)], _STYLES[index // len(_PALETTE)]
        rounds = range(len(preview.num_speakers))
        heard = np.where(preview.num_speakers > 0, preview.mean_noise_std, np.nan)
        drawn: dict[str, Any] = {"color": colour, "linestyle": style, "label": preview.name}
        if np.any(preview.own_noise_std):
            own.plot(rounds, np.where(np.isnan(heard), np.nan, preview.own_noise_std), **drawn)
        total.plot(rounds, heard, **drawn)
        epsilon.plot([0, *preview.checkpoints], [0.0, *preview.epsilon], **drawn)
        speakers.plot(rounds, preview.num_speakers, **drawn)
    _label(own, "round", "privacy noise on a mean (std)")
    _label(total, "round", "all noise on a mean (std)")
    _label(epsilon, "round", f"epsilon spent (delta {config.privacy.delta:g})")
    _label(speakers, "round", "devices that speak")
    own.set_ylim(bottom=0)
    total.set_yscale("log")
    if config.privacy.enabled:
        epsilon.axhline(config.privacy.epsilon, color=_BLACK, linestyle="--", linewidth=0.8)
    total.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw_learning(
    folder: Path, evaluations: Sequence[EvaluationRow], reference: Sequence[EvaluationRow] | None
) -> tuple[Path, str]:
    figure, (left, right) = _figure(2)
    curves = [(evaluations, "this run", _BLUE, "o-")]
    if reference:
        curves.append((reference, "no privacy, no noise", _ORANGE, "s--"))
    for points, label, colour, style in curves:
        rounds = [p.num_rounds for p in points]
        accuracy = [math.nan if p.accuracy is None else 100 * p.accuracy for p in points]
        loss = [math.nan if p.loss is None else p.loss for p in points]
        left.plot(rounds, accuracy, style, color=colour, label=label, markersize=3)
        right.plot(rounds, loss, style, color=colour, label=label, markersize=3)
    _label(left, "round", "validation accuracy (%)")
    _label(right, "round", "validation loss (nats)")
    left.legend()
    return _save(figure, folder / "learning.png", "Validation accuracy and loss over the rounds.")


def _draw_estimates(folder: Path, rows: Sequence[RoundRow]) -> tuple[Path, str]:
    figure, (axes,) = _figure(1)
    heard, true = heard_and_true(rows)
    axes.plot(true, heard, ".", color=_BLUE, markersize=2)
    span = [min(true, default=0.0), max(true, default=0.0)]
    axes.plot(span, span, "-", color=_BLACK, linewidth=0.8, label="estimate = truth")
    _label(axes, "true mean of the clipped scalars", "receiver's estimate")
    axes.legend()
    return _save(
        figure, folder / "estimates.png",
        "What the receiver made of each round's superposition, against the truth that only a "
        "simulation knows. The scatter is privacy noise, receiver noise and channel error.",
    )  # fmt: skip


def _draw_noise(folder: Path, rows: Sequence[RoundRow]) -> tuple[Path, str]:
    figure, (axes,) = _figure(1)
    rounds = [row.round_index for row in rows]
    for values, label, colour in (
        ([row.artificial_noise_std for row in rows], "artificial noise, charged", _BLUE),
        ([row.receiver_noise_std for row in rows], "receiver noise, measured", _ORANGE),
    ):
        axes.plot(rounds, values, ".", color=colour, label=label, markersize=2)
    axes.set_yscale("log")
    _label(axes, "round", "std on the mean (projected gradient)")
    axes.legend()
    return _save(
        figure, folder / "noise.png",
        "Noise on the mean estimate. Only the artificial part carries the privacy promise.",
    )  # fmt: skip


def _draw_channel(folder: Path, config: PlanConfig, rows: Sequence[RoundRow]) -> tuple[Path, str]:
    figure, (left, right) = _figure(2)
    rounds = [row.round_index for row in rows]
    left.plot(rounds, [row.weakest_gain for row in rows], ".", color=_GREEN, markersize=2)
    left.axhline(config.radio.min_gain, color=_BLACK, linewidth=0.8, label="min_gain")
    left.legend()
    _label(left, "round", "weakest speaker's gain (amplitude)")
    counts = range(config.federation.num_devices + 1)
    share = [sum(row.num_speakers == n for row in rows) / len(rows) * 100 for n in counts]
    right.bar(list(counts), share, color=_BLUE)
    _label(right, "devices that spoke", "rounds (%)")
    return _save(
        figure, folder / "channel.png",
        "The weakest device that speaks sets the level for all; devices below min_gain are silent.",
    )  # fmt: skip


def _draw_epsilon(
    folder: Path,
    config: PlanConfig,
    evaluations: Sequence[EvaluationRow],
    assumed: float | None,
) -> tuple[Path, str]:
    figure, (axes,) = _figure(1)
    points = [
        (p.num_rounds, p.epsilon)
        for p in evaluations
        if p.epsilon is not None and math.isfinite(p.epsilon)
    ]
    axes.plot([n for n, _ in points], [e for _, e in points], "o-", color=_BLUE, markersize=3)
    axes.axhline(config.privacy.epsilon, color=_BLACK, linestyle="--", linewidth=0.8)
    axes.set_ylim(bottom=0)
    _label(axes, "round", f"epsilon spent (delta {config.privacy.delta:g})")
    caption = "Privacy spent by the device that spent most; the dashed line is the budget."
    if (said := assumption(config.largest_number, assumed)) is not None:
        caption += f" Epsilon {said}."
    return _save(figure, folder / "epsilon.png", caption)


def _figure(num_axes: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, num_axes, i + 1) for i in range(num_axes)]
    return figure, axes


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def _save(figure: Figure, path: Path, caption: str) -> tuple[Path, str]:
    figure.savefig(path, dpi=130)
    return path, caption
