"""`WandbTracker`: logs metrics to Weights & Biases, online or into local files for a later `wandb sync`."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_core.secrets import masked, remember_secret
from slime_core.whole_file import write_whole

if TYPE_CHECKING:
    from slime_core.contracts.tracker import Tracker
    from slime_trackers.arguments import WandbArguments

PROGRESS = "wandb_run.json"
"""The file in the run directory with the W&B run's id and the last step that was logged."""


class WandbTracker:
    """Keeps one W&B run per slime run.

    A resumed run goes on under the id of the W&B run that it had, and leaves out what W&B has already: repeated steps
    would otherwise appear twice. `wandb_run.json` in the run directory holds the id and the last step that was logged.

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
                f"--use-wandb needs the package wandb ({error}); install it with: pip install slime-trackers[wandb]"
            ) from error
        self._file = run_dir / PROGRESS
        resumed = config.get("resume_after") is not None and self._file.exists()
        previous = json.loads(self._file.read_text()) if resumed else {}
        self._id: str = previous.get("id") or secrets.token_hex(4)
        self._last: int | None = previous.get("last_step")
        self._last_names: list[str] = previous.get("last_names", [])
        self._known_last, self._known_names = self._last, frozenset(self._last_names)
        if args.wandb_key:
            remember_secret(args.wandb_key.get_secret_value())
        key = args.wandb_key.get_secret_value() if args.wandb_key else None
        # The console is not captured: wandb would replace the streams that the progress bar draws on.
        own: dict[str, Any] = {"base_url": args.wandb_host, "api_key": key, "console": "off"}
        settings = wandb.Settings(**{name: value for name, value in own.items() if value is not None})
        folder = Path(args.wandb_dir or run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _hidden_from_command_line():
                self._run = wandb.init(
                    entity=args.wandb_team,
                    project=args.wandb_project,
                    group=args.wandb_group,
                    name=run_dir.resolve().name,
                    dir=str(folder),
                    mode=args.wandb_mode,
                    id=self._id,
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
        self._remember()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics by their full names at a rollout id, unless W&B has them already."""
        if self._known_last is not None:
            if step < self._known_last:
                return
            if step == self._known_last:
                metrics = {name: value for name, value in metrics.items() if name not in self._known_names}
        if not metrics:
            return
        self._run.log({**metrics, "rollout_id": step})
        self._last_names = [*(self._last_names if step == self._last else []), *metrics]
        self._last = step
        self._remember()

    def close(self, error: BaseException | None) -> None:
        """End the W&B run, as failed if there was an error."""
        import wandb

        self._run.finish(exit_code=0 if error is None else 1)
        wandb.teardown()  # finish() may return before wandb's service has written its file; this waits for it

    def _remember(self) -> None:
        """Write the id and what was logged last into the run directory."""
        state = {"id": self._id, "last_step": self._last, "last_names": self._last_names}
        write_whole(self._file, json.dumps(state))


@contextmanager
def _hidden_from_command_line() -> Iterator[None]:
    """Mask secrets on the command line meanwhile: wandb stores the command line with the run."""
    given = sys.argv
    sys.argv = [masked(word) for word in given]
    try:
        yield
    finally:
        sys.argv = given


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = WandbTracker
