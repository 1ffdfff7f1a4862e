"""What evaluations answered: how many rewards a score is the mean of, how sure it is, and the same prompts early and late."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_core.run.scores import score_of
from slime_report.recording.rows import asked_in_words, prompt_id
from slime_report.report import SampleRow

READ_AT_MOST = 200 * 2**20
"""Bytes of answers that are read of a run: of the first, the last and the newest evaluations before it."""
PROMPTS, EVALUATIONS, TEXT = 8, 6, 4000
"""Of how many prompts of each set, in how many evaluations, the answers are shown, and how many characters of each."""
_NAME = re.compile(r"rollout_(-?\d+)\.jsonl$")


@dataclass(frozen=True)
class Interval:
    """A mean of rewards with its 95 % interval.

    Attributes:
        n: answers.
        low, high: None where there is one answer only.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


@dataclass
class Evaluations:
    """All evaluations of a run that were read.

    Attributes:
        intervals: {metric: {step: interval}}, metric as in "eval/SET/reward".
        answers: of the same prompts in several evaluations.
        left_out: evaluations that were not read.
    """

    intervals: dict[str, dict[int, Interval]] = field(default_factory=dict)
    answers: list[SampleRow] = field(default_factory=list)
    left_out: int = 0


def read_evaluations(folder: Path, key: str | None) -> Evaluations:
    """Read the answers that a run has written.

    Args:
        folder: `eval` in the run directory.
        key: which number of a reward that is a dict counts.
    """
    files = sorted((int(m[1]) + 1, path) for path in folder.glob("rollout_*.jsonl") if (m := _NAME.search(path.name)))
    order = dict.fromkeys([*files[:1], *files[::-1]])
    shown = {files[round(i * (len(files) - 1) / (EVALUATIONS - 1))] for i in range(EVALUATIONS)} if files else set()
    found, left = Evaluations(), READ_AT_MOST
    rows: list[SampleRow] = []
    for step, path in order:
        left -= path.stat().st_size
        if left < 0:
            found.left_out += 1
            continue
        rewards: dict[str, dict[str, list[float]]] = {}
        seen: dict[str, set[str]] = {}
        for sample in _samples(path):
            of_set = _set_of(sample)
            prompt = _prompt_of(sample)
            reward = _reward_of(sample, key)
            if reward is not None:
                rewards.setdefault(of_set, {}).setdefault(prompt, []).append(reward)
            shown_prompts = seen.setdefault(of_set, set())
            if (step, path) in shown and prompt not in shown_prompts and len(shown_prompts) < PROMPTS:
                shown_prompts.add(prompt)
                rows.append(_row(sample, step, of_set, prompt, reward))
        for of_set, by_prompt in rewards.items():
            found.intervals.setdefault(f"eval/{of_set}/reward", {})[step] = interval(by_prompt)
    found.answers = sorted(rows, key=lambda row: (row.dataset or "", row.prompt, row.step))
    return found


def interval(rewards: Mapping[str, Sequence[float]]) -> Interval:
    """The mean of rewards with the 95 % interval that `slime eval` prints too.

    Args:
        rewards: of each prompt, by its name, those of its answers.
    """
    score = score_of(rewards)
    low, high = score.interval or (None, None)
    return Interval(sum(map(len, rewards.values())), score.value, low, high)


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            try:
                sample = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(sample, dict):
                yield sample


class _Stored:
    """What `prompt_id` and `asked_in_words` read of a sample, from its stored form."""

    def __init__(self, sample: Mapping[str, Any]) -> None:
        noted = _noted(sample)
        self.source = str(noted.get("source") or "")
        self.asked = noted.get("asked") or sample.get("prompt") or ""


def _noted(sample: Mapping[str, Any]) -> dict[str, Any]:
    metadata = sample.get("metadata")
    noted = metadata.get("slime") if isinstance(metadata, dict) else None
    return noted if isinstance(noted, dict) else {}


def _set_of(sample: Mapping[str, Any]) -> str:
    return str(_noted(sample).get("dataset"))


def _prompt_of(sample: Mapping[str, Any]) -> str:
    return prompt_id(_Stored(sample))


def _reward_of(sample: Mapping[str, Any], key: str | None) -> float | None:
    reward = sample.get("reward")
    if isinstance(reward, dict):
        reward = reward.get(key) if key else None
    return float(reward) if isinstance(reward, (int, float)) and math.isfinite(reward) else None


def _row(sample: Mapping[str, Any], step: int, of_set: str, prompt: str, reward: float | None) -> SampleRow:
    asked, answer = asked_in_words(_Stored(sample)), str(sample.get("response") or "")
    label = sample.get("label")
    length = sample.get("response_length")
    return SampleRow(
        id=f"eval-{of_set}-{step}-{prompt}",
        step=step,
        prompt=prompt,
        source=_Stored(sample).source,
        dataset=of_set,
        group=None,
        index=None,
        reward=reward,
        status=str(sample.get("status") or ""),
        length=length if isinstance(length, int) else 0,
        why=["same_prompt"],
        label=None if label is None else str(label)[:200],
        pieces=[asked, answer if len(answer) <= TEXT else answer[:TEXT] + "…"],
        mask=[0],
        prompt_tokens=1,
        advantage=None,
        log_prob=None,
        difference=None,
        entropy=None,
    )
