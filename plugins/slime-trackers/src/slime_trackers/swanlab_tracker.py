"""`SwanlabTracker`: logs metrics to SwanLab, online or into local files for a later `swanlab sync`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_trackers.logged import Logged, hidden_from_command_line

if TYPE_CHECKING:
    from slime_core.contracts.tracker import Tracker
    from slime_trackers.arguments import SwanlabArguments

PROGRESS = "swanlab_run.json"
"""The file in the run directory with the SwanLab run's id and the last step that was logged."""


class SwanlabTracker:
    """Keeps one SwanLab run per slime run, with its files in the folder `swanlab` of the run directory.

    A resumed run goes on under the id that it had, and leaves out what is there already (see `Logged`). SwanLab counts steps from 0: its step is the
    number of rollouts that are done, and 0 the evaluation before training.

    Args:
        config: the resolved run, stored as the run's config. Its `resume_after` is the last rollout that a resumed run has behind it,
            or None in a new run.

    Raises:
        PluginError: the package swanlab is not installed, or SwanLab does not start.
    """

    def __init__(self, args: SwanlabArguments, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            import swanlab
        except ImportError as error:
            raise PluginError(
                f"The tracker swanlab needs the package swanlab ({error}); install it with: pip install slime-trackers[swanlab]"
            ) from error
        self._logged = Logged(run_dir / PROGRESS, config, secrets.token_hex(4))
        try:
            with hidden_from_command_line():
                self._run = swanlab.init(
                    project=args.swanlab_project,
                    workspace=args.swanlab_workspace,
                    experiment_name=run_dir.resolve().name,
                    config=config,
                    logdir=str(run_dir / "swanlab"),
                    mode=args.swanlab_mode,
                    id=self._logged.id,
                    resume="allow",
                )
        except Exception as error:  # its own kinds differ between versions
            raise PluginError(
                f"SwanLab could not start: {type(error).__name__}: {error}. Check SWANLAB_API_KEY (or `swanlab login`) and the network, "
                "or keep the metrics locally with --swanlab-mode offline."
            ) from error
        self._logged.remember()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics after a rollout, unless SwanLab has them already."""
        if new := self._logged.new(metrics, step):
            self._run.log(dict(new), step=step + 1)
            self._logged.note(new, step)

    def close(self, error: BaseException | None) -> None:
        """End the SwanLab run, as failed if there was an error."""
        if error is None:
            self._run.finish()
        else:
            self._run.finish(state="crashed", error=f"{type(error).__name__}: {error}")


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = SwanlabTracker
