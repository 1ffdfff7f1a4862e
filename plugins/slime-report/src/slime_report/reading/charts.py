"""Which metrics are drawn together, in the order in which a person reads them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from slime_report.reading.curve import Curve
from slime_report.reading.metrics import TIME
from slime_report.report import Chart

FURTHER = 24
"""Charts of further metrics at most."""
_QUIET = ("num_", "hooks/", "sampling/", "in_flight/", "zero_std/count")
"""Metrics that have no chart of their own: counts of ordinary events."""


def _chart(
    id: str, title: str, unit: str, metrics: str, about: str, kind: Literal["line", "stacked"] = "line"
) -> Chart:
    return Chart(id, title, unit, kind, metrics.split(), about)


CHARTS = (
    _chart(
        *("reward", "Reward", "reward", "rollout/raw_reward"),
        "The mean reward of the samples that are trained on, with the 10th to 90th percentile where groups were recorded; it should rise.",
    ),
    _chart(
        *("evaluation", "Evaluation", "reward", "eval/*/reward"),
        "The mean reward on data that is not trained on, with its 95 % interval; it should rise with the reward.",
    ),
    _chart(
        *("eval_loss", "Evaluation loss", "nats per token", "eval/*/loss"),
        "The loss on data that is not trained on; it should fall, and not rise again.",
    ),
    _chart(
        *("loss", "Loss", "", "train/loss train/critic/loss"),
        "What is minimised. In fine-tuning it falls; the loss of a policy stays near 0 and says little.",
    ),
    _chart(
        *("kl", "KL", "nats per token", "train/kl_loss train/ppo_kl train/train_rollout_kl"),
        "How far the model is from the reference model, from the weights before the rollout, and trainer from engine.",
    ),
    _chart(
        *("entropy", "Entropy", "nats per token", "train/entropy_loss"),
        "How undecided the model is; near 0 it always says the same, and nothing new is tried.",
    ),
    _chart(
        *("grad_norm", "Gradient norm", "", "train/grad_norm train/critic/grad_norm"),
        "Before clipping; it should neither rise steadily nor jump.",
    ),
    _chart(
        *("length", "Response length", "tokens", "rollout/response_len/mean rollout/response_len/max"),
        "The mean and the longest response of a rollout.",
    ),
    _chart(
        *(
            "shares",
            "Shares of samples and groups",
            "share",
            "rollout/truncated_ratio rollout/zero_std/share train/pg_clipfrac train/tis_clipfrac",
        ),
        "Responses that were cut off, groups whose rewards are all equal and teach nothing, and tokens that were clipped.",
    ),
    _chart(
        *("logprob_difference", "Trainer against engine", "nats", "train/train_rollout_logprob_abs_diff"),
        "The mean difference between the log-probs of trainer and engine for the same tokens; it should stay small.",
    ),
    _chart(
        *("staleness", "Staleness", "versions", "rollout/staleness/mean rollout/staleness/max"),
        "By how many versions of the weights tokens are older than those that they train.",
    ),
    _chart(
        *("images", "Image tokens", "tokens", "rollout/image_tokens"),
        "The tokens of a rollout that stand for images; 0 where it shows none.",
    ),
    _chart(*("lr", "Learning rate", "", "train/lr train/critic/lr"), "The rate of the optimizer in each step."),
    _chart(
        *("tokens", "Speed", "tokens per second", "perf/tokens_per_second"),
        "Tokens of prompts and responses that were trained on, per second of a rollout.",
    ),
    _chart(
        *("time", "Time of a rollout", "seconds", " ".join(TIME.values())),
        "Where the time of every rollout went.",
        kind="stacked",
    ),
)
_HIDDEN = ("perf/", "time/")


def charts_of(curves: Mapping[str, Curve]) -> list[Chart]:
    """The charts of a run: those above with the metrics that it has, and then one for each further metric that changes."""
    found, drawn = [], set[str]()
    for chart in CHARTS:
        metrics = [name for pattern in chart.metrics for name in _matching(pattern, curves)]
        if chart.kind == "stacked":
            metrics = [name for name in metrics if curves[name].total > 0]
        drawn.update(metrics)
        if metrics:
            found.append(Chart(chart.id, chart.title, chart.unit, chart.kind, metrics, chart.about))
    further = [name for name in sorted(curves) if name not in drawn and _is_told(name, curves[name])]
    found += [
        Chart(f"metric-{name.replace('/', '-')}", name, "", "line", [name], f"The metric {name}, as the run logged it.")
        for name in further[:FURTHER]
    ]
    return found


def _matching(pattern: str, curves: Mapping[str, Curve]) -> list[str]:
    """The metrics that a name stands for: itself, or with "*" those with something else in its place."""
    head, star, tail = pattern.partition("*")
    names = sorted(n for n in curves if n.startswith(head) and n.endswith(tail)) if star else [pattern]
    return [name for name in names if name in curves and curves[name].points]


def _is_told(name: str, curve: Curve) -> bool:
    own = name.partition("/")[2]
    changes = curve.lowest is not None and curve.highest is not None and curve.lowest.value < curve.highest.value
    return changes and not name.startswith(_HIDDEN) and not own.startswith(_QUIET) and "/hooks/" not in name
