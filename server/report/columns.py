"""The table of a run and its reference: one choice of columns for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.privacy.shown import shown_epsilon

_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("source", "source", "{}"),
    ("waveform", "waveform", "{}"),
    ("rounds", "rounds", "{}"),
    ("accuracy before", "accuracy_before", "{:.1%}"),
    ("after", "accuracy_after", "{:.1%}"),
    ("noise dB", "noise_nmse_db", "{:.1f}"),
    ("radio dB", "radio_nmse_db", "{:.1f}"),
    ("airtime s", "airtime_s_per_round", "{:.4f}"),
    ("epsilon", "epsilon", "{}"),
    ("wall s", "wall_s", "{:.1f}"),
    ("peak MB", "peak_rss_mb", "{:.0f}"),
)
"""Head, key of the summary, and how it is written."""


def tabulated(summaries: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads, and a line of cells for each run.

    A column that nothing may stand in, or nothing does, is left out: a private run has no accuracy
    to show and no time, and says so elsewhere.
    """

    def cell(summary: dict[str, Any], key: str, form: str) -> str:
        value = summary[key]
        if key == "epsilon":  # none is a figure, too
            return shown_epsilon(value)
        return "-" if value is None else form.format(value)

    lines = [{**s, "airtime_s_per_round": s["airtime_s_per_round"] or None} for s in summaries]
    shown = [c for c in _COLUMNS if any(line[c[1]] is not None for line in lines)]
    cells = [[cell(line, key, form) for _, key, form in shown] for line in lines]
    return [head for head, _, _ in shown], cells
