"""Questions of procedural tasks (package reasoning-gym) as rows for training and evaluation, for `slime tasks`.

The same task, settings and seed give the same rows; different seeds give unrelated ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Any

from slime_core.data import open_rows
from slime_core.errors import ArgumentError

Entry = dict[str, Any]
Row = dict[str, Any]

CHUNK = 500
"""Entries made from one seed of the library."""
PATIENCE = 20
"""Give up after so many times as many repeated questions in a row as there are distinct ones. If one question of a task
that draws its questions evenly is still missing, the chance of not meeting it in that time is e^-20."""


def entries(task: str, settings: dict[str, Any], seed: int) -> Iterator[Entry]:
    """Yield endlessly many {"question", "answer", "metadata"}, with repetitions.

    Raises:
        ArgumentError: the task refuses its settings.
    """
    from reasoning_gym import create_dataset

    for chunk in count():
        # The library seeds question i with seed + i, so that neighbouring seeds share nearly all questions: scatter them.
        start = int.from_bytes(blake2b(f"{task}:{seed}:{chunk}".encode(), digest_size=8).digest()) % 2**31
        try:
            dataset = create_dataset(task, **settings, seed=start, size=CHUNK)
        except (AssertionError, TypeError, ValueError) as error:
            raise ArgumentError(f"{task} refuses its settings {settings}: {error}.") from error
        yield from dataset


@dataclass
class Excluded:
    """The questions that a file may not have.

    Attributes:
        questions: as `slime tasks` stores them.
        texts: all texts of rows that come from elsewhere; a question that is part of one of them is excluded too.
    """

    questions: set[str] = field(default_factory=set)
    texts: str = ""

    @classmethod
    def read(cls, files: Sequence[str]) -> Excluded:
        """Collect the questions of data files: whatever `--prompt-data` takes."""
        questions: set[str] = set()
        texts: list[str] = []
        rows = open_rows(files) if files else ()
        for index in range(len(rows)):
            row = rows[index]
            stored = ((row.get("metadata") or {}).get("reasoning_gym") or {}).get("question")
            if stored is not None:
                questions.add(_plain(stored))
            else:
                texts.extend(_plain(text) for text in _texts(row))
        return cls(questions, "\n".join(texts))

    def __contains__(self, question: str) -> bool:
        plain = _plain(question)
        return plain in self.questions or plain in self.texts


class Distinct:
    """The first `size` entries whose questions differ from each other and from the excluded ones.

    Attributes:
        rejected: how many different questions were left out because they are excluded.
    """

    def __init__(self, task: str, candidates: Iterable[Entry], size: int, excluded: Excluded) -> None:
        self.task, self.candidates, self.size, self.excluded = task, candidates, size, excluded
        self.rejected = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries. Raises `ArgumentError` when the task has too few questions."""
        seen: set[str] = set()
        found = repeated = 0
        for entry in self.candidates:
            question = _plain(entry["question"])
            if question in seen:
                repeated += 1
                if repeated > CHUNK + PATIENCE * len(seen):
                    raise ArgumentError(self._too_few(found, len(seen)))
                continue
            seen.add(question)
            repeated = 0
            if question in self.excluded:
                self.rejected += 1
                continue
            yield entry
            found += 1
            if found == self.size:
                return

    def _too_few(self, found: int, seen: int) -> str:
        without = f", {self.rejected} of them excluded" if self.rejected else ""
        return (
            f"{self.task} with these settings has only {seen} different questions{without}, but --size is {self.size}. "
            f"Ask for at most {found}, or widen the task with --set; `slime tasks --list` shows its settings."
        )


def row(task: str, settings: dict[str, Any], entry: Entry, template: str, system: str | None) -> Row:
    """Return the chat row of an entry; its metadata hold what the reward `reasoning_gym` needs."""
    messages = [{"role": "user", "content": template.replace("{question}", entry["question"])}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    stored = {"task": task, "settings": settings, "question": entry["question"], "metadata": entry["metadata"]}
    return {"messages": messages, "label": entry["answer"], "metadata": {"reasoning_gym": stored}}


def with_shuffled_labels(rows: Sequence[Row], seed: int) -> Iterator[Row]:
    """Yield the rows with each other's labels in random order, the true one in `metadata["true_label"]`: a control, whose
    rewards are spread as before but say nothing about the question."""
    labels = [row["label"] for row in rows]
    random.Random(seed).shuffle(labels)
    for old, label in zip(rows, labels, strict=True):
        yield {**old, "label": label, "metadata": {**old["metadata"], "true_label": old["label"]}}


def _plain(text: str) -> str:
    """Return the text with single blanks as its only white space, for comparison."""
    return " ".join(text.split())


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
