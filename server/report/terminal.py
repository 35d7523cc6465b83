"""What a person sees while a run goes on, and the table at its end."""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from edge_runtime.kernel import KERNEL_NAME, KERNEL_REASON
from edge_runtime.protocol.rounds import Access, Vote
from radio.progress import PLAIN_LINE_EVERY_S, in_words
from server.config.plan_config import PlanConfig
from server.planning import privacy_statement
from server.planning.expected_noise import own_sum_std, radio_sum_std
from server.planning.privacy_terms import PrivacyTerms
from server.power.feasibility import information_ceiling_nats, noise_to_clip_ratio
from server.privacy.shown import shown_epsilon
from server.report.columns import tabulated
from server.report.statements import about_secrets, about_what_was_heard
from server.run.experiment import Experiment, Progress
from server.store.records import RoundRow

_NOTHING_HEARD = f"{'-':>10s}{'-':>14s}{'-':>10s}"


class ProgressPrinter:
    """A line per evaluation, and between them one line that rewrites itself on a terminal.

    Where nothing can be rewritten, a plain line comes between evaluations that are far apart.
    """

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._is_terminal = out.isatty()
        self._keeps_time_secret = False
        self._shows_accuracy = True
        self._said_s = clock()

    def header(self, experiment: Experiment, page: str | None = None) -> None:
        """What is about to run, what is promised, and where a page of it is."""
        config = experiment.config
        privacy, replica = config.privacy, experiment.components.replica
        self._keeps_time_secret = privacy.has_system_keys
        self._shows_accuracy = config.evaluates_in_public
        promise = "none: this run adds no noise and protects nobody"
        if privacy.enabled:
            promise = privacy_statement.promise(config.privacy, config.access)
        self._line(
            f"{experiment.folder}: {Path(config.task.name).stem}, "
            f"{config.federation.num_devices} devices, {config.optimizer.rounds} rounds of "
            f"{_numbers(config.optimizer.directions)}, {experiment.source}"
        )
        self._line(
            f"  {replica.num_trainable:,} of {replica.num_parameters:,} weights move; "
            f"privacy: {promise}"
        )
        if experiment.terms is not None:
            assumed = privacy_statement.assumed_as_planned(config, experiment.terms)
            if (said := privacy_statement.assumption(config.largest_number, assumed)) is not None:
                self._line(f"  epsilon {said}")
            self._line(_what_noise_leaves(config, experiment.terms))
        if experiment.outlook is not None:
            found = experiment.outlook
            self._line(
                f"  all noise on a mean is {found.noise_to_typical:.3g} times a typical number: "
                f"what the rounds are worth without it: {found.worth}"
            )
            if found.typical.is_bound:
                self._line(f"  {privacy_statement.HOW_TO_KNOW}")
        if KERNEL_NAME != "c":
            self._line(
                f"  the passes over the weights run in numpy, several times slower: {KERNEL_REASON}"
            )
        if experiment.num_shortened:
            self._line(
                f"  longer than task.max_tokens = {config.task.max_tokens}: "
                f"{experiment.num_shortened} prompts, which keep their first token and their end"
            )
        for statement in about_secrets(config):
            self._line(textwrap.fill(statement, 100, initial_indent="  ", subsequent_indent="  "))
        if page is not None:
            self._line(f"  a page of this run, on this machine: {page}")
        self._line(
            "   round"
            + ("    loss  accuracy" if self._shows_accuracy else "")
            + "   |heard|  noise: added  measured  epsilon"
            + ("" if self._keeps_time_secret else "  rounds/s  time left")
        )

    def update(self, progress: Progress) -> None:
        """Show where the run stands."""
        evaluation, row = progress.evaluation, progress.row
        if evaluation is None and not self._is_due(progress):
            return
        text = f"{progress.rounds_done:8d}"
        if self._shows_accuracy:
            loss = None if evaluation is None else evaluation.loss
            accuracy = None if evaluation is None else evaluation.accuracy
            text += f"{_cell(loss, 8, '.4f')}{_cell(accuracy, 10, '.1%')}"
        text += _NOTHING_HEARD if row is None else _radio_columns(row)
        epsilon = "-" if evaluation is None else shown_epsilon(evaluation.epsilon)
        text += f"{epsilon:>9s}{self._pace(progress)}"
        if not self._is_terminal:
            self._line(text)
        elif evaluation is not None:
            self._line(f"\r{text}")
        else:
            self._out.write(f"\r{text}")
            self._out.flush()

    def _is_due(self, progress: Progress) -> bool:
        """Whether a round without an evaluation is shown."""
        if progress.row is None:
            return False
        if self._is_terminal:
            return progress.row.round_index % 10 == 0
        return not self._keeps_time_secret and self._clock() - self._said_s >= PLAIN_LINE_EVERY_S

    def _pace(self, progress: Progress) -> str:
        """Rounds a second and time left; the pace follows the batches, which may be secret."""
        pace = progress.rounds_per_s
        if self._keeps_time_secret:
            return ""
        if pace <= 0.0:
            return f"{'-':>10s}{'-':>11s}"
        left_s = (progress.rounds_planned - progress.rounds_done) / pace
        return f"{pace:10.1f}{in_words(left_s):>11s}"

    def table(self, summaries: Sequence[dict[str, Any]], folder: Path) -> None:
        """The final table, one line per run."""
        heads, lines = tabulated(summaries)
        widths = [max(len(cells[i]) for cells in (heads, *lines)) for i in range(len(heads))]
        self._line("")
        for cells in (heads, *lines):
            # Names to the left, figures to the right.
            written = [
                f"{cell:<{width}s}" if head in ("source", "waveform") else f"{cell:>{width}s}"
                for head, cell, width in zip(heads, cells, widths, strict=True)
            ]
            self._line("  ".join(written))
        explained = ["noise and radio: errors of the mean, over its power, in dB"]
        explained *= "noise dB" in heads or "radio dB" in heads
        explained += ["airtime: of a round"] * ("airtime s" in heads)
        if explained:
            self._line(f"({'; '.join(explained)})")
        first = summaries[0]
        if (noise := first["assumed_receiver_noise"]) is not None:
            counted = first["trusted_noise_fraction"]
            self._line(
                f"(epsilon: superposed, with a receiver noise of at least {noise:.1e} assumed"
                + (f" and {counted:.0%} of it counted)" if counted else ")")
            )
        for statement in about_what_was_heard(first):
            self._line(statement)
        self._line(f"\nReport: {folder / 'report.html'}")

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()
        self._said_s = self._clock()


def list_title() -> str:
    """Column heads of `list_line`; symbols of a device and airtime are those of a round."""
    return (
        f"{'run':25s}{'outcome':18s}{'rounds':>10s}{'accuracy':>11s}   {'epsilon (of)':18s}"
        f"{'waveform':14s}{'symbols':>9s}{'airtime s':>11s}{'radio dB':>10s}  source"
    )


def list_line(folder: Path, summary: dict[str, Any]) -> str:
    """One run in a listing."""
    s = summary
    rounds = f"{s['rounds']}/{s['rounds_planned']}"
    epsilon = shown_epsilon(s["epsilon"])
    if s["epsilon"] is not None:
        epsilon += f" ({s['epsilon_budget']:g})"
    if s["assumed_receiver_noise"] is not None:
        epsilon += "*"
    return (
        f"{folder.name:25s}{s['outcome']:18s}{rounds:>10s}{_cell(s['accuracy_after'], 11, '.1%')}"
        f"   {epsilon:18s}{s['waveform'] or '-':14s}"
        f"{_cell(s['uplink_symbols_per_device_per_round'], 9, '.0f')}"
        f"{_cell(s['airtime_s_per_round'], 11, '.4f')}{_cell(s['radio_nmse_db'], 10, '.1f')}"
        f"  {s['source'] or '-'}"
    )


def list_notes(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """What goes without saying in no line of a listing."""
    assumed = [s["assumed_receiver_noise"] for s in summaries if s["assumed_receiver_noise"]]
    if not assumed:
        return []
    figures = f"{min(assumed):.1e}"
    if max(assumed) > min(assumed):
        figures += f" to {max(assumed):.1e}, by clip and batch size,"
    return [f"* superposed, with a receiver noise of at least {figures} assumed on each number"]


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}s}"


def _numbers(count: int) -> str:
    return "one number" if count == 1 else f"{count} numbers"


def _radio_columns(row: RoundRow) -> str:
    return (
        f"{math.hypot(*row.mean_estimates):10.3f}{row.artificial_noise_std:14.3f}"
        f"{row.receiver_noise_std:10.3f}"
    )


def _what_noise_leaves(config: PlanConfig, terms: PrivacyTerms) -> str:
    """How much noise leaves to learn from, were every channel known and of unit gain."""
    num_devices, clip = config.federation.num_devices, config.optimizer.clip
    if config.vote is not Vote.NONE:
        own = terms.least_noise_multiplier * terms.sensitivity
        before = f"{own / clip:.2%} of the clip, before it takes its signs"
        after = f"{own:.2f}, on signs of 1"
        return (
            f"  noise multiplier {_range_of(terms.noise_multipliers)}: noise of "
            + ("each device: " if config.access is Access.SLOTTED else "all devices together: ")
            + (before if config.vote is Vote.NOISE_BEFORE else after)
        )
    required = terms.least_noise_multiplier * terms.sensitivity
    sum_noise_std = own_sum_std(config, required)
    share = noise_to_clip_ratio(mean_noise_std=sum_noise_std / num_devices, clip=clip)
    with_radio = ""
    if not config.radio.has_plutos:  # what theirs is, pilots will tell
        total_std = math.hypot(sum_noise_std, radio_sum_std(config, required))
        total_share = noise_to_clip_ratio(mean_noise_std=total_std / num_devices, clip=clip)
        with_radio = f"\n  ({total_share:.2%} with the radio's at unit gain)"
    ceiling = information_ceiling_nats(
        num_rounds=config.optimizer.rounds,
        num_devices=num_devices,
        num_scalars=config.optimizer.directions,
        clip=clip,
        sum_noise_std=sum_noise_std,
    )
    return (
        f"  noise multiplier {_range_of(terms.noise_multipliers)}: privacy noise on each mean is "
        f"{share:.2%} of the clip{with_radio}; information ceiling {ceiling:.0f} nats"
    )


def _range_of(multipliers: Sequence[float]) -> str:
    low, high = f"{min(multipliers):.3f}", f"{max(multipliers):.3f}"
    return low if low == high else f"{low} to {high}"
