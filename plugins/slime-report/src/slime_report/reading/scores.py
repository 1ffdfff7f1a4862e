"""Scores with intervals, where the time went, and which data was lost. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from slime_report.reading.curve import Curve, rounded
from slime_report.reading.evaluations import Interval
from slime_report.reading.metrics import TIME
from slime_report.report import Loss, Phase, Score

Intervals = Mapping[str, Mapping[int, Interval]]
REST = "loading, evaluations, checkpoints"

_WHAT = {
    "skipped_malformed": "rows that could not be read",
    "skipped_over_long": "conversations longer than --rollout-max-context-len",
    "skipped_over_long_prompt": "prompts longer than --rollout-max-prompt-len leaves room for",
    "skipped_no_trainable_token": "conversations without a token to train",
    "skipped_dropped_text": "conversations of which the chat template drops text",
    "with_dropped_text": "conversations and prompts that were used although the chat template drops some of their text",
    "with_mask_warnings": "conversations with a warning about their mask; slime data preview shows it",
    "truncated": "conversations that were cut to --rollout-max-context-len",
    "cut_to_context": "responses that were cut to the model's context",
    "empty_responses": "responses without a token",
    "removed_samples": "samples that --rollout-sample-filter-path took out of training",
    "num_skipped_samples": "samples whose advantages are all 0: they were not computed, since they teach nothing",
    "sampling/groups_filtered": "groups that the dynamic filter refused",
    "sampling/groups_stopped": "groups that were stopped because there were enough",
    "aborted_tokens_discarded": "tokens of stopped groups that were thrown away",
    "discarded_tokens": "generated tokens that are in no sample, those of stopped groups included",
}
"""What metrics count that was not trained as it stands."""
_FAMILIES = {
    "dynamic_filter/drop_": "groups that the dynamic filter refused, by its reason",
    "sampling/groups_lost_": "groups of which a sample was lost",
}


def scores_of(curves: Mapping[str, Curve], intervals: Intervals, samples: int) -> list[Score]:
    """What says how good the model is: evaluations first, then the reward of training or, without one, its loss.

    Args:
        intervals: of evaluations, by metric and step.
        samples: in a rollout.
    """
    names = [
        n for kind in ("reward", "loss") for n in sorted(curves) if n.startswith("eval/") and n.endswith(f"/{kind}")
    ]
    names += ["rollout/raw_reward"] if _moves(curves, "rollout/raw_reward") else ["train/loss"]
    found = []
    for name in names:
        curve = curves.get(name)
        if curve is None or curve.first is None or curve.last is None or not curve.highest or not curve.lowest:
            continue
        higher = not name.endswith("loss")
        best = curve.highest if higher else curve.lowest
        known = intervals.get(name, {}).get(curve.steps[-1])
        n, low, high = (known.n, known.low, known.high) if known else (0, None, None)
        deviation = curves.get("rollout/reward_std")
        if name == "rollout/raw_reward" and samples and deviation is not None and deviation.last is not None:
            half = 1.96 * deviation.last / math.sqrt(samples)
            n, low, high = samples, curve.last - half, curve.last + half
        found.append(
            Score(
                name, _6(curve.first), _6(best.value), best.step, _6(curve.last), n, rounded(low), rounded(high), higher
            )
        )
    return found


def _6(value: float) -> float:
    return float(f"{value:.6g}")


def _moves(curves: Mapping[str, Curve], name: str) -> bool:
    """Whether a metric is there and is not 0 in the whole run, as the reward is in fine-tuning."""
    curve = curves.get(name)
    return curve is not None and any((e.value if e else 0.0) != 0.0 for e in (curve.lowest, curve.highest))


def time_of(curves: Mapping[str, Curve], seconds: float) -> list[Phase]:
    """Where the time went, longest first.

    Args:
        seconds: of the whole run.
    """
    found = {phase: curves[name].total if name in curves else 0.0 for phase, name in TIME.items()}
    known = sum(found.values())
    found[REST] = max(0.0, seconds - known)
    total = sum(found.values())
    return [
        Phase(phase, round(spent, 3), round(spent / total, 4))
        for phase, spent in sorted(found.items(), key=lambda pair: -pair[1])
        if total and spent > 0
    ]


def losses_of(curves: Mapping[str, Curve]) -> list[Loss]:
    """Data that was not trained as it stands, most first."""
    found = []
    for name, curve in curves.items():
        scope, _, own = name.partition("/")
        if scope not in ("rollout", "train") or curve.total < 1:
            continue
        what = _WHAT.get(own) or next((words for head, words in _FAMILIES.items() if own.startswith(head)), None)
        if what is None and own.startswith("skipped_"):
            what = f"rows that were skipped: {own.removeprefix('skipped_').replace('_', ' ')}"
        if what is None and own.startswith("hooks/") and own.endswith("/dropped"):
            what = f"what the {own.split('/')[1]} was called for was dropped after it had failed"
        if what is not None:
            found.append(Loss(own, round(curve.total), what))
    return sorted(found, key=lambda loss: (-loss.count, loss.reason))
