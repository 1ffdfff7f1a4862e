"""Alarms of runs that are trained by rewards. Pure; called by `slime_report.reading.alarms`."""

from __future__ import annotations

import math

from slime_report.reading.curve import Curve
from slime_report.reading.facts import Facts
from slime_report.reading.groups import status_share
from slime_report.report import Alarm, SampleRow

ZERO_SPREAD, ZERO_SPREAD_ROLLOUTS, ZERO_SPREAD_SOON = 0.5, 20, 0.9
FILTERED = 0.9
TRUNCATED, ABORTED = 0.25, 0.05
DIFFERENCE, DIFFERENCE_RISE, DIFFERENCE_LARGE = 0.05, 2.0, 0.3
ENTROPY = 0.02
CLIPPED, KL = 0.3, 0.1
FLAT = 0.25
LENGTH_RISE = 3.0


def zero_spread(facts: Facts) -> Alarm | None:
    """Most groups have equal rewards, from which nothing is learned."""
    curve = facts.curve("rollout/zero_std/share", at_least=3)
    if curve is None or not facts.is_rl:
        return None
    long = curve.recent(at_least=ZERO_SPREAD_ROLLOUTS) if curve.points >= ZERO_SPREAD_ROLLOUTS else None
    soon = curve.recent()
    if long is not None and long > ZERO_SPREAD:
        share, limit, span = long, ZERO_SPREAD, f"the last {max(ZERO_SPREAD_ROLLOUTS, curve.points // 10)} rollouts"
    elif soon is not None and soon > ZERO_SPREAD_SOON:
        share, limit, span = soon, ZERO_SPREAD_SOON, "the last rollouts"
    else:
        return None
    reward = facts.curve("rollout/raw_reward")
    mean = reward.recent() if reward else None
    return Alarm(
        "zero_spread",
        f"In {share:.0%} of the groups of {span} all rewards are equal (threshold: {limit:.0%}), and such groups teach nothing"
        f"{f'; the mean reward is {mean:.3g}' if mean is not None else ''}. Take harder or easier prompts, more samples per prompt, or "
        "--dynamic-sampling-filter-path, and look whether the reward tells answers apart.",
        *(limit, share, _since(curve, limit)),
        chart="shares",
        sample=facts.sample(lambda row: bool(row.advantage) and not any(row.advantage or ())),
    )


def filtered(facts: Facts) -> Alarm | None:
    """Dynamic sampling throws nearly everything away."""
    refused, started = (
        facts.curve("rollout/sampling/groups_filtered", 3),
        facts.curve("rollout/sampling/groups_started"),
    )
    late, of = (refused.recent() if refused else None), (started.recent() if started else None)
    if refused is None or not late or not of or late / of <= FILTERED:
        return None
    return Alarm(
        "filtered",
        f"The dynamic filter refuses {late / of:.0%} of the groups of the last rollouts (threshold: {FILTERED:.0%}): nearly all generated "
        "tokens are thrown away. Take prompts that are solved sometimes, not always or never.",
        *(FILTERED, late / of, None),
        chart="time",
    )


def truncated(facts: Facts) -> Alarm | None:
    """Many responses are cut off."""
    curve = facts.curve("rollout/truncated_ratio", at_least=3)
    share = curve.recent() if curve else None
    if curve is None or share is None or share <= TRUNCATED:
        return None
    limit = facts.arguments.get("rollout_max_response_len")
    return Alarm(
        "truncated",
        f"{share:.0%} of the responses of the last rollouts were cut off (threshold: {TRUNCATED:.0%})"
        f"{f' at --rollout-max-response-len {limit}' if limit else ''}, so their rewards judge half an answer. Raise the limit, or punish "
        "length in the reward.",
        *(TRUNCATED, share, _since(curve, TRUNCATED)),
        chart="shares",
        sample=facts.sample(lambda row: row.status == "truncated"),
    )


def aborted(facts: Facts) -> Alarm | None:
    """Samples or whole groups are lost."""
    share = status_share(facts.statuses, ("aborted", "failed"), last=10) or 0.0
    what = "samples that were trained on have been aborted or have failed"
    lost = sum(c.recent() or 0.0 for n, c in facts.curves.items() if n.startswith("rollout/sampling/groups_lost_"))
    started = facts.curve("rollout/sampling/groups_started")
    of = started.recent() if started else None
    if of and lost / of > share:
        share, what = lost / of, "groups were lost, since a generate function, a reward or the engine failed"
    if share <= ABORTED:
        return None
    return Alarm(
        "aborted",
        f"{share:.0%} of the {what} in the last rollouts (threshold: {ABORTED:.0%}). The console says what failed; --failure-policy says "
        "how often it is tried again.",
        *(ABORTED, share, None),
        sample=facts.sample(lambda row: row.status in ("aborted", "failed")),
    )


def reward_evaluation(facts: Facts) -> Alarm | None:
    """The reward of training rises, that of evaluations does not."""
    rise, reward = facts.rise("rollout/raw_reward"), facts.curve("rollout/raw_reward")
    curves = {
        n: c for n, c in facts.curves.items() if n.startswith("eval/") and n.endswith("/reward") and c.points >= 2
    }
    if rise is None or reward is None or not reward.highest or not reward.lowest or not curves:
        return None
    widest = reward.highest.value - reward.lowest.value
    if not (rise[0] > rise[1] and rise[0] > 0.1 * widest):
        return None
    told = []
    for name, curve in curves.items():
        first, last = curve.first or 0.0, curve.last or 0.0
        known = facts.intervals.get(name, {})
        ends = [known[step] for step in (curve.steps[0], curve.steps[-1]) if step in known]
        halves = [(one.high - one.low) / 2 for one in ends if one.high is not None and one.low is not None]
        unsure = math.hypot(*halves) if halves else 0.0
        if last - first >= FLAT * rise[0] or last - first > unsure > 0 or first >= 0.95 * reward.highest.value:
            return None
        told.append(f"{name} went from {first:.3g} to {last:.3g}")
    return Alarm(
        "reward_evaluation",
        f"The reward of training has risen by {rise[0]:.3g}, but {' and '.join(told)} (threshold: a quarter of the rise). The model may "
        "have found a way to please the reward that is no better answer: read the best samples, and compare the rewards of training and "
        "evaluation.",
        *(
            FLAT * rise[0],
            max((c.last or 0.0) - (c.first or 0.0) for c in curves.values()),
            next(iter(curves.values())).steps[-1],
        ),
        chart="evaluation",
        sample=facts.sample(lambda row: "best" in row.why),
    )


def logprob_difference(facts: Facts) -> Alarm | None:
    """Trainer and engine disagree more and more."""
    curve = facts.curve("train/train_rollout_logprob_abs_diff", at_least=6)
    late, early = (curve.recent(), curve.early()) if curve else (None, None)
    if curve is None or late is None or early is None:
        return None
    rising = late > DIFFERENCE and late > DIFFERENCE_RISE * early
    if not rising and late <= DIFFERENCE_LARGE:
        return None
    limit = DIFFERENCE if rising else DIFFERENCE_LARGE
    return Alarm(
        "logprob_difference",
        f"Log-probs of trainer and engine differ by {late:.3g} on average in the last rollouts, by {early:.3g} in the first (threshold: "
        f"{DIFFERENCE:g} and {DIFFERENCE_RISE:g} times as much, or {DIFFERENCE_LARGE:g}): the engine samples from another model than the one "
        "that is trained. Look at staleness and precision, and weigh tokens with --use-tis.",
        *(limit, late, _since(curve, limit)),
        chart="logprob_difference",
        sample=facts.sample(lambda row: "largest_difference" in row.why),
    )


def entropy(facts: Facts) -> Alarm | None:
    """The model is sure of everything."""
    curve = facts.curve("train/entropy_loss", at_least=6)
    late, early = (curve.recent(), curve.early()) if curve else (None, None)
    if curve is None or late is None or early is None or late >= ENTROPY or early <= ENTROPY:
        return None
    return Alarm(
        "entropy",
        f"The entropy has fallen from {early:.3g} to {late:.3g} nats per token (threshold: {ENTROPY:g}): the model always says the same, so "
        "it finds nothing better any more. Raise --eps-clip-high, --entropy-coef or --rollout-temperature, or lower --lr.",
        *(ENTROPY, late, curve.since([mean is not None and mean < ENTROPY for mean in curve.means])),
        chart="entropy",
    )


def clip_fraction(facts: Facts) -> Alarm | None:
    """Much of what would be learned is clipped away."""
    curve = facts.curve("train/pg_clipfrac", at_least=3)
    share = curve.recent() if curve else None
    if curve is None or share is None or share <= CLIPPED:
        return None
    return Alarm(
        "clip_fraction",
        f"The ratio of {share:.0%} of the tokens of the last rollouts is clipped (threshold: {CLIPPED:.0%}): the weights move too far within "
        "a rollout. Lower --lr, or take fewer optimizer steps for each rollout.",
        *(CLIPPED, share, _since(curve, CLIPPED)),
        chart="shares",
    )


def kl(facts: Facts) -> Alarm | None:
    """The policy runs away from the one that sampled."""
    curve = facts.curve("train/ppo_kl", at_least=3)
    late = curve.recent() if curve else None
    if curve is None or late is None or abs(late) <= KL:
        return None
    return Alarm(
        "kl",
        f"The KL between the weights before and within a rollout is {late:.3g} in the last rollouts (threshold: {KL:g}): each rollout moves "
        "the model too far. Lower --lr, or take fewer optimizer steps for each rollout.",
        *(KL, late, curve.since([mean is not None and abs(mean) > KL for mean in curve.means])),
        chart="kl",
    )


def length(facts: Facts) -> Alarm | None:
    """Responses become longer and longer without becoming better."""
    curve = facts.curve("rollout/response_len/mean", at_least=6)
    late, early = (curve.recent(), curve.early()) if curve else (None, None)
    if curve is None or not late or not early or late <= LENGTH_RISE * early:
        return None
    rise, cut = facts.rise("rollout/raw_reward"), facts.curve("rollout/truncated_ratio")
    better = rise is not None and rise[0] > rise[1]
    if better and ((cut.recent() or 0.0) if cut else 0.0) < 0.1:
        return None
    return Alarm(
        "length",
        f"Responses have grown from {early:.0f} to {late:.0f} tokens (threshold: {LENGTH_RISE:g} times) without a better reward to show for "
        "it, or until they are cut off. Read the longest samples, and punish length in the reward.",
        *(LENGTH_RISE * early, late, _since(curve, LENGTH_RISE * early)),
        chart="length",
        sample=_longest(facts),
    )


def _longest(facts: Facts) -> str | None:
    rows: list[SampleRow] = [row for row in facts.rows if row.dataset is None]
    return max(rows, key=lambda row: row.length).id if rows else None


def _since(curve: Curve, limit: float) -> int | None:
    """The step from which on a metric has been above a limit."""
    return curve.since([mean is not None and mean > limit for mean in curve.means])


POLICY_ALARMS = (
    *(zero_spread, filtered, truncated, aborted, reward_evaluation, logprob_difference),
    *(entropy, clip_fraction, kl, length),
)
"""In order of how serious they are."""
