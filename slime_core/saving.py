"""`Checkpoints`: writes the checkpoints of a run. The training ranks write their parts, the driver the rest.

With `--async-save` the ranks return as soon as they have a copy of their state, and training goes on; the driver asks
now and then whether all of it is on disk, and makes the checkpoint complete then.
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from slime_core import checkpoint
from slime_core.plugins import Plugins
from slime_core.runtime import Handle, LocalHandle, wait
from slime_core.tracking import Console


class Checkpoints:
    """One checkpoint at a time.

    Args:
        trainer: whose state is saved.
    """

    def __init__(self, args: Any, plugins: Plugins, trainer: Handle, console: Console) -> None:
        self._args, self._plugins, self._trainer, self._console = args, plugins, trainer, console
        self._saving: checkpoint.Saving | None = None
        self._state: dict[str, Any] = {}
        self._finishing: Future[Path] | None = None

    def save(self, rollout_id: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `rollout_id`, once the one before is complete.

        Args:
            state: what the driver adds; plain JSON data.

        Raises:
            CheckpointError: it could not be written.
        """
        self.advance(to_the_end=True)
        with checkpoint.Saving(Path(self._args.save), rollout_id) as saving:
            wait(self._trainer.call("save_state", saving.trainer), f"the checkpoint after rollout {rollout_id + 1}")
        self._saving, self._state = saving, state
        self.advance(to_the_end=not self._args.async_save)

    def advance(self, to_the_end: bool) -> None:
        """Make the checkpoint that is being written complete, if the ranks have written theirs.

        Args:
            to_the_end: wait for it.
        """
        if self._saving is None:
            return
        what = f"the checkpoint after rollout {self._saving.rollout_id + 1}"
        with self._saving as saving:
            if self._finishing is None:
                if not all(wait(self._trainer.call_all("saved", to_the_end), what)):
                    return
                self._finishing = LocalHandle(saving, "checkpoint").call("finish", self._state)
            if not to_the_end and not self._finishing.done():
                return
            path = wait(self._finishing, what)
        self._saving = self._finishing = None
        if self._args.save_total_limit is not None:
            checkpoint.keep_newest(Path(self._args.save), self._args.save_total_limit)
        self._console.say(f"checkpoint: {path}")
        self._plugins.notify("slime_checkpoint_saved", args=self._args, rollout_id=saving.rollout_id, path=path)
