"""`WandbTracker`: logs metrics to Weights & Biases, online or into local files for a later `wandb sync`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_core.secrets import remember_secret
from slime_trackers.logged import Logged, hidden_from_command_line

if TYPE_CHECKING:
    from slime_core.contracts.tracker import Tracker
    from slime_trackers.arguments import WandbArguments

PROGRESS = "wandb_run.json"
"""The file in the run directory with the W&B run's id and the last step that was logged."""


class WandbTracker:
    """Keeps one W&B run per slime run.

    A resumed run goes on under the id of the W&B run that it had, and leaves out what W&B has already: repeated steps
    would otherwise appear twice; where these may have other numbers, it begins another W&B run. `wandb_run.json` in the run directory holds the id and the last step that was logged.

    Charts have the rollout id on their x-axis (metric `rollout_id`); W&B's own step only counts rows.

    Args:
        config: the resolved run, stored as the W&B run's config. Its `resume_after` is the last rollout that a resumed
            run has behind it, or None in a new run.

    Raises:
        PluginError: the package wandb is not installed, or W&B does not start.
    """

    def __init__(self, args: WandbArguments, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise PluginError(
                f"The tracker wandb needs the package wandb ({error}); install it with: pip install slime-trackers[wandb]"
            ) from error
        self._logged = Logged(run_dir / PROGRESS, config, secrets.token_hex(4))
        if args.wandb_key:
            remember_secret(args.wandb_key.get_secret_value())
        key = args.wandb_key.get_secret_value() if args.wandb_key else None
        # The console is not captured: wandb would replace the streams that the progress bar draws on.
        own: dict[str, Any] = {"base_url": args.wandb_host, "api_key": key, "console": "off"}
        settings = wandb.Settings(**{name: value for name, value in own.items() if value is not None})
        folder = Path(args.wandb_dir or run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with hidden_from_command_line():
                self._run = wandb.init(
                    entity=args.wandb_team,
                    project=args.wandb_project,
                    group=args.wandb_group,
                    name=run_dir.resolve().name,
                    dir=str(folder),
                    mode=args.wandb_mode,
                    id=self._logged.id,
                    resume="allow",
                    config=config,
                    settings=settings,
                )
        except wandb.errors.Error as error:
            raise PluginError(
                f"Weights & Biases could not start: {error}. Check --wandb-key, --wandb-host and the network, or keep "
                "the metrics locally with --wandb-mode offline."
            ) from error
        self._run.define_metric("rollout_id")
        self._run.define_metric("*", step_metric="rollout_id")
        self._logged.remember()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics by their full names at a rollout id, unless W&B has them already."""
        if new := self._logged.new(metrics, step):
            self._run.log({**new, "rollout_id": step})
            self._logged.note(new, step)

    def close(self, error: BaseException | None) -> None:
        """End the W&B run, as failed if there was an error."""
        import wandb

        self._run.finish(exit_code=0 if error is None else 1)
        wandb.teardown()  # finish() may return before wandb's service has written its file; this waits for it


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = WandbTracker
