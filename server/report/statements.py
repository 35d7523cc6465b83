"""What has to be said of a run, in one voice: on the terminal, on its page, at its end."""

from __future__ import annotations

from typing import Any

from server.config.plan_config import PlanConfig
from server.config.run_config import RunConfig
from server.planning.privacy_statement import (
    HOW_TO_KNOW,
    assumption,
    receiver_noise_counted,
    worth_in_words,
)
from server.privacy.shown import shown_epsilon
from server.store.records import Outcome

NO_HARDWARE = "A software radio: no number on this page was measured on hardware."


def the_result(config: PlanConfig, summary: dict[str, Any]) -> str:
    """What came of a run, in one sentence."""
    optimizer, federation = config.optimizer, config.federation
    numbers = "a number" if optimizer.directions == 1 else f"{optimizer.directions} numbers"
    rounds = f"{summary['rounds']} of {summary['rounds_planned']}"
    over = (
        f"{rounds} rounds of {numbers} from each of {federation.num_devices} devices over "
        f"{summary['source']}"
    )
    paid = "with no promise to anybody"
    if config.privacy.enabled:
        paid = (
            f"for epsilon {shown_epsilon(summary['epsilon'])} of {summary['epsilon_budget']:g} at "
            f"delta {summary['delta']:g}"
        )
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    if before is None or after is None:
        return f"{over}, {paid}; nothing may be evaluated, so what was learnt is not shown."
    return f"Accuracy from {before:.1%} to {after:.1%} in {over}, {paid}."


def about_secrets(config: RunConfig) -> list[str]:
    """Whose keys, and what is kept back because of them."""
    said = []
    if config.privacy.has_simulated_keys:
        said.append(
            "Noise keys derive from the seed (a repeatable simulation): the figures are those of "
            "the mechanism, but whoever knows this configuration can undo the noise. For real "
            'data: privacy.noise_source = "system".'
        )
    if config.privacy.has_system_keys:
        said.append(
            "Neither time nor memory is recorded: both follow the sizes of the secret batches."
        )
    if not config.evaluates_in_public:
        said.append(
            "Nothing is evaluated: loss and accuracy are stored and shown without noise, so the "
            "validation data must be public, and are not declared public. If they are: "
            "task.validation_is_public = true."
        )
    return said


def about_the_promise(config: PlanConfig, summary: dict[str, Any]) -> list[str]:
    """What was promised, spent, counted on and left to learn."""
    privacy = config.privacy
    if not privacy.enabled:
        return ["No privacy: no noise was added and nothing is promised."]
    said = [
        f"Spent epsilon {shown_epsilon(summary['epsilon'])} of {summary['epsilon_budget']:g} at "
        f"delta {summary['delta']:g}, per {privacy.unit}, {privacy.relation}, {config.access} "
        f"access. {receiver_noise_counted(privacy).capitalize()}."
    ]
    if (worth := summary["worth_rounds"]) is not None:
        is_bound = summary["worth_is_bound"]
        how_much = worth_in_words(worth, is_bound=is_bound)
        said.append(
            f"What its {summary['rounds_planned']} rounds are worth without noise: {how_much}."
        )
        if is_bound:
            said.append(f"{HOW_TO_KNOW.capitalize()}.")
    assumed = assumption(config.largest_number, summary["assumed_receiver_noise"])
    if assumed is not None:
        said.append(f"The figure {assumed}.")
    if summary["epsilon"] > summary["epsilon_budget"]:
        said.append(
            "More than the budget was spent: devices fell silent, or did not answer, after the "
            "price of a round was paid, and their noise cannot be counted. The promise above does "
            "not hold; what was spent does."
        )
    return said


def about_the_end(summary: dict[str, Any]) -> list[str]:
    """How the run ended, where it is not simply complete."""
    match summary["outcome"]:
        case Outcome.INTERRUPTED:
            return ["The run was interrupted and can be resumed."]
        case Outcome.BUDGET_EXHAUSTED:
            return [
                "The privacy budget was spent before the last round: the run stopped by itself "
                "and stays silent. What was learnt so far is here."
            ]
        case Outcome.BUDGET_EXCEEDED:
            return [
                f"More than the privacy budget was spent: epsilon "
                f"{shown_epsilon(summary['epsilon'])} of {summary['epsilon_budget']:g}. Devices "
                "fell silent, or did not answer, after the price of a round was paid, and their "
                "noise cannot be counted. The run has ended and stays silent."
            ]
        case Outcome.ABANDONED:
            return ["The run was ended on request: its private keys are destroyed."]
    return []


def about_what_was_heard(summary: dict[str, Any]) -> list[str]:
    """Rounds and numbers that are in no mean."""
    said = []
    if summary["rounds_skipped"]:
        said.append(
            f"{summary['rounds_skipped']} rounds were paid for before an interruption and skipped "
            "after it: a radio cannot send the same again."
        )
    if summary["erasures"]:
        said.append(f"{summary['erasures']} packets could not be read: erasures, part of no mean.")
    if summary["rounds_without_speakers"]:
        said.append(
            f"In {summary['rounds_without_speakers']} rounds no device was heard well enough to "
            "speak, and nothing was learnt in them: raise radio.snr_db or radio.pilot_symbols, or "
            "lower radio.min_gain."
        )
    return said
