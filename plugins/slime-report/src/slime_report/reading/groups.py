"""How the groups of a run were solved, from what was recorded of them, and the spread of rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_report.recording import GROUPS
from slime_report.recording.bounded_log import read_rows
from slime_report.report import Groups, Prompt

LISTED = 50
"""Prompts in each list at most."""


@dataclass
class RecordedGroups:
    """What was recorded of groups.

    Attributes:
        groups: for the report.
        spread: {step: (p10, p90)} of the rewards of a rollout.
        statuses: {step: {status: samples}}.
    """

    groups: Groups
    spread: dict[int, tuple[float, float]] = field(default_factory=dict)
    statuses: dict[int, dict[str, int]] = field(default_factory=dict)


def read_groups(folder: Path) -> RecordedGroups:
    """Read the groups in a folder `record`.

    A sample is solved when its reward is above the middle between the lowest and the highest of the run; where all are equal, when it is
    above 0.
    """
    rows = [row for row in read_rows(folder / GROUPS) if isinstance(row.get("groups"), list)]
    groups = [(str(prompt), [r for r in rewards if r is not None]) for row in rows for prompt, rewards in row["groups"]]
    rewards = [reward for _, own in groups for reward in own]
    if not rewards:
        return RecordedGroups(Groups([0] * 6, [], [], 0, None))
    threshold = (min(rewards) + max(rewards)) / 2 if min(rewards) < max(rewards) else 0.0
    asked: dict[str, str] = {}
    for row in rows:
        asked |= {str(name): str(text) for name, text in (row.get("asked") or {}).items()}
    solved, shares = [0] * 6, dict[str, list[float]]()
    for prompt, own in groups:
        if own:
            share = sum(reward > threshold for reward in own) / len(own)
            solved[_bin(share)] += 1
            shares.setdefault(prompt, []).append(share)
    found = RecordedGroups(
        Groups(solved, _alike(shares, asked, 0.0), _alike(shares, asked, 1.0), sum(solved), threshold)
    )
    for row in rows:
        own = sorted(reward for _, rewards in row["groups"] for reward in rewards if reward is not None)
        if own:
            found.spread[row["rollout"] + 1] = (quantile(own, 0.1), quantile(own, 0.9))
        statuses = row.get("statuses")
        if isinstance(statuses, dict):
            found.statuses[row["rollout"] + 1] = {str(name): int(count) for name, count in statuses.items()}
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of ascending values lies, between two of them in proportion."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def status_share(statuses: dict[int, dict[str, int]], names: Sequence[str], last: int) -> float | None:
    """The share of samples with one of these statuses in the last recorded rollouts; None if nothing is recorded."""
    total: Counter[str] = Counter()
    for step in sorted(statuses)[-last:]:
        total.update(statuses[step])
    return sum(total[name] for name in names) / total.total() if total else None


def _bin(share: float) -> int:
    if share in (0.0, 1.0):
        return 5 * int(share)
    return 1 + min(3, int(share * 4 - 1e-9)) if share < 1 else 5


def _alike(shares: dict[str, list[float]], asked: dict[str, Any], share: float) -> list[Prompt]:
    """Prompts all of whose groups were solved to this share, those tried most often first."""
    found = [Prompt(p, len(own), asked.get(p, "")) for p, own in shares.items() if all(s == share for s in own)]
    return sorted(found, key=lambda prompt: (-prompt.n, prompt.text))[:LISTED]
