"""`TrainWorker`: takes a rollout through training. The loop drives it through a handle.

A rollout of RL passes through three stages: log-probs (and values) under the weights before training, advantages over
the whole rollout, and then the optimizer steps. What neither the loss nor the estimator reads is not computed. SFT
skips the first two (`--disable-compute-advantages-and-returns`).

Of several training ranks each has a `TrainWorker`, and all get the same calls with the same arguments; they find each
other by the environment variables RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.rollout_paths import path_of_rollout
from slime_core.contracts.engine import Offloads, WeightSender
from slime_core.contracts.loss import may_skip_zero_advantage, what_reads
from slime_core.contracts.train_backend import (
    ContextParallel,
    DataParallel,
    GivesLogProbs,
    HasReference,
    ReplaysRouting,
    ResetsOptimizer,
    SavesInBackground,
    SharesPrompts,
    TrainBackend,
    TrainBatch,
)
from slime_core.data.ends import TrainedEnds
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.output import writing
from slime_core.plugins import Plugins
from slime_core.remote_code import copy_code
from slime_core.sample import Group, Sample
from slime_core.token_arrays import compact, num_trained
from slime_core.training.columns import ColumnMaker
from slime_core.training.components import TrainComponents
from slime_core.training.earlier import REFERENCE, EarlierModel, forget_unused, forget_versions, keeping, of_version
from slime_core.training.initial_weights import begins_as_reference, begun_with, with_initial_weights
from slime_core.training.postprocess import postprocessed, write_train_data
from slime_core.training.precision import recipe_of
from slime_core.training.profiling import Profiler
from slime_core.training.served_weights import ServedWeights
from slime_core.training.signals import Column
from slime_core.training.steps import Steps
from slime_core.training.token_numbers import WatchedLoss
from slime_core.training.work import work_of
from slime_core.unfinished import replace_model

if TYPE_CHECKING:
    from torch import Tensor

_ANY_DEPTH = 1000
"""Layers of a model of which only the kind of its products is asked for."""


class TrainWorker:
    """Drives the train backend: the actor and, where something reads them, a reference model and a critic.

    Args:
        profiler: is told which rollout is trained on.
        total_rollouts: rollouts in the whole run, which sets the length of the learning-rate schedule.
    """

    def __init__(
        self, args: RunArguments, plugins: Plugins, components: TrainComponents, profiler: Profiler, total_rollouts: int
    ) -> None:
        self._args, self._plugins, self._components, self._profiler = args, plugins, components, profiler
        self._quantised = components.quantised.get(args.hf_checkpoint)
        self._total_steps = total_rollouts * derived(args.num_steps_per_rollout)
        # A hook may give samples an advantage for which log-probs have been computed by then.
        may_skip = (
            args.skip_zero_advantages
            and components.data_postprocess is None
            and may_skip_zero_advantage(components.loss, args)
        )
        self._steps = Steps(args, has_advantages=components.advantage is not None, may_skip=may_skip)
        self._reference: GivesLogProbs | None = None
        self._critic: TrainBackend | None = None
        self._rank = int(os.environ.get("RANK", "0"))
        self._ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self._models: list[TrainBackend] = []
        self._ends = TrainedEnds(args.hf_checkpoint)
        self._loss = WatchedLoss(components.loss)
        self._begun_with = begun_with(args)
        self._actor = self._new_model(with_initial_weights(args))
        self._served = ServedWeights(
            self._actor, self._quantised, args.update_weight_buffer_size, self._rank, self._ranks
        )

    def setup(self) -> None:
        """Load the models.

        Raises:
            ArgumentError: there are several training ranks, and the backend trains in one process.
        """
        args, loss = self._args, self._components.loss
        self._actor.setup(self._loss, self._total_steps)
        if isinstance(self._actor, DataParallel):
            self._steps = replace(self._steps, ranks=self._actor.data_parallel_size)
        elif self._ranks > 1:
            raise ArgumentError(
                f"The {self._components.train_backend.label} trains in one process (it has no data_parallel_size), but "
                f"the run has {self._ranks} training ranks. Choose another --train-backend, or leave out "
                "--actor-num-nodes and --actor-num-gpus-per-node."
            )
        if isinstance(self._actor, ContextParallel):
            self._steps = replace(self._steps, context_ranks=self._actor.context_parallel_size)
        if isinstance(self._actor, SharesPrompts):
            self._steps = replace(self._steps, shares_prompts=self._actor.shares_prompts)
        if args.balance_data and self._steps.ranks > 1:
            self._steps = replace(self._steps, work=work_of(args.hf_checkpoint))
        if args.fp8_format and (args.ref_update_interval or args.keep_old_actor):
            recipe_of(
                args, self._components, _ANY_DEPTH, "reference"
            )  # refuses one that cannot compute earlier weights
        if "ref_log_probs" in what_reads(loss, args) | what_reads(self._components.advantage, args):
            self._reference = self._make_reference()
        if self._components.critic_loss is not None:
            own = {"ref_load": args.critic_load, "lr": args.critic_lr}
            self._critic = self._new_model(
                with_initial_weights(args).model_copy(
                    update={n: value for n, value in own.items() if value is not None}
                )
            )
            self._critic.setup(self._components.critic_loss, self._total_steps, role="critic")
        self._columns = ColumnMaker(args, self._components, self._steps, self._actor, self._reference, self._critic)

    def _make_reference(self) -> GivesLogProbs:
        """What the run's reference model begins as."""
        args = self._args
        if args.ref_update_interval and begins_as_reference(args):
            return self._renewed_reference()
        return self._first_reference()

    def _first_reference(self) -> GivesLogProbs:
        args, own = self._args, None
        if isinstance(self._actor, HasReference) and begins_as_reference(args):
            own = self._actor.reference()
        if own is not None:
            return own
        model = self._new_model(args)
        model.setup(self._components.loss, self._total_steps, role="reference")
        return model

    def _renewed_reference(self) -> GivesLogProbs:
        """A reference model that is what the actor is now, with a copy of its weights."""
        keeping(self._actor).keep_weights(REFERENCE)
        return EarlierModel(keeping(self._actor), REFERENCE)

    def _new_model(self, args: RunArguments) -> TrainBackend:
        """Make a model that `close` closes, whether or not its setup succeeds."""
        model = self._components.train_backend.bind(components=self._components)(args)
        self._models.append(model)
        return model

    def train(self, rollout_id: int, groups: list[Group], version: int | None = None) -> dict[str, float]:
        """Take all optimizer steps of one rollout.

        Args:
            version: of the weights that the samples were generated with; None if there is none, or nobody knows.

        Returns:
            metrics: means over the optimizer steps, sums of counts.
        """
        self._profiler.step(rollout_id)
        samples = [sample for group in groups for sample in group]
        compact(samples)
        if self._rank == 0:
            self._ends.note(samples)
        parts = list(self._steps.parts(samples))
        old = self._old_actor(rollout_id, version)
        columns: dict[str, Column] = {}
        timings: dict[str, float] = {}  # and what a hook measures
        own_old_log_probs = False
        if self._components.advantage is not None:
            self._plugins.notify("slime_before_log_probs", args=self._args, rollout_id=rollout_id)
            started = time.perf_counter()
            columns = self._columns.make(self._components.advantage, groups, parts, old)
            timings["perf/signals_time"] = time.perf_counter() - started
        if self._args.reset_optimizer_states:
            for model in (self._actor, self._critic):
                if isinstance(model, ResetsOptimizer):
                    model.reset_optimizer()
        if self._components.data_postprocess is not None:
            hook = self._components.data_postprocess
            given = columns.get("old_log_probs")
            samples, columns, own = postprocessed(self._args, rollout_id, samples, columns, hook, self._columns.rewards)
            timings |= own
            own_old_log_probs = columns.get("old_log_probs") is not given
            if self._components.advantage is not None:
                self._columns.remember_routing(columns, samples, parts)  # what is skipped may have changed
        if self._args.save_debug_train_data and self._rank == 0:
            path = path_of_rollout(self._args.save_debug_train_data, rollout_id)
            option = "--dump-details" if self._args.dump_details else "--save-debug-train-data"
            with writing(f"What rollout {rollout_id} is trained with, for {option},", path):
                write_train_data(self._args, path, samples, columns)
        watched = any(self._plugins.observers("slime_rollout_trained"))
        if watched:
            self._loss.listen()
        collected: list[dict[str, float]] = []
        for number, part in enumerate(parts):
            of_step = {name: values[part] for name, values in columns.items()}
            if number == 0 and old is None and not self._args.use_rollout_logprobs and not own_old_log_probs:
                of_step.pop("old_log_probs", None)  # the weights have not changed yet, so the ratio is exactly 1
            collected.append(self._step(rollout_id, number, samples[part], of_step))
        if watched:
            tokens = self._loss.heard(samples, columns)
            self._plugins.notify("slime_rollout_trained", args=self._args, rollout_id=rollout_id, tokens=tokens)
        if isinstance(self._actor, ReplaysRouting):
            self._actor.forget_routing()
        if self._reference is not None and self._renews_reference(rollout_id):
            self._reference = self._columns.reference = self._renewed_reference()
        names = dict.fromkeys(name for metrics in collected for name in metrics)
        means = {name: _over_steps(name, [m[name] for m in collected if name in m]) for name in names}
        return {**timings, **means}

    def _old_actor(self, rollout_id: int, version: int | None) -> EarlierModel | None:
        """The model that generated the samples of a rollout, where the old log-probs are to be its own and the actor is another one
        by now."""
        if not self._args.keep_old_actor or version is None:
            return None
        actor, name = keeping(self._actor), of_version(version)
        forget_versions(actor, before=version)
        return EarlierModel(actor, name) if version < rollout_id and name in actor.kept_weights() else None

    def _renews_reference(self, rollout_id: int) -> bool:
        trained = self._critic is None or rollout_id >= self._args.num_critic_only_steps
        interval = self._args.ref_update_interval
        return interval is not None and trained and (rollout_id + 1) % interval == 0

    def keep_version(self, version: int) -> None:
        """Keep a copy of the present weights, which are of this version and which the engine takes now."""
        actor = keeping(self._actor)
        if not self._args.keep_old_actor:  # then only the engine's are of use
            forget_versions(actor, before=version)
        actor.keep_weights(of_version(version))

    def serve_version(self, version: int | None) -> None:
        """Let `next_weights` and `send_weights` give copies of the kept weights of this version; None: the present ones."""
        self._served.choose(version)

    def evaluate(self, groups: list[Group]) -> dict[str, float]:
        """The loss and its metrics on every evaluation set, as {"SET/loss": …}."""
        by_set: dict[str, list[Sample]] = {}
        for group in groups:
            for sample in group:
                by_set.setdefault(str(sample.dataset), []).append(sample)
        batches = {name: self._steps.batch(samples) for name, samples in by_set.items()}
        return {
            f"{name}/{metric}": value
            for name, batch in batches.items()
            for metric, value in _measured(batch, self._actor.evaluate(batch)).items()
        }

    def row_losses(self, groups: list[Group]) -> list[tuple[float, int]]:
        """For each sample, in order: the sum of -log p over its trained tokens, and how many they are."""
        samples = [sample for group in groups for sample in group]
        log_probs = self._actor.log_probs(self._steps.batch(samples))
        return [(-math.fsum(own), num_trained(s)) for s, own in zip(samples, log_probs, strict=True)]

    def next_weights(self) -> list[tuple[str, Tensor]] | None:
        """The next bucket of the weights that the engine takes: `ServedWeights.next`."""
        return self._served.next()

    def drop_weights(self) -> None:
        """Leave the rest of the weights that `next_weights` gives, if there is any."""
        self._served.drop()

    def set_weight_sender(self, sender: WeightSender) -> None:
        """Take over the engine's own sender, which `send_weights` calls."""
        self._served.send_by(sender)

    def send_weights(self, version: int) -> None:
        """Hand the weights to the engine by its own sender: `ServedWeights.send`."""
        self._served.send(version)

    def save_state(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint into the existing folder. With `--async-save`, a backend that is able
        to do so returns as soon as it has a copy, and `saved` tells of the rest.

        Raises:
            CheckpointError: this rank does not see the folder.
        """
        if not folder.is_dir():
            raise CheckpointError(
                f"Training rank {self._rank} does not see {folder}. --save must be on storage that all machines share."
            )
        self._actor.save_state(folder)
        if self._critic is not None:
            (folder / "critic").mkdir(exist_ok=True)
            self._critic.save_state(folder / "critic")
        if self._rank == 0:
            self._ends.save(folder)
            if self._begun_with is not None:
                self._begun_with.write(folder.parent)

    def saved(self, wait: bool) -> bool:
        """Whether everything that `save_state` began is on disk; raises what kept it from getting there.

        Args:
            wait: return when it is.
        """
        answers = [model.saved(wait) for model in self._models if isinstance(model, SavesInBackground)]
        return all(answers)  # all are asked, in every rank

    def load(self, folder: Path) -> bool:
        """Restore the models from a checkpoint whose files have been verified.

        Returns:
            whether training goes on bit for bit as if it had not been stopped, not just but for rounding.
        """
        self._actor.load_state(folder / "trainer")
        follows = self._reference is not None and self._args.ref_update_interval is not None
        forget_unused(self._actor, follows, self._args.keep_old_actor or self._args.update_weights_interval > 1)
        if follows:
            actor = keeping(self._actor)
            if REFERENCE in actor.kept_weights():
                self._reference = EarlierModel(actor, REFERENCE)
            elif isinstance(self._reference, EarlierModel):  # the run began with weights of another program
                self._reference = self._first_reference()
            self._columns.reference = self._reference
        self._ends.load(folder / "trainer")
        if self._critic is not None:
            self._critic.load_state(folder / "trainer" / "critic")
        from slime_core.tensors.determinism import repeats_itself

        return repeats_itself(self._args)

    def export(self, folder: Path) -> list[str]:
        """Write a Hugging Face checkpoint, in high precision, which generates up to the ends of what was trained. Where
        `--hf-checkpoint` is quantised there is one in its format too, in the folder `quantised` within. The first rank returns
        those ends that the model did not know before, as text."""
        self._actor.export_hf(folder)
        if self._rank == 0:
            copy_code(self._args.hf_checkpoint, folder)
        folders = [folder]
        if self._quantised is not None:
            from slime_core.tensors.quantised_weights import write_quantised

            folders.append(folder / "quantised")
            write_quantised(folders[-1], self._actor.weights(), self._quantised, write=self._rank == 0)
        new = [self._ends.write(own) for own in folders] if self._rank == 0 else [[]]
        return new[0]

    def publish(self, exported: Path, folder: Path) -> None:
        """Put an exported checkpoint in place of the one that may be in `folder`, of which no weights stay; other files do. All ranks
        have written it."""
        if self._rank == 0:
            replace_model(exported, folder)

    def offload(self) -> None:
        """Let all models give back the device's memory until `onload`."""
        for model in self._models:
            if isinstance(model, Offloads):
                model.offload()

    def onload(self) -> None:
        """Let all models take the device's memory again."""
        for model in self._models:
            if isinstance(model, Offloads):
                model.onload()

    def finish(self) -> None:
        """Finish the profile, if one is being written."""
        self._profiler.close()

    def close(self) -> None:
        """Give back what the weight sender and the models hold."""
        with ExitStack() as stack:  # each of these, also if the one before fails
            for model in self._models:
                stack.callback(model.close)
            stack.callback(self._served.close)

    def _step(
        self, rollout_id: int, number: int, samples: Sequence[Sample], columns: dict[str, Column]
    ) -> dict[str, float]:
        """Take one optimizer step of the critic, where there is one, and of the actor, and return the metrics.

        Args:
            number: of the step in its rollout.
        """
        args = self._args
        step = rollout_id * derived(args.num_steps_per_rollout) + number
        self._plugins.notify("slime_before_train_step", args=args, rollout_id=rollout_id, step=step)
        metrics: dict[str, float] = {}
        if self._critic is not None:
            whole = self._steps.batch(samples, columns)
            found = _measured(whole, self._critic.train_step(whole))
            metrics |= {f"critic/{name}": value for name, value in found.items() if not name.startswith("num_")}
        if rollout_id >= args.num_critic_only_steps or self._critic is None:
            skipped = self._steps.without_gradient(samples, columns)
            batch = self._steps.batch(samples, columns, skipped)
            metrics |= _measured(batch, self._actor.train_step(batch))
            if skipped:
                metrics["num_skipped_samples"] = len(skipped)
            metrics |= {"num_tokens": batch.num_tokens, "num_trained_tokens": batch.num_trained_tokens}
        self._plugins.notify("slime_train_step_finished", args=args, rollout_id=rollout_id, step=step, metrics=metrics)
        return metrics


def _measured(batch: TrainBatch, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of a batch; where the model read no token of it, without those that had nothing to measure."""
    return metrics if any(batch.measured) else {n: value for n, value in metrics.items() if not math.isnan(value)}


def _over_steps(name: str, values: list[float]) -> float:
    """The sum of a count, the mean of any other metric."""
    return sum(values) / (1 if name.startswith("num_") else len(values))
