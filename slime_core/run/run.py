"""`Run`: the workers of a run, and what happens around each rollout: weight updates, logging, evaluation, saving."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.rollout_paths import has_rollout, path_of_rollout
from slime_core.contracts.rollout import EngineUse
from slime_core.data.checkpoint_folders import PREFIX
from slime_core.errors import TrainingError
from slime_core.output import writing
from slime_core.plugins import Plugins
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.best import keeps_best
from slime_core.run.checkpoints import load_state
from slime_core.run.components import Components
from slime_core.run.early_stopping import EarlyStopping
from slime_core.run.evaluation import log_evaluation, measure, write_generations
from slime_core.run.periods import Periods
from slime_core.run.requests import Requests
from slime_core.run.rollouts import Rollout, start_rollout
from slime_core.run.saving import Checkpoints
from slime_core.run.tracking import TRAINED, Tracking, call_own_log, prefixed
from slime_core.run.weight_sync import WeightSync
from slime_core.runtime.handles import Handle, wait
from slime_core.training.worker import TrainWorker
from slime_core.unfinished import unfinished


@dataclass
class Run:
    """Everything that the loop needs.

    Attributes:
        rollouts, trainer: handles of the two workers; no trainer under `--debug-rollout-only`.
        identity: what every checkpoint stores about the run: arguments, files of data and of evaluation sets, plugins.
        components: everything that the run has chosen.
        periods: after which rollouts it evaluates and saves.
        requests: what a person asks of the run while it goes on.
        takes_turns: trainer and engine take turns with the devices' memory (`--offload`). At first the trainer has it.
        ahead: samples are made while the trainer trains on those before.
        early_stopping: None unless asked for.
        trained: rollouts that have been trained on; the version of the weights.
        prefetched: in a resumed run, the rollout that waited to be trained when the checkpoint was written.
        versions: those of the weights that rollouts were generated with which have not been trained, by their ids.
        engine_version: in a resumed run, that of the engine's weights when the checkpoint was written.
    """

    args: RunArguments
    plugins: Plugins
    run_dir: Path
    rollouts: Handle[RolloutWorker]
    trainer: Handle[TrainWorker] | None
    tracking: Tracking
    identity: dict[str, Any]
    components: Components
    periods: Periods
    requests: Requests
    takes_turns: bool = False
    ahead: bool = False
    early_stopping: EarlyStopping | None = None
    trained: int = 0
    prefetched: Rollout | None = None
    versions: dict[int, int | None] = field(default_factory=dict)
    engine_version: int | None = None
    _updating_s: float = field(default=0.0, init=False)  # in `generate`, since a rollout was logged
    _checkpoints: Checkpoints | None = field(default=None, init=False)
    _evaluation_due: bool = field(default=False, init=False)  # it failed, and is to be made up for

    def __post_init__(self) -> None:
        args, in_training = self.args, self.engine_use == "always"
        interval = args.update_weights_interval if in_training else 1
        self.weight_sync = WeightSync(
            *(args, self.plugins, self.rollouts, self.trainer, self.takes_turns),
            interval=interval,
            keeps=in_training
            and ((args.keep_old_actor and (self.ahead or interval > 1)) or (interval > 1 and bool(args.save))),
            resumed=self.engine_version,
        )
        if self.trainer is not None and self.args.save:
            folder, console = Path(self.args.save), self.tracking.console
            self._checkpoints = Checkpoints(self.args, self.plugins, folder, self.trainer, console)

    @property
    def engine_use(self) -> EngineUse:
        """When an engine generates, and so needs the newest weights."""
        return self.components.rollouts.engine_use

    def generate(self, rollout_id: int) -> Future[Rollout]:
        """Start making the samples of a rollout, with the newest weights that are due. Call it only when none are being made."""
        if self.prefetched is not None:
            ready: Future[Rollout] = Future()
            ready.set_result(self.prefetched)
            self.prefetched = None
            return ready
        if self.engine_use == "always":
            started = time.perf_counter()
            self.weight_sync.update(self.trained)
            self._updating_s += time.perf_counter() - started
            self.weight_sync.have_memory("engine")
            self.versions[rollout_id] = self.weight_sync.version
        return start_rollout(self.rollouts, rollout_id)

    def train(self, rollout_id: int, result: Rollout, waited: float) -> None:
        """Train on a rollout and log it. `waited` are the seconds before it in which the trainer did not train: there were
        no samples, or the engine took its weights."""
        started = time.perf_counter()
        trained: dict[str, float] = {}
        if self.trainer is not None:
            self.weight_sync.have_memory("trainer")
            if not (self.ahead or self.components.rollouts.works_in_background):
                self.weight_sync.give_up()
            version = self.versions.pop(rollout_id, None)
            training_done = self.trainer.call(TrainWorker.train, rollout_id, result.groups, version)
            try:
                trained = wait(training_done, f"training on rollout {rollout_id + 1}")
            except TrainingError as error:  # of all ranks; after another one some may still wait for those that failed
                self.finish_saving(error)
                raise
        self.trained = rollout_id + 1
        training = time.perf_counter() - started
        seconds = training + waited
        facts = result.facts
        tokens = trained.get("num_tokens") or facts.num_tokens
        own_log, itself, of_rollout = self.components.rollout_log, False, facts.metrics
        if own_log is not None:
            samples = result.fetched(self.rollouts).output.samples
            itself, of_rollout = call_own_log(
                own_log, "rollout", rollout_id, self.args, samples, of_rollout, facts.seconds
            )
        told = facts.own | of_rollout
        logged = {
            **prefixed("train", trained),
            **prefixed("rollout", told),
            **self._timings(),
            TRAINED: seconds,
            "perf/generate_time": facts.seconds,
            "perf/train_time": training,
            "perf/data_wait_time": waited,
            "perf/data_wait_share": waited / seconds,
            "perf/tokens_per_second": tokens / seconds,
        }
        if self.engine_use == "always" and self.trainer is not None:
            logged["perf/update_weights_time"], self._updating_s = self._updating_s, 0.0
        if itself:
            logged = {name: value for name, value in logged.items() if not name.startswith("rollout/")}
        self.tracking.log(logged, rollout_id)
        self.tracking.console.rollout(rollout_id, logged)

    def evaluate_if_due(self, rollout_id: int, pending: Future[Rollout] | None = None) -> bool:
        """Evaluate when the options say so (-1: before the first rollout). True when the run should stop early.

        Args:
            pending: the next rollout, if it is being made already. The evaluation waits for it, so that the engine has the
                same weights for all of it.
        """
        if not self.periods.evaluates(rollout_id):
            return False
        if pending is not None:
            wait(pending, f"the samples of rollout {rollout_id + 2}")
        return self.evaluate(rollout_id)

    def evaluate(self, rollout_id: int) -> bool:
        """Measure the evaluation sets now. True when the run should stop early."""
        generates = self.engine_use != "never"
        output, measured = measure(rollout_id, self.trained, self.rollouts, self.trainer, self.weight_sync, generates)
        write_generations(self.run_dir, rollout_id, output.generations)
        metrics = log_evaluation(
            self.args, rollout_id, output, measured, self.tracking, self.components.eval_rollout_log
        )
        self.plugins.notify("slime_eval_finished", args=self.args, rollout_id=rollout_id, metrics=metrics)
        return self.early_stopping is not None and self.early_stopping.update(metrics, rollout_id)

    def finish_saving(self, error: Exception) -> None:
        """The run ends with `error`, and the trainer answers: make the checkpoint complete that it is writing in the background."""
        if self._checkpoints is None:
            return
        try:
            self._checkpoints.advance(to_the_end=True)
        except Exception as second:
            error.add_note(f"and the checkpoint that was being written could not be finished: {second}")

    def save_after(
        self,
        error: Exception,
        rollout_id: int,
        result: Rollout,
        pending: Future[Rollout] | None,
        last: bool,
    ) -> None:
        """The evaluation failed with `error`: write the checkpoint that is due all the same. A resumed run makes up for the
        evaluation."""
        self._evaluation_due = True
        try:
            self.weight_sync.have_trainer_back()
            self.save_if_due(rollout_id, result, pending, last)
        except Exception as second:
            error.add_note(f"and the checkpoint that was due could not be written: {second}")
        self.finish_saving(error)

    def save_if_due(self, rollout_id: int, result: Rollout, pending: Future[Rollout] | None, last: bool) -> None:
        """Write a checkpoint when the interval says so, a person asks for it, these are the best weights and the run keeps them, or
        this is the last rollout; export if asked for.

        Args:
            result: of this rollout.
            pending: the next one, if it is being made already. Where it depends on the weights, a resumed run could not
                make it again, so the checkpoint waits for it and holds it.
        """
        if self._checkpoints is not None:
            self._checkpoints.advance(to_the_end=False)
        due = last or self._is_due(rollout_id)
        asked = self._checkpoints is not None and (self.requests.take_save() or self.requests.end)
        if self.trainer is None or not (due or asked):
            return
        if self._checkpoints is not None:
            prefetched: Rollout | None = None
            if pending is not None and self.engine_use == "always":
                prefetched = wait(pending, f"the samples of rollout {rollout_id + 2}")
            state = {
                "rollout_id": rollout_id,
                "data_source": self.rollouts.fetch((prefetched or result).data_state),
                "prefetched": prefetched.fetched(self.rollouts).to_dict() if prefetched else None,
                "prefetched_version": self.versions.get(rollout_id + 1),
                "engine_version": self.weight_sync.kept,
                "evaluation_due": self._evaluation_due,
                "early_stopping": self.early_stopping.state_dict() if self.early_stopping else None,
                **self.identity,
            }
            self._checkpoints.save(rollout_id, state)
            if last or asked:
                self._checkpoints.advance(to_the_end=True)
        if last:
            self.export_at_end(rollout_id)
        elif due:
            self.export_with_checkpoint(rollout_id)

    def _is_due(self, rollout_id: int) -> bool:
        """Whether a checkpoint after this rollout is written in any case."""
        early = self.early_stopping
        best = keeps_best(self.args) and early is not None and early.best_rollout == rollout_id
        return best or self.periods.saves(rollout_id)

    def export_with_checkpoint(self, rollout_id: int) -> None:
        """Export what the checkpoint after this rollout holds, if one was due and `--save-hf` asks for that."""
        if self.args.save_hf and has_rollout(self.args.save_hf) and self._is_due(rollout_id):
            self.export(rollout_id)

    def export_at_end(self, rollout_id: int) -> None:
        """Export the weights that the run ends with: the last ones, or those of the best evaluation, for which the trainer leaves the
        last ones. Where each checkpoint has an export of its own, so has the last one.

        Args:
            rollout_id: the last rollout.
        """
        best = self.early_stopping.best_rollout if self.early_stopping and keeps_best(self.args) else None
        if best is None or self.early_stopping is None or self.trainer is None or not self.args.save_hf:
            self.export(rollout_id)
            return
        console = self.tracking.console
        console.say(self.early_stopping.best_in_words())
        if has_rollout(self.args.save_hf) or best == rollout_id:
            self.export(rollout_id)
        elif best >= 0:
            folder = Path(derived(self.args.save)) / f"{PREFIX}{best:07d}"
            load_state(folder)
            wait(self.trainer.call(TrainWorker.load, folder), "the best checkpoint to load")
            self.export(best)
        else:
            console.say(f"exported model: {self.args.save_hf}, as it was then")

    def export(self, rollout_id: int) -> None:
        """Write the Hugging Face checkpoint that `--save-hf` asks for."""
        if self.trainer is None or not self.args.save_hf:
            return
        folder = path_of_rollout(self.args.save_hf, rollout_id)
        hidden = unfinished(folder)
        try:
            with writing("The exported model", folder):
                ends = wait(self.trainer.call(TrainWorker.export, hidden), "the export")
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        try:
            with writing("The exported model", folder):
                wait(self.trainer.call(TrainWorker.publish, hidden, folder), "the export")
        except Exception as error:
            error.add_note(f"The exported model is in {hidden}, from where it could not be moved.")
            raise
        quantised = self.components.training.quantised.get(self.args.hf_checkpoint)
        also = f", and in the format of --hf-checkpoint: {folder / 'quantised'}" if quantised else ""
        self.tracking.console.say(f"exported model: {folder}{also}")
        if ends:
            named = ", ".join(map(repr, ends))
            self.tracking.console.say(f"the exported model stops at {named} too, with which what was trained ends")

    def _timings(self) -> dict[str, float]:
        """The seconds and calls of plugins since the last time, summed over all processes, as metrics."""
        total: dict[str, float] = {}
        for source in (self.plugins, self.rollouts, self.trainer):
            if source is not None:
                for name, value in source.take_timings().items():
                    total[name] = total.get(name, 0.0) + value
        return total
