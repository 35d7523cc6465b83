"""Experiment: a run from its first round to its last, across interruptions.

Takes what `server.run.components` has built, puts the store and the price beside it, and drives the
round loop, evaluations and comparisons of the replicas.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.prefix_cache import PrefixCache
from edge_runtime.protocol.members import Member
from edge_runtime.protocol.rounds import RunEnded
from server.air.orders import have_done
from server.config.plan_config import PlanConfig
from server.config.run_config import RunConfig
from server.errors import (
    BudgetExceededError,
    BudgetExhaustedError,
    RunStoreError,
)
from server.planning.learnability import Outlook, check_can_learn
from server.planning.privacy_terms import PrivacyTerms
from server.planning.round_plan import ChannelKnowledge
from server.planning.scalar_rms import typical_number
from server.run.accounts import (
    releases_heard,
    stretch_of,
)
from server.run.bookkeeping import build_pricing, check_is_here, check_same, create_store
from server.run.components import RunComponents, connect, plan_privacy
from server.run.data import RunData, load_run_data
from server.run.environment import environment, peak_rss_mb, probe
from server.run.evaluation import Evaluation, evaluate
from server.run.local_host import LocalHost
from server.run.names import new_run_id
from server.run.pricing import Pricing
from server.run.round_loop import RoundLoop, StepRule, as_heard
from server.store.records import EvaluationRow, Outcome, RoundRow
from server.store.run_store import RunStore

if TYPE_CHECKING:
    # At run time it needs the client of a broker, which one process does without.
    from server.hosts.remote_hosts import RemoteHosts


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands, for whoever watches it."""

    rounds_done: int
    rounds_planned: int
    row: RoundRow | None
    evaluation: EvaluationRow | None
    rounds_per_s: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run, ready to go on from wherever its store says it is."""

    config: RunConfig
    folder: Path
    store: RunStore
    loop: RoundLoop
    pricing: Pricing
    terms: PrivacyTerms | None
    components: RunComponents
    num_shortened: int
    prefixes: PrefixCache | None = None
    outlook: Outlook | None = None

    @classmethod
    def start(
        cls,
        config: RunConfig,
        folder: Path,
        *,
        has_to_learn: bool = False,
        step_rule: StepRule = as_heard,
        hosts: RemoteHosts | None = None,
        data: RunData | None = None,
        prefixes: PrefixCache | None = None,
    ) -> Experiment:
        """Begin a new run in an empty or missing folder.

        Everything that can be wrong with the request, up to a first look at the loss, is found
        before anything is written.

        Args:
            config: of the run.
            folder: of it.
            has_to_learn: refuse a run whose noise leaves nothing to learn.
            step_rule: what mean scalars are taken to be, of what was heard.
            hosts: devices on hosts of their own; None, and they are in this process.
            data: of the run, where they are loaded already.
            prefixes: what an earlier run of this process has kept.

        Raises:
            CannotLearnError: it would, and was not to.
            ServerError, EdgeError, RadioError: what is wrong with the request.
        """
        run_id = new_run_id(config.task.name) if hosts is None else hosts.run_id
        data = load_run_data(config) if data is None else data
        host = LocalHost.create(config, data.device_prompts) if hosts is None else hosts
        terms = plan_privacy(config, host.members)
        components = connect(config, data, host, terms, run_id)
        try:
            kept = components.keep_prefixes(
                folder, config.model.prefix_cache_mb, config.task.max_tokens, prefixes
            )
            found = (
                _look_ahead(config, data, host.members, terms, components) if has_to_learn else None
            )
            untrained = evaluate(components.forward, components.validation)
            probed = probe(components.forward, data.bundle)
            air = components.link.air
            store = create_store(config, folder, run_id, data, host, probed, air)
        except BaseException:
            components.close()
            raise
        try:
            experiment = cls._join(
                config, folder, store, components, data.num_shortened, terms, step_rule
            )
            experiment = dataclasses.replace(experiment, prefixes=kept, outlook=found)
            if found is not None:
                store.set_all_meta(
                    {
                        "worth_rounds": found.effective_rounds,
                        "worth_is_bound": found.typical.is_bound,
                    }
                )
            experiment.record_evaluation(0, untrained)
        except BaseException:
            components.close()
            store.close()
            raise
        return experiment

    @classmethod
    def resume(
        cls,
        folder: Path,
        *,
        step_rule: StepRule = as_heard,
        hosts: RemoteHosts | None = None,
        prefixes: PrefixCache | None = None,
    ) -> Experiment:
        """Continue a run that was interrupted; it ends with the bits it would have had.

        Where devices are on hosts of their own, a round that was paid for and not finished is
        passed over instead.

        Args:
            folder: of the run.
            step_rule: as it had before.
            hosts: those that it began with; None, and its devices are in this process.
            prefixes: what an earlier run of this process has kept.

        Raises:
            RunStoreError: the run has ended; or model, data, keys or a library are not those it was
                started with.
            LedgerCorruptError: the privacy ledger cannot be trusted.
        """
        store = RunStore.open(folder)
        try:
            config = store.config()
            if store.outcome.is_final and config.privacy.has_system_keys:
                raise RunStoreError(
                    f"{store.path}: the run has ended ({store.outcome}) and its private keys are "
                    "destroyed. There is nothing to continue; start a new run."
                )
            data = load_run_data(config, deals=hosts is None)
            host: LocalHost | RemoteHosts
            if hosts is None:
                check_is_here(store)
                host = LocalHost.load(config, data.device_prompts, folder)
            else:
                store.set_meta("epoch", hosts.epoch)
                host = hosts
            members = host.members
            check_same(store, "bundle_digest", data.bundle.digest)
            named = msgspec.structs.replace(data.task, train="", validation="")
            check_same(store, "task", named)
            check_same(store, "environment", environment())
            check_same(store, "keys", [member.commitment for member in members])
            check_same(store, "data_commitments", [m.data_name for m in members])
            check_same(store, "validation_digest", data.validation_digest)
            terms = plan_privacy(config, members, stretch_of(store, config))
            components = connect(config, data, host, terms, str(store.meta("run_id")))
            try:
                check_same(store, "probe", probe(components.forward, data.bundle))
                kept = components.keep_prefixes(
                    folder, config.model.prefix_cache_mb, config.task.max_tokens, prefixes
                )
                experiment = cls._join(
                    config, folder, store, components, data.num_shortened, terms, step_rule
                )
                experiment = dataclasses.replace(experiment, prefixes=kept)
                for result in store.results(experiment.loop.run_id):
                    if hosts is None:
                        experiment.loop.take_step(result)
                    else:
                        components.replica.apply_step(result)  # hosts find it in the log
            except BaseException:
                components.close()
                raise
        except BaseException:
            store.close()
            raise
        return experiment

    @classmethod
    def _join(
        cls,
        config: RunConfig,
        folder: Path,
        store: RunStore,
        components: RunComponents,
        num_shortened: int,
        terms: PrivacyTerms | None,
        step_rule: StepRule,
    ) -> Experiment:
        components.link.keep_captures_in(folder)
        pricing = build_pricing(config, terms, store, components.link.noise_symbols)
        components.begin(store, lambda: {} if terms is None else releases_heard(store))
        loop = RoundLoop(
            run_id=str(store.meta("run_id")),
            config=config,
            control=components.control,
            air=components.link.air,
            pricing=pricing,
            replica=components.replica,
            store=store,
            truth=components.truth,
            step_rule=step_rule,
            crew=components.crew,
        )
        return cls(
            config=config,
            folder=folder,
            store=store,
            loop=loop,
            pricing=pricing,
            terms=terms,
            components=components,
            num_shortened=num_shortened,
        )

    @property
    def source(self) -> str:
        """Where the numbers come from, for every report."""
        return self.components.link.air.source

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
        is_fresh_process: bool = True,
    ) -> bool:
        """Carry on to the last round, or until asked to stop between two rounds.

        Args:
            on_progress: told after every round.
            should_stop: asked before every round.
            clock: monotonic seconds.
            is_fresh_process: whether this process's peak memory is this run's; a second run in one
                process records none.

        Returns:
            Whether the run is complete. If not, the store's "outcome" says why (`Outcome`).
        """
        rounds = self.config.optimizer.rounds
        started, wall_before = clock(), self.store.meta("wall_s")

        def note_time() -> None:
            if self._may_store_timing:
                self.store.set_meta("wall_s", wall_before + clock() - started)

        first = done = self.store.num_rounds()
        channel: ChannelKnowledge | None = None
        outcome = Outcome.INTERRUPTED
        try:
            self.pricing.check_not_exceeded()
            on_progress(Progress(done, rounds, None, self._latest_evaluation(done), 0.0))
            while done < rounds and not should_stop():
                if self.loop.gather(done, should_stop):
                    channel = None  # of others than those who are here now
                channel = self.loop.channel_for(done, channel)
                if channel is None:
                    continue
                row = self.loop.run_round(done, channel)
                done += 1
                if done % self.config.run.digest_interval == 0:
                    self.loop.compare_replicas(done)
                evaluation = None
                if self._is_evaluated_after(done):
                    evaluation = self.evaluate(done)
                    note_time()
                pace = (done - first) / (clock() - started)
                on_progress(Progress(done, rounds, row, evaluation, pace))
            if done == rounds:
                outcome = Outcome.COMPLETE
        except BudgetExhaustedError:
            # The promise is kept by falling silent; what was learnt so far is the result.
            outcome = Outcome.BUDGET_EXHAUSTED
        except BudgetExceededError:
            outcome = Outcome.BUDGET_EXCEEDED
        finally:
            note_time()
            self._note_memory(is_fresh_process)
            self.store.set_all_meta(
                {
                    "epsilon_spent": self.pricing.epsilon_spent(),
                    "epsilon_records": self.pricing.num_records,
                    "outcome": Outcome.INTERRUPTED,
                }
            )
        if outcome.is_final:
            if self._recorded_evaluation(done) is None:
                on_progress(Progress(done, rounds, None, self.evaluate(done), 0.0))
            self.store.set_meta("parameter_digest", self.loop.compare_replicas(done, is_last=True))
            # Last, so that a run that dies before this line is finished by a resume.
            self.store.set_meta("outcome", outcome)
            have_done(self.loop.control, RunEnded(self.loop.run_id, done))
            self.loop.crew.end(done)
        return outcome is Outcome.COMPLETE

    def evaluate(self, num_rounds: int) -> EvaluationRow:
        """Evaluate the server's replica and record the result."""
        result = evaluate(self.components.forward, self.components.validation)
        return self.record_evaluation(num_rounds, result)

    def record_evaluation(self, num_rounds: int, result: Evaluation | None) -> EvaluationRow:
        """Write an evaluation, if there is one, down beside what has been spent by then."""
        row = EvaluationRow(
            num_rounds=num_rounds,
            loss=None if result is None else result.loss,
            accuracy=None if result is None else result.accuracy,
            epsilon=self.pricing.epsilon_spent(),
        )
        self.store.append_evaluation(row)
        if result is not None:
            # Of the last evaluation only: what the report's table by class shows.
            by_class = {
                "class_examples": result.class_examples,
                "class_correct": result.class_correct,
            }
            self.store.set_all_meta(by_class)
        return row

    @property
    def _may_store_timing(self) -> bool:
        """Time and memory follow the secret batches: real keys, no record of either."""
        return not self.config.privacy.has_system_keys

    def _note_memory(self, is_fresh_process: bool) -> None:
        """The largest peak of all processes that carried this run, if they carried nothing else."""
        before = self.store.meta("peak_rss_mb")
        if self._may_store_timing and is_fresh_process and self.store.num_rounds() > 0:
            self.store.set_meta("peak_rss_mb", max(peak_rss_mb(), before or 0.0))

    def _is_evaluated_after(self, num_rounds: int) -> bool:
        is_last = num_rounds == self.config.optimizer.rounds
        return is_last or num_rounds % self.config.run.evaluation_interval == 0

    def _latest_evaluation(self, num_rounds: int) -> EvaluationRow | None:
        """The evaluation due now; made up for if the run died between its round and it."""
        if not self._is_evaluated_after(num_rounds):
            return None
        return self._recorded_evaluation(num_rounds) or self.evaluate(num_rounds)

    def _recorded_evaluation(self, num_rounds: int) -> EvaluationRow | None:
        rows = self.store.evaluations()
        return next((row for row in rows if row.num_rounds == num_rounds), None)

    def close(self) -> None:
        """Silence the devices, let the radio go, close the store. Idempotent."""
        try:
            self.components.close()
        finally:
            self.store.close()


def _look_ahead(
    config: PlanConfig,
    data: RunData,
    members: Sequence[Member],
    terms: PrivacyTerms | None,
    components: RunComponents,
) -> Outlook | None:
    """What noise leaves to learn; an error if it is nothing."""
    typical = typical_number(config, components.forward, components.replica, data.validation)
    return check_can_learn(config, [m.num_records for m in members], typical, terms)
