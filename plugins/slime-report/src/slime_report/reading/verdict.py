"""A run in one sentence. Pure."""

from __future__ import annotations

from slime_core.run.console import clock
from slime_report.reading.alarms import in_the_middle_of
from slime_report.reading.facts import Facts
from slime_report.report import Alarm, Score


def verdict(facts: Facts, scores: list[Score], alarms: list[Alarm], seconds: float, early: bool) -> str:
    """How the run ended, from which score to which, and how many alarms there are.

    Args:
        seconds: how long it has worked.
        early: it was to end before its last rollout where the score gets no better.
    """
    parts = [f"{_ending(facts, alarms, early)} after {_count(facts)} in {clock(seconds)}."]
    if scores:
        parts.append(_of_score(scores[0]))
    parts.append(f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}." if alarms else "No alarms.")
    return " ".join(parts)


def _ending(facts: Facts, alarms: list[Alarm], early: bool) -> str:
    ids = {alarm.id for alarm in alarms}
    where = in_the_middle_of(facts)
    if "stalled" in ids:
        return f"Stalled on {where}" if where else "Stalled"
    if facts.state == "running":
        return f"Running (now: {where})" if where else "Running"
    if facts.state == "failed":
        return "Ended by NaN" if "not_finite" in ids else f"Failed with {facts.error.get('type', 'an error')}"
    if facts.state == "crashed":
        return f"Killed in the middle of {where}" if where else "Killed"
    if facts.state == "stopped":
        return "Stopped"
    short = facts.total is not None and facts.done < facts.total
    return "Finished early, since the score got no better," if short and early else "Finished"


def _count(facts: Facts) -> str:
    if facts.total is None:
        return f"{facts.done} rollouts"
    return f"{facts.done} of {facts.total} rollouts"


def _of_score(score: Score) -> str:
    text = f"{score.metric} {score.first:.4g} → {score.last:.4g}"
    if score.low is not None and score.high is not None:
        return f"{text} (n = {score.n}, 95 % {score.low:.3g} to {score.high:.3g})."
    return f"{text} (n = {score.n})." if score.n else f"{text}."
