"""The loop: get samples, train on them, hand the weights back. One function for `train` and `train-async`.

The only difference: `train-async` asks for the samples of the next rollout before it trains on this one's, so that the
two overlap. Data order and weights are the same where the samples do not depend on the weights, as in SFT. Where they
do, `train-async` generates with weights that are one rollout older (one-step off-policy). A rollout function that works
in the background (`slime_core.contracts.rollout.Background`) needs no asking ahead: it is given every new version as soon as there is one.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from slime_core.runtime.handles import wait

if TYPE_CHECKING:
    from slime_core.run.rollouts import Rollout
    from slime_core.run.run import Run


def train(run: Run, start: int, total: int, ahead: bool) -> None:
    """Run rollouts `start` … `total - 1`.

    Args:
        run: the two workers, and what happens around a rollout.
        ahead: `train-async`, unless the rollout function itself works in the background.
    """
    if total == 0:
        run.evaluate(rollout_id=start - 1)
    elif start == 0:
        run.evaluate_if_due(rollout_id=-1)
    if start >= total:
        return
    pending: Future[Rollout] | None = None
    for rollout_id in range(start, total):
        clock = time.perf_counter()
        try:
            result = wait(pending or run.generate(rollout_id), f"the samples of rollout {rollout_id + 1}")
        except Exception as error:
            run.finish_saving(error)
            raise
        last = rollout_id + 1 == total
        pending = run.generate(rollout_id + 1) if ahead and not last else None
        run.train(rollout_id, result, waited=time.perf_counter() - clock)
        try:
            stop = run.evaluate_if_due(rollout_id, pending)
        except Exception as error:
            run.save_after(error, rollout_id, result, pending, last)
            raise
        run.save_if_due(rollout_id, result, pending, last or stop)
        if stop or run.requests.end:
            return
