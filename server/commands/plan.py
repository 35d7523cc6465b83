"""``pairzero plan``: every power policy side by side, and what noise leaves to learn."""

from __future__ import annotations

import argparse
import math
from typing import Any

import msgspec
import numpy as np

from edge_runtime.forward import OnnxForward
from edge_runtime.parameters import ParameterStore
from edge_runtime.processors import usable_processors
from edge_runtime.protocol.rounds import Access
from radio.progress import in_words
from server.air.uplink_use import uplink_use
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.files import check_can_be_written, to_json
from server.planning import privacy_statement
from server.planning.learnability import LEAST_ROUNDS, outlook, what_would_help
from server.planning.policy_preview import PolicyPreview, preview_policies, preview_policy
from server.planning.scalar_rms import TypicalNumber, look_at, typical_number
from server.power.catalogue import POLICIES
from server.privacy.shown import shown_epsilon
from server.run.data import RunData, load_run_data

_COLUMNS = (
    ("power_db", 9, ".1f"),
    ("own_noise_std", 11, ".3g"),
    ("radio_noise_std", 9, ".3g"),
    ("noise_to_clip", 9, ".3g"),
    ("noise_to_typical", 11, ".3g"),
    ("effective_rounds", 14, ".3g"),
    ("silent_share_of_devices", 8, ".1%"),
)


def plan(args: argparse.Namespace) -> int:
    """Print the table or one JSON object; draw a picture where one is asked for."""
    config: RunConfig = args.asked_for
    if args.plot is not None:
        if args.plot.suffix != ".png":
            raise ConfigurationError(f"--plot: got {args.plot}, wanted a name that ends in .png.")
        check_can_be_written(args.plot, ConfigurationError)
    data = load_run_data(config)
    typical, round_s = _look_for(config, data)
    num_records = [len(prompts) for prompts in data.device_prompts]
    previews = preview_policies(config, num_records)
    document = _document(config, previews, typical, num_records)
    document.update(_takes(config, round_s))
    if args.plot is not None:
        from server.report.plots import draw_plan  # and matplotlib, for whoever wants it

        draw_plan(args.plot, config, [preview for preview in previews if not preview.refusal])
        document["plot"] = str(args.plot)
    print(to_json(document) if args.json else "\n".join(_lines(document)))
    return 0


def _look_for(config: RunConfig, data: RunData) -> tuple[TypicalNumber, float | None]:
    """A typical number, and how long the devices' part of a round takes here, in seconds.

    Timed on public examples alone, so that it says nothing of anybody; None without them.
    """
    workers = config.run.workers or usable_processors()
    weights = ParameterStore.from_bundle(data.bundle, config.model.trainable, workers)
    forward = OnnxForward(
        data.bundle,
        weights,
        label_token_ids=data.label_token_ids,
        intra_op_threads=config.run.intra_op_threads,
        num_workers=workers,
    )
    try:
        typical = typical_number(config, forward, weights, data.validation)
        if typical.round_s is None and data.validation is not None:
            # It is known otherwise how large a number is, and not how long it takes.
            return typical, look_at(config, forward, weights, data.validation).round_s
        return typical, typical.round_s
    finally:
        forward.close()
        weights.close()


def _takes(config: RunConfig, round_s: float | None) -> dict[str, Any]:
    """What a round takes of the air and of this machine, in seconds."""
    use = uplink_use(
        config.radio,
        config.federation.num_devices,
        config.optimizer.directions,
        config.optimizer.rounds,
        config.pluto.settling_s,
    )
    return {
        "airtime_s_per_round": use.airtime_s,
        "on_air_s_per_device_per_round": use.on_air_s,
        "computing_s_per_round": round_s,
    }


def _document(
    config: RunConfig,
    previews: list[PolicyPreview],
    typical: TypicalNumber,
    num_records: list[int],
) -> dict[str, Any]:
    """Everything that is shown."""
    policies = [_figures(config, preview, typical) for preview in previews]
    chosen = config.power_policy if config.privacy.enabled else "perfect"
    own = next(entry for entry in policies if entry["policy"] == chosen)
    verdict: dict[str, Any] = {"can_learn": None, "what_would_help": []}
    if "refusal" not in own:
        verdict["can_learn"] = own["can_learn"]
        if not own["can_learn"] and config.privacy.enabled:
            verdict["what_would_help"] = what_would_help(config, num_records, typical)
    privacy = config.privacy
    planned = next(preview for preview in previews if preview.name == chosen)
    assumed = privacy_statement.assumed_receiver_noise(
        config,
        privacy_statement.largest_sum_noise_std(
            config.privacy.counted_noise_fraction,
            planned.own_noise_std,
            planned.radio_noise_std,
            planned.num_speakers,
        ),
    )
    return {
        "devices": config.federation.num_devices,
        "rounds": config.optimizer.rounds,
        "directions": config.optimizer.directions,
        "waveform": str(config.radio.waveform),
        "access": str(config.access),
        "snr_db": config.radio.snr_db,
        "epsilon": privacy.epsilon if privacy.enabled else None,
        "delta": privacy.delta if privacy.enabled else None,
        "unit": str(privacy.unit) if privacy.enabled else None,
        "relation": str(privacy.relation) if privacy.enabled else None,
        "promise": privacy_statement.promise(config.privacy, config.access)
        if privacy.enabled
        else None,
        "assumption": privacy_statement.assumption(config.largest_number, assumed),
        "assumed_receiver_noise": assumed,
        "trusted_noise_fraction": privacy.trusted_noise_fraction,
        "receiver_noise_counted": privacy_statement.receiver_noise_counted(config.privacy),
        "missing_devices": privacy.missing_devices,
        "by_trusted_noise_fraction": _price_of_trust(config, num_records, typical),
        "clip": config.optimizer.clip,
        "typical_number": typical.value,
        "typical_number_origin": typical.origin,
        "typical_number_is_bound": typical.is_bound,
        "policy": chosen,
        **verdict,
        "policies": policies,
    }


def _price_of_trust(
    config: RunConfig, num_records: list[int], typical: TypicalNumber
) -> list[dict[str, float]]:
    """The configuration's policy with no receiver noise counted, and with all of it."""
    if not config.privacy.enabled or config.access is not Access.SUPERPOSED:
        return []
    found = []
    for fraction in (0.0, 1.0):
        privacy = msgspec.structs.replace(config.privacy, trusted_noise_fraction=fraction)
        changed = msgspec.structs.replace(config, privacy=privacy)
        preview = preview_policy(changed, config.power_policy, num_records, spending=False)
        seen = outlook(changed, preview, typical)
        found.append(
            {
                "trusted_noise_fraction": fraction,
                "noise_std": seen.noise_std,
                "effective_rounds": seen.effective_rounds,
            }
        )
    return found


def _figures(config: RunConfig, preview: PolicyPreview, typical: TypicalNumber) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "policy": preview.name,
        "summary": POLICIES[preview.name].summary,
        "keeps_a_promise": POLICIES[preview.name].promises,
    }
    if preview.refusal:
        return {**entry, "refusal": preview.refusal}
    spoken = preview.num_speakers > 0
    found = outlook(config, preview, typical)
    return {
        **entry,
        "power_db": _number(preview.power_db),
        "own_noise_std": _root_mean_square(preview.own_noise_std[spoken]),
        "radio_noise_std": _root_mean_square(preview.radio_noise_std[spoken]),
        "noise_std": _number(found.noise_std),
        "noise_to_clip": _number(found.noise_to_clip),
        "noise_to_typical": _number(found.noise_to_typical),
        "effective_rounds": found.effective_rounds,
        "ceiling_nats": _number(found.ceiling_nats),
        "can_learn": found.can_learn,
        "silent_rounds": int(np.sum(~spoken)),
        "silent_share_of_devices": float(
            1.0 - preview.num_speakers.mean() / config.federation.num_devices
        ),
        "epsilon": preview.epsilon[-1] if preview.epsilon else None,
        "epsilon_over_rounds": [
            list(p) for p in zip(preview.checkpoints, preview.epsilon, strict=True)
        ],
        "own_noise_std_of_rounds": preview.own_noise_std.tolist(),
        "radio_noise_std_of_rounds": preview.radio_noise_std.tolist(),
        "speakers_of_rounds": preview.num_speakers.astype(int).tolist(),
    }


def _root_mean_square(values: np.ndarray) -> float | None:
    return _number(float(np.sqrt(np.mean(np.square(values))))) if values.size else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(document: dict[str, Any]) -> list[str]:
    d = document
    promise = "no promise"
    if d["epsilon"] is not None:
        promise = d["promise"]
    lines = [
        f"{d['devices']} devices, {d['rounds']} rounds of {d['directions']}, {d['waveform']} at "
        f"{d['snr_db']:g} dB; {promise}; {d['receiver_noise_counted']}",
        *([f"epsilon {d['assumption']}"] if d["assumption"] else []),
        f"a typical mean number is {d['typical_number']:.3g} ({d['typical_number_origin']}), the "
        f"clip {d['clip']:g}",
        "",
        f"{'policy':22s}{'power dB':>9s}{'own noise':>11s}{'radio':>9s}{'/ clip':>9s}"
        f"{'/ typical':>11s}{'rounds worth':>14s}{'silent':>8s}{'epsilon':>9s}",
    ]
    refused = []
    for entry in d["policies"]:
        if "refusal" in entry:
            refused.append(entry["policy"])
            continue
        mark = "*" if entry["policy"] == d["policy"] else " "
        cells = (_cell(entry[name], width, form) for name, width, form in _COLUMNS)
        spent = shown_epsilon(entry["epsilon"])
        lines.append(f"{mark}{entry['policy']:21s}{''.join(cells)}{spent:>9s}")
    lines += [
        "",
        "* the policy of the configuration; noise: root mean squares on the mean of a round;",
        "  rounds worth: of so many without noise; silent: share of devices; power: over full",
        "  scale, with numbers at their bound.",
    ]
    if d["typical_number_is_bound"]:
        lines.append(
            f"rounds worth: unknown, at most what stands there: {privacy_statement.HOW_TO_KNOW}."
        )
    if d["by_trusted_noise_fraction"]:
        none, everything = d["by_trusted_noise_fraction"]
        lines.append(
            "privacy.trusted_noise_fraction = 0 or 1, receiver noise not counted or counted: noise "
            f"{none['noise_std']:.4g} or {everything['noise_std']:.4g}, worth "
            f"{none['effective_rounds']:.4g} or {everything['effective_rounds']:.4g} rounds."
        )
    lines.append(_time_in_words(document))
    if refused:
        lines.append(f"Not for this run: {', '.join(refused)} (--json says why).")
    if d["can_learn"] is False:
        lines.append(
            f"This run cannot learn: it is worth fewer than {LEAST_ROUNDS:g} rounds without noise. "
            f"What would do, one at a time: {'; '.join(d['what_would_help']) or 'nothing found'}."
        )
    return lines


def _time_in_words(document: dict[str, Any]) -> str:
    d = document
    rounds, airtime_s, round_s = d["rounds"], d["airtime_s_per_round"], d["computing_s_per_round"]
    said = "No time on the air."
    if airtime_s:
        said = (
            f"On the air {airtime_s * 1e3:.3g} ms a round, {in_words(airtime_s * rounds)} in all."
        )
    if round_s is None:
        return f"{said} How long it takes is unknown: there are no public examples to time."
    return (
        f"{said} Computing, all devices in this process, takes about {in_words(round_s * rounds)} "
        f"({round_s * 1e3:.3g} ms a round, one timed); radios and evaluation come on top."
    )


def _cell(value: float | None, width: int, form: str) -> str:
    return f"{'-' if value is None else format(value, form):>{width}s}"
