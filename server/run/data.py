"""Model, task and data of a run: found, read, dealt out to the devices, tokenised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle import BUNDLED_MODEL_FOLDER, Bundle, open_bundle
from edge_runtime.task_spec import TaskSpec, load_task
from edge_runtime.tasks import (
    Example,
    PromptSet,
    label_token_ids,
    load_tokenizer,
    read_examples,
    warn_if_merged,
)
from server.config.learning import BUNDLED_MODEL, TaskSection
from server.config.run_config import RunConfig
from server.errors import ConfigurationError
from server.run.federation import split_iid
from server.seeds import simulation_rng

logger = logging.getLogger(__name__)

_KNOWN_SHARE = 0.1
"""Above it, texts in both sets are no coincidence of short commands."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Model, task and data of a run, loaded and checked.

    Attributes:
        bundle: the model.
        task: prompt template and label words.
        label_token_ids: the token of each word, in class order.
        device_prompts: each device's training data.
        validation: public data to evaluate on; None where there are none.
        num_shortened: prompts that were too long, those of private records left out.
    """

    bundle: Bundle
    task: TaskSpec
    label_token_ids: tuple[int, ...]
    device_prompts: tuple[PromptSet, ...]
    validation: PromptSet | None
    num_shortened: int

    @property
    def validation_digest(self) -> str | None:
        """Name of the validation data, which are public where there are any."""
        return None if self.validation is None else self.validation.digest()


def load_run_data(config: RunConfig, *, deals: bool = True) -> RunData:
    """Load and check model, task and data.

    Args:
        config: of the run.
        deals: whether training data are here, to be dealt out; else devices have their own.

    Raises:
        BundleError, TaskError, ConfigurationError: what does not fit.
    """
    bundle = open_bundle(bundle_folder(config.model.bundle))
    task, task_folder = load_task(config.task.name)
    train = _read_train(config.task, task, task_folder) if deals else []
    validation = _read_validation(config.task, task, task_folder, config.run.seed)
    if not config.privacy.has_system_keys:  # a count of private records is a release
        _warn_of_odd_data(train, validation)
    max_positions = int(bundle.manifest.architecture["max_position_embeddings"])
    if config.task.max_tokens > max_positions:
        raise ConfigurationError(
            f"task.max_tokens: got {config.task.max_tokens}, the model has {max_positions} "
            "positions."
        )
    parts: list[list[Example]] = []
    if deals:
        parts = split_iid(train, config.federation.num_devices, config.run.seed)
        _check_batch_fits(config.optimizer.batch_size, min(len(part) for part in parts))

    tokenizer = load_tokenizer(bundle.tokenizer_path)
    warn_if_merged(task, tokenizer)

    def tokenise(examples: Sequence[Example]) -> PromptSet:
        return PromptSet(examples, task, tokenizer, config.task.max_tokens)

    device_prompts = tuple(tokenise(part) for part in parts)
    # Evaluations are stored and shown, so they are made of public data or not at all.
    public = tokenise(validation) if config.evaluates_in_public else None
    counted = [public] if public is not None else []
    if not config.privacy.has_system_keys:  # a count of private records is a release, too
        counted += device_prompts
    return RunData(
        bundle=bundle,
        task=task,
        label_token_ids=label_token_ids(task, tokenizer),
        device_prompts=device_prompts,
        validation=public,
        num_shortened=sum(owner.num_shortened for owner in counted),
    )


def deal_examples(section: TaskSection, num_devices: int, seed: int) -> list[list[Example]]:
    """The training examples of every device, as one process deals them out.

    Raises:
        TaskError, ConfigurationError: what does not fit.
    """
    task, task_folder = load_task(section.name)
    return split_iid(_read_train(section, task, task_folder), num_devices, seed)


def bundle_folder(bundle: str) -> Path:
    """Where a bundle lies: the one that comes along, by its name, or a path."""
    return BUNDLED_MODEL_FOLDER if bundle == BUNDLED_MODEL else Path(bundle)


def _read_train(section: TaskSection, task: TaskSpec, task_folder: Path) -> list[Example]:
    return read_examples(_data_path(section.train, task.train, task_folder), task)


def _read_validation(
    section: TaskSection, task: TaskSpec, task_folder: Path, seed: int
) -> list[Example]:
    """As many as are asked for."""
    validation = read_examples(_data_path(section.validation, task.validation, task_folder), task)
    if 0 < section.validation_examples < len(validation):
        rng = simulation_rng(seed, "validation", 0)
        chosen = rng.permutation(len(validation))[: section.validation_examples]
        validation = [validation[i] for i in sorted(chosen.tolist())]
    return validation


def _warn_of_one_class(what: str, examples: Sequence[Example]) -> None:
    if len({example.label_index for example in examples}) == 1:
        logger.warning(
            "%s: every example has the same label, which whoever always says it gets right.", what
        )


def _warn_of_odd_data(train: Sequence[Example], validation: Sequence[Example]) -> None:
    """Say where accuracy would not tell what was learnt."""
    _warn_of_one_class("task.train", train)
    _warn_of_one_class("task.validation", validation)
    seen = {example.text for example in train}
    num_seen = sum(example.text in seen for example in validation)
    if num_seen > _KNOWN_SHARE * len(validation):
        logger.warning(
            "task.validation: %d of its %d texts are in task.train, too: accuracy on them tells "
            "what is remembered. Hold other examples back for it.",
            num_seen,
            len(validation),
        )


def _data_path(configured: str, of_task: str, task_folder: Path) -> Path:
    if configured:
        return Path(configured)
    if not of_task:
        raise ConfigurationError(
            "task: neither the configuration nor the task file names the data. Set task.train and "
            "task.validation."
        )
    return task_folder / of_task


def _check_batch_fits(batch_size: int, fewest: int) -> None:
    if batch_size > fewest:
        raise ConfigurationError(
            f"optimizer.batch_size: got {batch_size}, and a device has {fewest} examples. It would "
            "divide their sum by the batch size all the same and take steps "
            f"{fewest / batch_size:.2g} times as large as meant: lower it, or "
            "federation.num_devices."
        )
