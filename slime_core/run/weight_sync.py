"""Hands the trainer's weights to the engine, and lets the two take turns with the memory of devices that they share."""

from __future__ import annotations

import time
from typing import Literal

from slime_core.arguments import RunArguments
from slime_core.plugins import Plugins
from slime_core.rollout.worker import RolloutWorker
from slime_core.runtime.handles import Handle, wait
from slime_core.training.worker import TrainWorker

Who = Literal["trainer", "engine"]


class WeightSync:
    """Moves weights, and who may use the devices' memory, between the two workers of a run.

    Args:
        trainer: None under `--debug-rollout-only`: the engine keeps the weights of `--hf-checkpoint`.
        takes_turns: trainer and engine take turns with the devices' memory (`--offload`). At first the trainer has it.
        interval: only versions that this divides are handed over, but for the first one (`--update-weights-interval`).
        keeps: the trainer keeps a copy of what the engine gets.
        resumed: the version that the engine had when the checkpoint was written that the run goes on from, if there is a copy of it.

    Attributes:
        version: of the engine's weights; None before the first ones.
        keeps: as given.
    """

    def __init__(
        self,
        args: RunArguments,
        plugins: Plugins,
        rollouts: Handle[RolloutWorker],
        trainer: Handle[TrainWorker] | None,
        takes_turns: bool,
        interval: int = 1,
        keeps: bool = False,
        resumed: int | None = None,
    ) -> None:
        self._args, self._plugins, self._rollouts, self._trainer = args, plugins, rollouts, trainer
        self._takes_turns = takes_turns
        self._in_memory: set[Who] = {"trainer"}
        self.keeps, self._interval, self._resumed = keeps, interval, resumed
        self.version: int | None = None
        self._given_up = False
        self._sends = False  # the trainer has the engine's own weight sender

    @property
    def kept(self) -> int | None:
        """The version of the engine's weights that the trainer keeps a copy of, or has kept one of since before it was resumed; None
        where it keeps none."""
        return (self._resumed if self.version is None else self.version) if self.keeps else None

    def update(self, version: int) -> None:
        """Hand the trainer's weights, which are of this version, to the engine, if it has others and new ones are due."""
        trainer, rollouts = self._trainer, self._rollouts
        between = version % self._interval != 0
        if (
            trainer is None
            or (self.version == version and not self._given_up)
            or (between and self.version is not None)
        ):
            return
        earlier = self._resumed if between else None
        started = time.perf_counter()
        self.have_memory("trainer", "engine")
        if self.version is None and (sender := wait(rollouts.call(RolloutWorker.weight_sender), "the engine")):
            wait(trainer.call(TrainWorker.set_weight_sender, sender), "the trainer's way to the engine")
            self._sends = True
        if earlier is not None:
            version = earlier
            wait(trainer.call(TrainWorker.serve_version, version), "the weights that the engine had")
        elif self.keeps:
            wait(trainer.call(TrainWorker.keep_version, version), "a copy of the weights")
        if self._sends:
            wait(trainer.call(TrainWorker.send_weights, version), "the engine's weight update")
        else:
            self._hand_over(trainer, version)
        if earlier is not None:
            wait(trainer.call(TrainWorker.serve_version, None), "the trainer's weights")
        self.version, self._given_up = version, False
        seconds = time.perf_counter() - started
        self._plugins.notify("slime_weights_updated", args=self._args, version=version, seconds=seconds)

    def _hand_over(self, trainer: Handle[TrainWorker], version: int) -> None:
        """Carry the weights from the one worker to the other, bucket by bucket: while the engine takes one, the trainer gathers
        the next."""
        try:
            gathered = trainer.keep(TrainWorker.next_weights)
            wanted = True
            while wanted:
                bucket = wait(gathered, "the trainer's weights")
                gathered = trainer.keep(TrainWorker.next_weights)
                taken = self._rollouts.call(RolloutWorker.take_weights, bucket, version)
                del bucket
                wanted = wait(taken, "the engine's weight update")
        except Exception:
            wait(self._rollouts.call(RolloutWorker.drop_weights), "the engine to leave its weight update")
            raise
        finally:
            trainer.call(TrainWorker.drop_weights)

    def give_up(self) -> None:
        """Let the engine free its weights while the trainer makes new ones, where every version is handed over. Nothing is
        generated until `update`."""
        if self._trainer is not None and self._interval == 1 and self.version is not None and not self._sends:
            wait(self._rollouts.call(RolloutWorker.give_up_weights), "the engine to give up its weights")
            self._given_up = True

    def have_memory(self, *who: Who) -> None:
        """Let trainer, engine or both have the devices' memory, where the two take turns; whoever is not named gives it back."""
        if not self._takes_turns or self._trainer is None:
            return
        for name in self._in_memory.difference(who):
            gone = (
                self._trainer.call(TrainWorker.offload)
                if name == "trainer"
                else self._rollouts.call(RolloutWorker.offload)
            )
            wait(gone, f"the {name} to give back its memory")
        for name in set(who) - self._in_memory:
            back = (
                self._trainer.call(TrainWorker.onload)
                if name == "trainer"
                else self._rollouts.call(RolloutWorker.onload)
            )
            wait(back, f"the {name} to take its memory")
        self._in_memory = set(who)

    def have_trainer_back(self) -> None:
        """Let the trainer have its memory beside whoever has theirs: the engine may be what failed, and is asked for nothing."""
        self.have_memory("trainer", *self._in_memory)
