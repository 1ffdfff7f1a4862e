"""`ColumnMaker`: the per-token numbers that the samples of a rollout are trained with: log-probs under the weights
before training, a critic's values, and advantages. Made and called by `TrainWorker`.

What neither the loss nor the advantage estimator reads is not computed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from slime_core.arguments import RunArguments
from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import what_reads
from slime_core.contracts.train_backend import GivesLogProbs, ReplaysRouting, TrainBackend, TrainBatch
from slime_core.errors import SampleError
from slime_core.plugins import Selected
from slime_core.plugins.slime_shapes.advantages import rewards_of
from slime_core.sample import Group, Sample, reward_of
from slime_core.token_arrays import column_of
from slime_core.training.alike import require_alike
from slime_core.training.components import TrainComponents
from slime_core.training.signals import Column, advantage_inputs, columns_of
from slime_core.training.steps import Steps
from slime_core.trajectories import worth

logger = logging.getLogger(__name__)

COMPUTED = frozenset({"old_log_probs", "ref_log_probs", "trainer_log_probs", "values"})
"""What models compute, by the names under which losses and estimators read it."""

ONCE = "Noise of the rewards can also come from --custom-reward-post-process-path, which is called once for all ranks."
"""What to do in place of an estimator with random numbers."""


class ColumnMaker:
    """Computes the columns of whole rollouts.

    Args:
        steps: makes the batches, which are those of the training steps.
        actor, reference, critic: the models; the latter two are None where nothing reads what they compute.

    Attributes:
        reference: may be exchanged between two rollouts.
        rewards: of the samples of the last rollout, by slime's names; see `slime_core.plugins.slime_shapes.advantages.rewards_of`. Empty
            where no hook is shown them.
    """

    def __init__(
        self,
        args: RunArguments,
        components: TrainComponents,
        steps: Steps,
        actor: TrainBackend,
        reference: GivesLogProbs | None,
        critic: TrainBackend | None,
    ) -> None:
        self._args, self._components, self._steps = args, components, steps
        self.reference = reference
        self._old: GivesLogProbs | None = None
        self._actor, self._critic = actor, critic
        self._replays = actor if isinstance(actor, ReplaysRouting) and actor.replays_routing else None
        self.rewards: dict[str, list[float]] = {}
        self._told_without = False
        self._remembered: list[Sequence[Sequence[int]]] = []  # the micro-batches whose experts the actor remembers

    def make(
        self,
        estimator: Selected[AdvantageOutputs],
        groups: Sequence[Group],
        parts: Sequence[slice],
        old: GivesLogProbs | None = None,
    ) -> dict[str, Column]:
        """Compute the columns of all samples of a rollout, by name.

        Args:
            groups: all groups of the rollout.
            parts: the samples of every optimizer step.
            old: what generated the samples, where its log-probs are the old ones; None: the actor's are.

        Raises:
            SampleError: `--use-rollout-logprobs`, but the samples have none.
        """
        args, samples = self._args, [sample for group in groups for sample in group]
        self._old = old
        first = what_reads(estimator, args) & COMPUTED
        columns: dict[str, Column] = {}
        if without := self._without_log_probs(samples):
            if args.use_rollout_logprobs and "old_log_probs" in what_reads(self._components.loss, args) | first:
                raise SampleError(f"--use-rollout-logprobs needs rollout_log_probs in every sample. {without}")
        else:
            columns["rollout_log_probs"] = [column_of(sample, "rollout_log_probs") or [] for sample in samples]
        for name in sorted(first):
            self._add(name, columns, samples, parts)
        columns |= self._advantages(estimator, groups, columns)
        # What the estimator did not need can leave out the samples that have no gradient.
        for name in sorted((what_reads(self._components.loss, args) & COMPUTED) - first):
            self._add(name, columns, samples, parts)
        self.remember_routing(columns, samples, parts)
        return columns

    def _advantages(
        self, estimator: Selected[AdvantageOutputs], groups: Sequence[Group], columns: dict[str, Column]
    ) -> dict[str, Column]:
        """The columns that the estimator makes. Sets `rewards`."""
        samples = [sample for group in groups for sample in group]
        raw, rewards, final = self._rewards(samples)
        inputs = advantage_inputs(groups, rewards, final, columns, raw)
        if self._components.data_postprocess is not None:
            self.rewards = rewards_of(self._args, inputs)
        made = columns_of(estimator(self._args, inputs), samples)
        require_alike(estimator, chain(*made.values()), lambda: chain(*columns.values()), ONCE)
        return made

    def _without_log_probs(self, samples: Sequence[Sample]) -> str:
        """Which samples have a response and no `rollout_log_probs`, in a sentence; "" where there are none. It is a warning, once in a
        run, where others have them and something would have read them."""
        answered = [sample for sample in samples if sample.response_length]
        without = [sample for sample in answered if not column_of(sample, "rollout_log_probs")]
        if not without:
            return ""
        told = f"The rollout set none in {len(without)} of {len(answered)} samples with a response, first in {without[0].name}."
        loss, estimator = self._components.loss, self._components.advantage
        reading = what_reads(loss, self._args) | what_reads(estimator, self._args)
        if len(without) < len(answered) and "rollout_log_probs" in reading and not self._told_without:
            self._told_without = True
            logger.warning(
                "What compares with the engine's log-probs is left out where samples of a rollout have none. %s", told
            )
        return told

    def remember_routing(self, columns: dict[str, Column], samples: Sequence[Sample], parts: Sequence[slice]) -> None:
        """Before several optimizer steps, have the actor remember the experts of all tokens, where it repeats them, unless it has done
        so for the batches that are trained on."""
        if self._replays is None or len(parts) == 1:
            return
        batches = [self._batch(samples, part, columns) for part in parts]
        if [batch.micro_batches for batch in batches] != self._remembered:
            self._replays.forget_routing()
            for batch in batches:
                self._replays.remember_routing(batch)
        self._remembered = []

    def _batch(self, samples: Sequence[Sample], part: slice, columns: dict[str, Column]) -> TrainBatch:
        """The batch of an optimizer step, as far as is known what it leaves out."""
        own = {"advantages": columns["advantages"][part]} if "advantages" in columns else {}
        return self._steps.batch(samples[part], skipped=self._steps.without_gradient(samples[part], own))

    def _add(self, name: str, columns: dict[str, Column], samples: Sequence[Sample], parts: Sequence[slice]) -> None:
        """Add the column of log-probs or values called `name`. The batches are those of the training steps, so that the
        same weights give the same numbers, bit for bit."""
        if name == "old_log_probs" and self._args.use_rollout_logprobs:
            columns[name] = columns["rollout_log_probs"]
            return
        of_actor = name in ("old_log_probs", "trainer_log_probs")
        if of_actor and self._old is None and len(parts) == 1 and "advantages" in columns:
            return  # the only step finds them itself
        found: list[Sequence[float]] = []
        for part in parts:
            batch = self._batch(samples, part, columns)
            if name == "values" and self._critic is not None:
                found += self._critic.values(batch)
            elif name == "ref_log_probs" and self.reference is not None:
                found += self.reference.log_probs(batch)
            elif of_actor and self._old is not None:
                found += self._old.log_probs(batch)
            elif of_actor and len(parts) > 1 and self._replays:
                found += self._replays.remember_routing(batch)
                self._remembered.append(batch.micro_batches)
            elif of_actor:
                found += self._actor.log_probs(batch)
        columns["old_values" if name == "values" else name] = found

    def _rewards(self, samples: Sequence[Sample]) -> tuple[list[float], list[float], bool]:
        """What the answers were worth, the rewards to train with, and whether they are not to be normalised again."""
        worths = [worth(sample, self._args.reward_key) for sample in samples]
        final = [reward for sample in samples if (reward := sample.final_reward) is not None]
        if samples and len(final) == len(samples):
            return worths, final, True
        return worths, [reward_of(sample, self._args.reward_key) for sample in samples], False
