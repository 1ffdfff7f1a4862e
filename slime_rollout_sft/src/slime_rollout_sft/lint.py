"""Goes through rows as a run would, and says of each what becomes of it. Called by `slime data preview`.

`Conversations` decide what is trained, and `read_prompt` what a model is asked in reinforcement learning: the very functions of
the rollouts, so that what is said here is what happens there. No row stops the others.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from slime_core.contracts.data import MaskedTokens
from slime_core.data import Rows
from slime_core.data.notices import Notices
from slime_core.data.samples import Columns, sample_from_row
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import Sample, Status

Fate = Literal["used", "cut", "skipped", "stops"]
"""What a run does with a row: uses it, cuts it, leaves it out, or stops."""

_SAID = {"cut": "is cut", "skipped": "is skipped", "stops": "stops the run"}
KEPT_ROWS = 1000
_QUOTED_OR_NUMBER = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\b\d[\d,.]*\b")


class LeftOut(Exception):
    """A row cannot be used.

    Attributes:
        skip: whether the options say to leave it out, rather than to stop.
        masked: its tokens, as far as it has any.
    """

    def __init__(self, message: str, skip: bool, masked: MaskedTokens | None = None) -> None:
        super().__init__(message)
        self.skip, self.masked = skip, masked


@dataclass(frozen=True)
class Looked:
    """What was seen of one row.

    Attributes:
        source: "file:row".
        fate: what a run does with it.
        problem: why it is not used as it is; "" where it is.
        warnings: what a person should look at.
        masked: its tokens, and which of them are trained; None where it has none.
        roles: whose each token is.
        label: its label, if a column of labels is read.
        images: its encoded images.
    """

    source: str
    fate: Fate
    problem: str = ""
    warnings: list[str] = field(default_factory=list)
    masked: MaskedTokens | None = None
    roles: list[str] = field(default_factory=list)
    label: Any = None
    images: list[bytes] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """What is to be said of the row; [] where nothing is wrong with it."""
        return [*([f"{_SAID[self.fate]}: {self.problem}"] if self.fate != "used" else []), *self.warnings]


Look = Callable[[Sample], tuple[MaskedTokens, list[str], Status]]
"""Returns the tokens of a sample, whose each of them is, and whether it had to be cut. Raises `LeftOut`."""


def look_at(rows: Rows, columns: Columns, look: Look, skip_malformed: bool, notices: Notices) -> Iterator[Looked]:
    """Yield what is seen of each row, in their order.

    Args:
        columns: which columns hold what.
        look: reads one sample as the rollout does.
        skip_malformed: whether a run leaves malformed rows out, rather than to stop.
        notices: are told of columns that nobody reads.

    Raises:
        ArgumentError: no row could be read with these options.
    """
    for index in range(len(rows)):
        source, label, images = rows.where(index), None, list[bytes]()
        try:
            sample = sample_from_row(columns, rows[index], source, notices.columns)
            label, images = sample.label, sample.images
            masked, roles, status = look(sample)
        except ArgumentError:
            raise
        except LeftOut as left_out:
            problem, seen = _without(source, str(left_out)), left_out.masked
            fate: Fate = "skipped" if left_out.skip else "stops"
            warnings = [w for w in seen.warnings if w not in problem] if seen and not left_out.skip else []
            yield Looked(source, fate, problem, warnings, seen, [], label, images)
        except Exception as error:  # a plugin's loss mask may fail in every way that Python can
            problem = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            yield Looked(source, "skipped" if skip_malformed else "stops", _without(source, problem), label=label)
        else:
            is_cut = status is Status.TRUNCATED
            problem = "it is longer than --rollout-max-context-len" if is_cut else ""
            yield Looked(source, "cut" if is_cut else "used", problem, masked.warnings, masked, roles, label, images)


@dataclass
class Tally:
    """Counts what was seen of rows, and keeps what is wrong with them.

    Attributes:
        fates: numbers of rows.
        tokenised: number of rows that have tokens.
        tokens, trained: numbers of tokens per role, and of those that are trained, of the rows that are used.
        kinds: numbers of rows with a sentence of each kind: with what is quoted and counted taken out.
        wrong: the rows of which something is to be said, the first `KEPT_ROWS`.
        num_wrong: how many there are.
        seconds: how long it took.
    """

    fates: Counter[str] = field(default_factory=Counter)
    tokenised: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    trained: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[str, list[str]]] = field(default_factory=list)
    num_wrong: int = 0
    seconds: float = 0.0
    _began: float = field(default_factory=time.perf_counter)

    def add(self, looked: Looked) -> None:
        """Count a row."""
        self.fates[looked.fate] += 1
        self.tokenised += looked.masked is not None
        if looked.masked is not None and looked.fate in ("used", "cut"):
            self.tokens.update(looked.roles)
            self.trained.update(role for role, on in zip(looked.roles, looked.masked.loss_mask, strict=True) if on)
        if sentences := looked.sentences:
            self.num_wrong += 1
            self.kinds.update({kind_of(sentence) for sentence in sentences})
            if len(self.wrong) < KEPT_ROWS:
                self.wrong.append((looked.source, sentences))
        self.seconds = time.perf_counter() - self._began

    @property
    def rows(self) -> int:
        """How many rows were seen."""
        return self.fates.total()

    def is_clean(self) -> bool:
        """Whether nothing is to be said of any row but that the options leave it out or cut it."""
        return all(kind.startswith((f"{_SAID['skipped']}: ", f"{_SAID['cut']}: ")) for kind in self.kinds)


def kind_of(sentence: str) -> str:
    """Return a sentence without what differs from row to row."""
    return _QUOTED_OR_NUMBER.sub("…", sentence)


def _without(source: str, problem: str) -> str:
    return problem.removeprefix(f"{source}: ")
