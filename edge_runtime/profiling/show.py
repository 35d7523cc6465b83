"""A profile for a person: a table, and a picture without a library."""

from __future__ import annotations

import html
from collections.abc import Sequence

from edge_runtime.profiling.phases import Phase
from edge_runtime.profiling.prediction import Dimensions, Prediction
from edge_runtime.profiling.profile import Profile

_MB = 1e6
_BAR, _ROW, _LEFT, _WIDE = 16, 26, 150, 560
_OWN, _FILES, _PEAK = "#3366cc", "#99b3e6", "#cc4433"


def table(found: Profile) -> str:
    """Lines: every phase, then what holds for all of them."""
    lines = [
        f"{found.bundle}: {found.weights:,} weights, {found.trainable:,} of them move; "
        f"{found.batch} x {found.seq} tokens, {found.directions} {found.difference}, "
        f"{found.threads} threads, kernel {found.kernel}",
        f"{'phase':18s}{'turns':>6s}{'s':>10s}{'spread':>9s}{'CPU s':>9s}{'peak MB':>9s}"
        f"{'own MB':>8s}{'files':>7s}{'PSS':>7s}{'faults':>9s}{'disk':>6s}{'tokens/s':>10s}"
        f"{'weights MB':>12s}{'J':>8s}",
    ]
    lines += [_line(phase) for phase in found.phases]
    lines.append(f"largest peak: {_mb(found.peak_rss_bytes)} MB")
    if found.step_s is not None:
        step = f"a step: {found.step_s:.4f} s (median of {found.rounds})"
        if found.step_j is not None:
            step += f", {found.step_j:.2f} J by {found.energy_counter}"
        lines.append(step)
    if found.energy_counter is None:
        lines.append("energy: this board has no counter")
    before, after = found.temperature_c
    if before is not None and after is not None:
        lines.append(f"temperature: {before:.1f} to {after:.1f} degrees C")
    if found.has_throttled:
        lines.append(
            "THE BOARD HELD ITS CLOCK BACK: these times are void. Cool it, and see its supply."
        )
    return "\n".join(lines)


def predicted(model: Dimensions, found: Prediction, batch: int, seq: int) -> str:
    """Lines: what a step will take, and what first order would."""
    h, layers = model.hidden_size, model.num_hidden_layers
    scratch = f" + scratch {_mb(found.scratch)}" if found.scratch else ""
    return "\n".join(
        [
            f"{found.num_weights:,} weights, {layers} layers of width {h}; {batch} x {seq} tokens",
            f"  base {_mb(found.base)} MB (measured) + weights {_mb(found.weights)}{scratch} + "
            f"activations {_mb(found.activations)} = a peak of {_mb(found.peak)} MB",
            f"  first order, by formula and not measured: SGD {_mb(found.sgd)} MB, AdamW "
            f"{_mb(found.adamw)} MB",
        ]
    )


def picture(found: Profile) -> str:
    """A bar for each phase: what is resident after it, and its peak; SVG."""
    top = max((p.peak_rss_bytes for p in found.phases), default=1)
    height = _ROW * len(found.phases) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDE + 90} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="20" font-size="14">'
        f"{html.escape(found.bundle)}: {found.batch} x {found.seq} tokens, memory by phase</text>",
    ]
    for index, phase in enumerate(found.phases):
        y = 36 + index * _ROW
        own = _WIDE * phase.anonymous_bytes / top
        files = _WIDE * phase.file_bytes / top
        peak = _LEFT + _WIDE * phase.peak_rss_bytes / top
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{html.escape(phase.name)}'
            "</text>",
            f'<rect x="{_LEFT}" y="{y}" width="{own:.1f}" height="{_BAR}" fill="{_OWN}"/>',
            f'<rect x="{_LEFT + own:.1f}" y="{y}" width="{files:.1f}" height="{_BAR}" '
            f'fill="{_FILES}"/>',
            f'<path d="M{peak:.1f} {y - 2}v{_BAR + 4}" stroke="{_PEAK}" stroke-width="2"/>',
            f'<text x="{peak + 6:.1f}" y="{y + 12}">{_mb(phase.peak_rss_bytes)} MB</text>',
        ]
    key = 36 + len(found.phases) * _ROW + 12
    parts.append(
        f'<text x="{_LEFT}" y="{key}"><tspan fill="{_OWN}">own</tspan> and '
        f'<tspan fill="{_FILES}">of files</tspan> after the phase; '
        f'<tspan fill="{_PEAK}">its peak</tspan></text></svg>\n'
    )
    return "\n".join(parts)


def _line(phase: Phase) -> str:
    cells: Sequence[tuple[str, int]] = (
        (f"{phase.turns}", 6),
        (f"{phase.seconds:.4f}", 10),
        (f"{phase.seconds_spread:.4f}", 9),
        (f"{phase.cpu_seconds:.4f}", 9),
        (_mb(phase.peak_rss_bytes), 9),
        (_mb(phase.anonymous_bytes), 8),
        (_mb(phase.file_bytes), 7),
        ("-" if phase.pss_bytes is None else _mb(phase.pss_bytes), 7),
        (f"{phase.minor_faults}", 9),
        (f"{phase.major_faults}", 6),
        ("-" if phase.tokens_per_s is None else f"{phase.tokens_per_s:,.0f}", 10),
        ("-" if phase.weight_bytes is None else _mb(phase.weight_bytes), 12),
        ("-" if phase.energy_j is None else f"{phase.energy_j:.3f}", 8),
    )
    return f"{phase.name:18s}" + "".join(f"{text:>{width}s}" for text, width in cells)


def _mb(number: int) -> str:
    return f"{number / _MB:,.0f}"
