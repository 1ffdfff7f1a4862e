"""Whose each token is: the role of the message that says it, or the template's. Called by the preview, which counts what is
trained of each role.

It looks only at what messages say and at what the template writes around them, never at how a mask was made: so it shows where
a mask trains what nobody should learn, such as the results of tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slime_core.data.chat_template import Template
from slime_core.data.conversation import Message
from slime_core.data.message_texts import texts
from slime_rollout_sft.masks.ready import headers
from slime_rollout_sft.masks.skeleton import Place, places
from slime_rollout_sft.masks.tokens import Offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "template"
"""The role of what no message says: headers, and what stands around messages."""


def roles_in_text(template: Template, messages: list[Message], text: str, offsets: Offsets) -> list[str]:
    """Return the role of each token of a rendering.

    What the model generates around an answer is the assistant's too: what follows its header, and the token that ends its turn.

    Args:
        messages: in the form in which they were rendered.
        text: their rendering.
        offsets: N characters (start, end) of the tokens.
    """
    found = places(template, messages, text)
    if found is None:
        found = _in_order(messages, text)
    spans = _spans(template, messages, text, found)
    roles, number = [], 0
    for start, _ in offsets:
        while number < len(spans) and spans[number][1] <= start:
            number += 1
        inside = number < len(spans) and spans[number][0] <= start
        roles.append(spans[number][2] if inside else TEMPLATE)
    return roles


def roles_of_ids(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the role of each token of a row of token ids: that of the header before it; the template's where none is known."""
    known = _header_ids(tokenizer, str(getattr(tokenizer, "chat_template", None)))
    roles, role, position = [], TEMPLATE, 0
    while position < len(ids):
        header = next((h for h in known if ids[position : position + len(h)] == list(h)), None)
        if header is None:
            roles.append(role)
            position += 1
            continue
        roles += [TEMPLATE] * len(header)
        role, position = known[header], position + len(header)
    return roles


def _spans(
    template: Template, messages: list[Message], text: str, found: dict[int, Place]
) -> list[tuple[int, int, str]]:
    """Return (start, end, role) of what the messages say, in order and apart."""
    header = _header(template.tokenizer, str(template.tokenizer.chat_template))
    begins = tuple(headers(template.tokenizer).values())
    limits = [len(text)]  # of each message, from the last to the first: where what comes after it begins
    for index in range(len(messages) - 1, 0, -1):
        limits.append(found[index][0] if index in found else limits[-1])
    spans: list[tuple[int, int, str]] = []
    for index, (message, limit) in enumerate(zip(messages, reversed(limits), strict=True)):
        before = spans[-1][1] if spans else 0
        if message["role"] != "assistant":
            if index in found:
                spans.append((max(before, found[index][0]), max(before, found[index][1]), message["role"]))
            continue
        if index in found:
            start, end = _behind_header(template, header, text, before, found[index][0]), found[index][1]
        elif header and (place := text.find(header, before, limit)) >= 0:  # it says nothing that is shown
            start = end = place + len(header)
        else:
            continue
        spans.append((max(before, start), max(before, _with_end(template, begins, text, end, limit)), "assistant"))
    return spans


def _behind_header(template: Template, header: str, text: str, before: int, start: int) -> int:
    """Return where the assistant's own text begins between `before` and `start`."""
    if header and (place := text.rfind(header, before, start)) >= 0:
        return place + len(header)
    if (place := text.rfind("<think>", before, start)) >= 0:  # behind the results of tools some write no header
        return place
    tokens = list(template.special.finditer(text, before, start))
    return tokens[-1].end() if tokens and not header else start


def _with_end(template: Template, begins: tuple[str, ...], text: str, end: int, limit: int) -> int:
    """Return where a turn ends whose own text ends at `end`: behind the next special token, and those that follow it closely
    without beginning another message."""
    token = template.special.search(text, end, limit)
    while token:
        end = token.end()
        token = None if text.startswith(begins, end) else template.special.match(text, end, limit)
    return end


@lru_cache(maxsize=4)
def _header(tokenizer: PreTrainedTokenizerBase, template_text: str) -> str:
    """Return what the template writes to ask the assistant, without what it may begin the answer with."""
    template, question = Template(tokenizer, None), [{"role": "user", "content": "question"}]
    asked, prompted = template.try_render(question), template.try_render(question, prompt=True)
    if asked is None or prompted is None or not prompted.startswith(asked):
        return ""
    return prompted[len(asked) :].partition("<think>")[0]


def _in_order(messages: list[Message], text: str) -> dict[int, Place]:
    """Return the places of messages whose texts and calls are found one behind the other."""
    found: dict[int, Place] = {}
    position = 0
    for index, message in enumerate(messages):
        begin = None
        for piece in _pieces(message):
            place = text.find(piece, position)
            if place >= 0:
                begin, position = place if begin is None else begin, place + len(piece)
        if begin is not None:
            found[index] = begin, position
    return found


def _pieces(message: Message) -> list[str]:
    said = sorted(texts(message), key=lambda kind_and_text: kind_and_text[0] == "content")  # reasoning first
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    arguments = [call["arguments"] for call in calls]
    return [
        *(text for _, text in said),
        *(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in arguments),
    ]


@lru_cache(maxsize=4)
def _header_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> dict[tuple[int, ...], str]:
    """Return {token ids of a header: role}, the longest first."""
    made: dict[tuple[int, ...], str] = {}
    for role, text in headers(tokenizer).items():
        encoded: Any = tokenizer(text, add_special_tokens=False)
        made.setdefault(tuple(encoded["input_ids"]), role)
    return dict(sorted(made.items(), key=lambda entry: -len(entry[0])))
