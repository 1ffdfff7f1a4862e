"""Where metrics go: TensorBoard, Weights & Biases, a file, a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.contracts.kind import Kind

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments


class Tracker(Protocol):
    """Receives metrics. Made once per run as `Tracker(args, run_dir, config)`."""

    def __init__(self, args: RunArguments, run_dir: Path, config: dict[str, Any]) -> None:
        """`config` is the resolved run: "arguments", their "provenance", the chosen "components", the "plugins" with
        their versions, and "resume_after", the last rollout that a resumed run has behind it, or None. It is told of the metrics
        after that once more; "branches" says whether they may be others then: it goes on from an earlier checkpoint than the newest, or
        options or data have changed."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics with their full names (`train/loss`), `step` being the rollout id."""
        raise NotImplementedError

    def close(self, error: BaseException | None) -> None:
        """The run ended; `error` is what ended it, or None. Everything that was logged must be stored on return."""
        raise NotImplementedError


KINDS = (Kind("tracker", "slime_trackers", Tracker, ("--tracker",)),)
