"""`MlflowTracker`: logs metrics to MLflow, at a server or into local files."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_trackers.logged import Logged, hidden_from_command_line

if TYPE_CHECKING:
    from slime_core.contracts.tracker import Tracker
    from slime_trackers.arguments import MlflowArguments

PROGRESS = "mlflow_run.json"
"""The file in the run directory with the MLflow run's id and the last step that was logged."""


class MlflowTracker:
    """Keeps one MLflow run per slime run.

    A resumed run goes on in the MLflow run that it had, and leaves out what is there already (see `Logged`). Steps are rollout ids; what MLflow allows
    in no name becomes `_`: `pass@1` is `pass_1`.

    Args:
        config: the resolved run, stored as the artifact `config.yaml`. Its `resume_after` is the last rollout that a resumed run has
            behind it, or None in a new run.

    Raises:
        PluginError: the package mlflow is not installed, or the server cannot be reached.
    """

    def __init__(self, args: MlflowArguments, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise PluginError(
                f"The tracker mlflow needs the package mlflow ({error}); install it with: pip install slime-trackers[mlflow]"
            ) from error
        uri = args.mlflow_tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (run_dir.resolve() / "mlruns").as_uri()
            os.environ.setdefault(
                "MLFLOW_ALLOW_FILE_STORE", "true"
            )  # MLflow wants a database; files need no further package
        try:
            with hidden_from_command_line():
                self._client = MlflowClient(tracking_uri=uri)
                self._logged = Logged(run_dir / PROGRESS, config, "")
                if not self._logged.resumed:
                    self._logged.id = self._new_run(args, run_dir)
                self._client.log_dict(self._logged.id, config, "config.yaml")
                self._client.set_terminated(self._logged.id, "RUNNING")
        except MlflowException as error:
            raise PluginError(
                f"MLflow could not start: {error}. Check --mlflow-tracking-uri, or leave it out to keep the metrics in the run directory."
            ) from error
        self._logged.remember()

    def _new_run(self, args: MlflowArguments, run_dir: Path) -> str:
        known = self._client.get_experiment_by_name(args.mlflow_experiment)
        experiment = known.experiment_id if known else self._client.create_experiment(args.mlflow_experiment)
        run_id: str = self._client.create_run(experiment, run_name=run_dir.resolve().name).info.run_id
        return run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics at a rollout id, unless MLflow has them already."""
        from mlflow.entities import Metric

        if new := self._logged.new(metrics, step):
            now = int(time.time() * 1000)
            rows = [Metric(re.sub(r"[^\w./ -]", "_", name), value, now, step) for name, value in new.items()]
            for start in range(0, len(rows), 1000):  # as many as the server takes at once
                self._client.log_batch(self._logged.id, metrics=rows[start : start + 1000])
            self._logged.note(new, step)

    def close(self, error: BaseException | None) -> None:
        """End the MLflow run, as failed if there was an error."""
        self._client.set_terminated(self._logged.id, "FINISHED" if error is None else "FAILED")


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = MlflowTracker
