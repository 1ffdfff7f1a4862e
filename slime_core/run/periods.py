"""After which rollouts a run evaluates and writes checkpoints: those of the intervals, and those that end an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.arguments import RunArguments


@dataclass(frozen=True)
class Periods:
    """The rollouts after which the options ask for something.

    Attributes:
        epoch: prompts of an epoch; None where `--num-rollout`, and not `--num-epoch`, says how long the run is.
    """

    args: RunArguments
    epoch: int | None = None

    def evaluates(self, rollout_id: int) -> bool:
        """Whether an evaluation is due after a rollout; -1: before the first one."""
        if not self.args.eval_prompt_data:
            return False
        if rollout_id < 0:
            return not self.args.skip_eval_before_train
        return self._ends(self.args.eval_interval, rollout_id)

    def saves(self, rollout_id: int) -> bool:
        """Whether a checkpoint is due after a rollout."""
        return self._ends(self.args.save_interval, rollout_id)

    def _ends(self, interval: int | None, rollout_id: int) -> bool:
        if interval is None:
            return False
        return (rollout_id + 1) % interval == 0 or self._ends_epoch(rollout_id)

    def _ends_epoch(self, rollout_id: int) -> bool:
        """Whether the last prompt of an epoch is among those of this rollout."""
        if not self.epoch:
            return False
        before, size = rollout_id * self.args.rollout_batch_size, self.args.rollout_batch_size
        return (before + size) // self.epoch > before // self.epoch
