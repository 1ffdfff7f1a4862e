"""What is wrong with a run, or probably is, in words: every alarm is a function of the facts. Pure.

docs/read-a-run.md has a paragraph for each. Windows are the last tenth of a run, of at least five rollouts, unless said; so one odd
rollout is no alarm.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from slime_report.reading.facts import Facts
from slime_report.reading.image_alarms import blank_images, same_image
from slime_report.reading.policy_alarms import POLICY_ALARMS, zero_spread
from slime_report.report import Alarm

SILENT_S, SILENT_LOADING_S, SILENT_ROLLOUTS = 300.0, 1800.0, 10.0
GRAD_CLIP_FACTOR, GRAD_RISE = 20.0, 5.0
MASKED = 0.99
LOSS_RISE, EVAL_LOSS_RISE = 0.2, 0.05
CUT, LOST = 0.25, 0.10
_NOT_FINITE = re.compile(r"\b(nan|inf|infinite|not finite|non-finite)\b", re.IGNORECASE)
_NUMBERS = ("train/loss", "train/grad_norm", "train/critic/loss", "train/critic/grad_norm")

PHASES = {
    "rollout_finished": "the trainer: the samples of rollout {n} are there and no optimizer step has begun",
    "before_train_step": "an optimizer step of rollout {n}",
    "rollout_trained": "what follows training on rollout {n}: an evaluation, a checkpoint or the next samples",
    "weights_updated": "samples: the engine has the weights of version {version}",
    "eval_finished": "what follows the evaluation after rollout {n}: a checkpoint or the next samples",
    "checkpoint_saved": "the samples of the rollout after {n}, whose checkpoint is complete",
}
"""What a run is in the middle of, by its last sign of life."""


def in_the_middle_of(facts: Facts) -> str:
    """What a run that goes on, or was killed, was waiting for; "" if nobody knows."""
    sign = facts.sign
    if sign is None or sign.what not in PHASES:
        return "loading" if not facts.done else ""
    return PHASES[sign.what].format(n=sign.rollout_id + 1, version=sign.rollout_id)


def alarms_of(facts: Facts) -> list[Alarm]:
    """All alarms of a run, most serious first; none if it is healthy."""
    return [alarm for alarm in (rule(facts) for rule in ALARMS) if alarm is not None]


def not_finite(facts: Facts) -> Alarm | None:
    """Loss or gradient were NaN or infinite, in a metric or in the error that ended the run."""
    text = str(facts.error.get("text", ""))
    if facts.error.get("type") == "TrainingError" and _NOT_FINITE.search(text):
        step = facts.done + 1
        return Alarm(
            "not_finite",
            f"Loss or gradient became NaN or infinite in rollout {step}, which ended the run (threshold: none may be): {_first_line(text)} "
            "Lower --lr, look at the samples that the message names, and go on from the last checkpoint.",
            *(None, None, step),
            chart="grad_norm",
        )
    for name in _NUMBERS:
        curve = facts.curve(name)
        if curve is not None and curve.not_finite is not None:
            return Alarm(
                "not_finite",
                f"{name} was NaN or infinite in rollout {curve.not_finite} (threshold: none may be). What was trained from there on is "
                "worthless; lower --lr and go on from a checkpoint before it.",
                *(None, None, curve.not_finite),
                chart="grad_norm" if name.endswith("grad_norm") else "loss",
            )
    return None


def failed(facts: Facts) -> Alarm | None:
    """An error ended the run."""
    if facts.state != "failed" or not_finite(facts):
        return None
    what = f"{facts.error.get('type', 'an error')}: {_first_line(str(facts.error.get('text', '')))}"
    return Alarm("failed", f"The run was ended by an error after rollout {facts.done}. {what}", None, None, facts.done)


def crashed(facts: Facts) -> Alarm | None:
    """The process was killed, or its machine is gone."""
    if facts.state != "crashed":
        return None
    where = in_the_middle_of(facts)
    return Alarm(
        "crashed",
        f"The run was killed after rollout {facts.done}{f' in the middle of {where}' if where else ''}: it left neither an error nor an "
        f"end{f' ({facts.claim})' if facts.claim else ''}. Look at the machine (out of memory, a preemption), and go on with --load.",
        *(None, None, facts.done),
    )


def stalled(facts: Facts) -> Alarm | None:
    """A run that goes on gives no sign of life."""
    rollout = facts.curve("perf/rollout_time")
    mean = rollout.total / rollout.points if rollout else 0.0
    limit = max(SILENT_S, SILENT_ROLLOUTS * mean) if facts.done else SILENT_LOADING_S
    if facts.state != "running" or facts.silent <= limit:
        return None
    where = in_the_middle_of(facts)
    return Alarm(
        "stalled",
        f"Nothing has happened for {facts.silent:.0f} s (threshold: {limit:.0f} s)"
        f"{f'; the run is stalled on {where}' if where else ''}. Look at its console and at the processes of engine and trainer.",
        *(limit, facts.silent, facts.done + 1),
        chart="time",
    )


def grad_norm(facts: Facts) -> Alarm | None:
    """The gradient is far beyond the clip all the time, or has grown away."""
    clip = facts.arguments.get("clip_grad", 1.0)
    curve = facts.curve("train/grad_norm", at_least=6)
    if curve is None or not isinstance(clip, (int, float)) or clip <= 0:
        return None
    late, early = curve.recent(), curve.early()
    if late is None or early is None:
        return None
    limit = GRAD_CLIP_FACTOR * clip
    grown = late > GRAD_RISE * early and late > 2 * clip
    if late <= limit and not grown:
        return None
    since = curve.since([mean is not None and mean > min(limit, GRAD_RISE * early) for mean in curve.means])
    seen = (
        f"from {early:.3g} in the first rollouts to {late:.3g} in the last (threshold: {GRAD_RISE:g} times)"
        if grown
        else f"to {late:.3g} on average in the last rollouts (threshold: {GRAD_CLIP_FACTOR:g} times --clip-grad {clip:g})"
    )
    return Alarm(
        "grad_norm",
        f"The norm of the gradient has come {seen}; every step is cut down to --clip-grad {clip:g}, so its size says nothing any more. "
        "Lower --lr, warm up longer, or look at the data.",
        *(limit if not grown else GRAD_RISE * early, late, since),
        chart="grad_norm",
    )


def masked(facts: Facts) -> Alarm | None:
    """Next to nothing of the tokens is trained."""
    trained, tokens = facts.curve("train/num_trained_tokens"), facts.curve("train/num_tokens")
    if trained is None or tokens is None or not tokens.total:
        return None
    share = 1 - trained.total / tokens.total
    if facts.is_rl:  # there, prompts are long and answers may be short: what counts is the response
        rows = [row for row in facts.rows if row.dataset is None]
        length = sum(len(row.mask) for row in rows)
        if not length:
            return None
        share = 1 - sum(sum(row.mask) for row in rows) / length
    if share <= MASKED:
        return None
    return Alarm(
        "masked",
        f"{share:.1%} of the {'response tokens' if facts.is_rl else 'tokens'} are masked and not trained (threshold: {MASKED:.0%}). "
        "Look at the mask: slime data preview shows that of every row.",
        *(MASKED, share, 1),
        sample=facts.sample(lambda row: sum(row.mask) < len(row.mask)),
    )


def untrained(facts: Facts) -> Alarm | None:
    """A rollout had nothing to learn from: no token of it was trained, or the gradients of the last ones were 0."""
    trained, gradient = facts.curve("train/num_trained_tokens"), facts.curve("train/grad_norm", at_least=3)
    if masked(facts) or zero_spread(facts):
        return None
    if trained is not None and trained.lowest is not None and trained.lowest.value == 0:
        step: int | None = trained.lowest.step
        what = f"No token of rollout {step} was trained (threshold: one)"
    elif gradient is not None and gradient.recent() == 0:
        step, what = (
            gradient.since([mean == 0 for mean in gradient.means]),
            "The gradient of the last rollouts was 0 (threshold: above 0)",
        )
    else:
        return None
    return Alarm(
        "untrained",
        f"{what}: all samples were removed, masked or had the advantage 0, and the weights learned nothing from them. Look at what filters "
        "samples, sets their masks and gives rewards.",
        *(0.0, 0.0, step),
        chart="grad_norm",
    )


def loss_rising(facts: Facts) -> Alarm | None:
    """The loss of fine-tuning rises."""
    curve, rise = facts.curve("train/loss", at_least=10), facts.rise("train/loss")
    if facts.is_rl or curve is None or rise is None:
        return None
    early = curve.early() or 0.0
    if not (rise[0] > rise[1] and rise[0] > LOSS_RISE * abs(early)):
        return None
    return Alarm(
        "loss_rising",
        f"The loss has risen by {rise[0]:.3g} from {early:.3g} at the beginning (threshold: {LOSS_RISE:.0%}). Lower --lr, or look at the "
        "order of the data.",
        *(LOSS_RISE * abs(early), rise[0], curve.lowest.step if curve.lowest else None),
        chart="loss",
    )


def overfitting(facts: Facts) -> Alarm | None:
    """An evaluation loss rises again."""
    for name in sorted(facts.curves):
        curve = facts.curve(name, at_least=3)
        if curve is None or not (name.startswith("eval/") and name.endswith("/loss")):
            continue
        if curve.last is not None and curve.lowest and curve.last > (1 + EVAL_LOSS_RISE) * curve.lowest.value:
            return Alarm(
                "overfitting",
                f"{name} was {curve.lowest.value:.4g} after rollout {curve.lowest.step} and has risen to {curve.last:.4g} (threshold: "
                f"{EVAL_LOSS_RISE:.0%}): the model learns the training data by heart. Stop earlier (--early-stopping-patience, "
                "--early-stopping-keep best), or train on more data.",
                *((1 + EVAL_LOSS_RISE) * curve.lowest.value, curve.last, curve.lowest.step),
                chart="eval_loss",
            )
    return None


def data_lost(facts: Facts) -> Alarm | None:
    """Many rows are skipped, or cut."""
    used = facts.samples * facts.done
    rows = used / facts.arguments.get("n_samples_per_prompt", 1)
    skipped = sum(c.total for n, c in facts.curves.items() if n.startswith("rollout/skipped_"))
    cut = facts.curves["rollout/truncated"].total if facts.curve("rollout/truncated") else 0.0
    if not used:
        return None
    for count, of, limit, what, advice in (
        (
            skipped,
            rows + skipped,
            LOST,
            "skipped",
            "The table of lost data says why; repair the rows, or raise the limits that they exceed.",
        ),
        (
            cut,
            used,
            CUT,
            "cut to --rollout-max-context-len",
            "Raise it, or leave the rows out with --over-long-sample skip.",
        ),
    ):
        if count / of > limit:
            return Alarm(
                "data_lost",
                f"{count / of:.0%} of the rows were {what} (threshold: {limit:.0%}). {advice}",
                *(limit, count / of, 1),
            )
    return None


def _first_line(text: str) -> str:
    line = text.strip().split("\n", 1)[0]
    return line if len(line) <= 300 else line[:299] + "…"


Rule = Callable[[Facts], Alarm | None]
ALARMS: tuple[Rule, ...] = (
    *(not_finite, failed, crashed, stalled),
    *POLICY_ALARMS,
    *(grad_norm, loss_rising, overfitting, masked, untrained, blank_images, same_image, data_lost),
)
"""All alarms, most serious first."""
