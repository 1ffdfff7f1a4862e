"""`TrackioTracker`: logs metrics to trackio, a local dashboard (`trackio show --project NAME`)."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_trackers.logged import Logged, hidden_from_command_line

if TYPE_CHECKING:
    from slime_core.contracts.tracker import Tracker
    from slime_trackers.arguments import TrackioArguments

PROGRESS = "trackio_run.json"
"""The file in the run directory with the run's name at trackio and the last step that was logged."""


class TrackioTracker:
    """Keeps one run in trackio's local database per slime run, in the folder TRACKIO_DIR, by default trackio's own.

    A resumed run goes on under the name that it had, and leaves out what is there already (see `Logged`). Steps are rollout ids.

    Args:
        config: the resolved run, stored as the run's config. Its `resume_after` is the last rollout that a resumed run has behind it,
            or None in a new run.

    Raises:
        PluginError: the package trackio is not installed.
    """

    def __init__(self, args: TrackioArguments, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            import trackio
        except ImportError as error:
            raise PluginError(
                f"The tracker trackio needs the package trackio ({error}); install it with: pip install slime-trackers[trackio]"
            ) from error
        name = run_dir.resolve().name
        self._logged = Logged(run_dir / PROGRESS, config, f"{name}-{secrets.token_hex(2)}")
        with hidden_from_command_line():
            self._run = trackio.init(
                args.trackio_project,
                name=self._logged.id,
                config=config,
                resume="allow" if self._logged.resumed else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self._logged.remember()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a rollout id, unless trackio has them already."""
        if new := self._logged.new(metrics, step):
            self._run.log(dict(new), step=step)
            self._logged.note(new, step)

    def close(self, error: BaseException | None) -> None:
        """Write everything that was logged, and end the run."""
        self._run.finish()


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = TrackioTracker
