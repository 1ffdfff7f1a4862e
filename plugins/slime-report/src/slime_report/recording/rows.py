"""A sample, and the groups of a rollout, as rows of JSON. Pure.

A row has the text of every token, so that a report needs no tokenizer. Long samples are cut: of a prompt the end is kept, of a response
beginning and end. Numbers have four digits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.sample import Sample
from slime_core.token_arrays import num_tokens, token_ids, trained
from slime_core.token_columns import TokenColumn
from slime_core.training.token_numbers import Numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 64
"""About how much a token takes in a row: its text, and four numbers."""
_LONGEST_CHARACTER = 4
"""How many tokens one character may be cut into."""
_LABEL, _ASKED = 200, 160
_UNKNOWN = "\ufffd"


@dataclass(frozen=True)
class Kept:
    """Which tokens of a sample are kept, as ranges of its prompt and its response."""

    prompt: range
    head: range
    tail: range

    @classmethod
    def of_sample(cls, sample: Sample, limit: int) -> Kept:
        """The same of a sample."""
        return cls.of(num_tokens(sample) - sample.response_length, sample.response_length, limit)

    @classmethod
    def of(cls, prompt: int, response: int, limit: int) -> Kept:
        """Keep at most `limit` tokens: a quarter of them prompt, or more where the response is short."""
        room = max(limit // 4, limit - response)
        first = max(0, prompt - room)
        room = limit - (prompt - first)
        if response <= room:
            return cls(range(first, prompt), range(response), range(response, response))
        half = room // 2
        return cls(range(first, prompt), range(room - half), range(response - half, response))

    def of_response(self, values: Sequence[Any]) -> list[Any]:
        """What is kept of something that each token of the response has."""
        return [*values[self.head.start : self.head.stop], *values[self.tail.start : self.tail.stop]]

    def pieces(self, tokens: range, prompt: int) -> list[int] | None:
        """Return where some tokens of the sample are among those that are kept: the first, and the one behind the last. None where
        none of them is.

        Args:
            prompt: tokens of the whole prompt.
        """
        of_response = ((part, prompt + part.start) for part in (self.head, self.tail))
        found, before = list[int](), 0
        for part, start in ((self.prompt, self.prompt.start), *of_response):
            first, end = max(tokens.start, start), min(tokens.stop, start + len(part))
            found += [before + place - start for place in (first, end) if first < end]
            before += len(part)
        return [found[0], found[-1]] if found else None


def sample_row(
    sample: Sample, numbers: Mapping[str, Numbers], trainer: Numbers | None, texts: TokenTexts, kept: Kept
) -> dict[str, Any]:
    """Return the row of a sample, without the rollout and the reasons for keeping it.

    Args:
        numbers: of its tokens.
        trainer: the trainer's log-probs.
        kept: its tokens that are kept.
    """
    tokens, response = token_ids(sample), sample.response_length
    prompt = len(tokens) - response
    cut = response - len(kept.head) - len(kept.tail)
    ids = tokens[kept.prompt.start : kept.prompt.stop].tolist()
    answer = TokenColumn(tokens[prompt:])
    row: dict[str, Any] = {
        "prompt": prompt_id(sample),
        "source": sample.source,
        "group": sample.group_index,
        "index": sample.index,
        "reward": None,
        "status": sample.status.value,
        "length": response,
        "label": _short(sample.label, _LABEL),
        "pieces": [*texts.of(ids), *texts.of(kept.of_response(answer))],
        "prompt_tokens": len(ids),
        "mask": "".join(map(str, kept.of_response(TokenColumn(trained(sample).view("uint8"))))),
    }
    if kept.prompt.start or cut:
        row["left_out"] = {"prompt": kept.prompt.start, "at": len(kept.head), "response": cut}
    engine = numbers.get("rollout_log_probs")
    for name, values in {
        "log_probs": trainer,
        "rollout_log_probs": engine if trainer is None else None,
        "difference": less(trainer, engine),
        "advantages": numbers.get("advantages"),
        "entropy": numbers.get("entropy"),
    }.items():
        if values is not None:
            row[name] = [short(value) for value in kept.of_response(values)]
    return row


def less(one: Numbers | None, other: Numbers | None) -> Numbers | None:
    """One column less another; None where one of them is missing."""
    if one is None or other is None:
        return None
    return [None if a is None or b is None else a - b for a, b in zip(one, other, strict=True)]


def group_rows(samples: Sequence[Sample], rewards: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the groups of a rollout: for each its prompt and the rewards of its samples; how many samples have which status; and what
    was asked where all rewards of a group are equal. None without rewards."""
    if all(reward is None for reward in rewards):
        return None
    groups: dict[int | None, tuple[Sample, list[float | None]]] = {}
    for sample, reward in zip(samples, rewards, strict=True):
        groups.setdefault(sample.group_index, (sample, []))[1].append(short(reward))
    equal = {prompt_id(s): asked_in_words(s) for s, own in groups.values() if len(set(own)) == 1}
    return {
        "groups": [[prompt_id(sample), own] for sample, own in groups.values()],
        "statuses": dict(Counter(sample.status.value for sample in samples)),
        "asked": equal,
    }


class Asks(Protocol):
    """What has a prompt: a sample, or what is stored of one."""

    @property
    def source(self) -> str:
        """The row that it comes from; "" where there is none."""

    @property
    def asked(self) -> str | list[dict[str, Any]]:
        """Its prompt, before a chat template rendered it."""


def prompt_id(sample: Asks) -> str:
    """What identifies the prompt of a sample in the whole run: its row or, without one, what it says."""
    what = sample.source or json.dumps(sample.asked, default=str)
    return hashlib.sha256(what.encode(errors="replace")).hexdigest()[:10]


def asked_in_words(sample: Asks) -> str:
    """The beginning of the last message of the user, or of the prompt."""
    asked = sample.asked
    if not isinstance(asked, str):
        messages = [message for message in asked if isinstance(message, dict)]
        asked = next((str(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")
    name = Path(sample.source).name
    return _short(asked.strip() or name, _ASKED) or ""


def short(value: float | None) -> float | None:
    """A number of four digits, as short as JSON can write it; None where there is no finite one."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _short(value: Any, limit: int) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


class TokenTexts:
    """The texts of token ids, each found once. Without a tokenizer they are the ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._found: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """Return the text of every token. Of a character that several tokens make up together, the last one has it."""
        if self._tokenizer is None:
            return [f"<{token_id}>" for token_id in ids]
        found: list[str] = []
        waiting: list[int] = []
        for token_id in ids:
            text = self._decode([*waiting, token_id]) if waiting else self._alone(token_id)
            if text.endswith(_UNKNOWN) and len(waiting) + 1 < _LONGEST_CHARACTER:
                waiting.append(token_id)
                found.append("")
            else:
                waiting.clear()
                found.append(text)
        if waiting:
            found[-1] = self._decode(waiting)
        return found

    def _alone(self, token_id: int) -> str:
        if token_id not in self._found and self._tokenizer is not None:
            text = self._decode([token_id])
            raw = self._tokenizer.convert_ids_to_tokens([token_id])[0]
            # Tokenizers of SentencePiece leave out the space before a word that stands alone.
            self._found[token_id] = f" {text}" if str(raw).startswith("▁") and not text.startswith(" ") else text
        return self._found[token_id]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if self._tokenizer else ""
