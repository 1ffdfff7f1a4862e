"""The last steps of a run, however it ends. Called by `slime_core.run.launch`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from slime_core.plugins.boundaries import children

logger = logging.getLogger(__name__)


def take_all(steps: Mapping[str, Callable[[], object]], error: BaseException | None) -> None:
    """Take the steps, each also if the one before fails. What went wrong first is what is raised: `error`, which ended the run and is
    being raised already, or else the first failure here; all others are warnings.

    Args:
        steps: each under the name of what it closes.
    """
    first = error
    for what, step in steps.items():
        try:
            step()
        except BaseException as failure:
            if first is None:
                first = failure
            else:
                logger.warning("%s could not be closed: %s: %s", what, type(failure).__name__, failure)
    if first is not None and first is not error:
        raise first


def name_left_behind(started_before: set[int]) -> None:
    """Say which processes components have started that are still there when everything is closed.

    Args:
        started_before: children that this process had before the run.
    """
    for number, words in children().items():
        if number not in started_before:
            logger.warning(
                "process %d, which a component of the run has started, is still there: %s", number, words[:200]
            )
