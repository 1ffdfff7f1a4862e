"""Checks of loss masks. They need transformers, whose tokenizers loss masks are given."""

from __future__ import annotations

import copy
from functools import partial

from slime_core.contracts.data import MaskedTokens
from slime_core.errors import DataError
from slime_core.testing.checkpoint import chat_tokenizer
from slime_core.testing.inputs import CONVERSATIONS, TOOLS, Row
from slime_core.testing.subject import Check, ContractError, Subject


def renders_the_whole_conversation(subject: Subject[MaskedTokens]) -> None:
    """returns the tokens of the whole chat-template rendering

    White space after the last turn may be left out: nothing is ever predicted from it.
    """
    for messages, tools in _conversations(subject):
        expected = _rendering(messages, tools)
        masked = _masked(subject, messages, tools)
        decoded = str(chat_tokenizer().decode(masked.token_ids))
        subject.expect(
            decoded.rstrip() == expected.rstrip() and masked.text in ("", decoded),
            f"its tokens say {decoded[:200]!r} and its text {masked.text[:200]!r}, but the chat template renders "
            f"{expected[:200]!r}; render the conversation once with apply_chat_template and tokenise all of that.",
        )


def masks_every_token(subject: Subject[MaskedTokens]) -> None:
    """gives every token a 0 or 1, and an offset if any"""
    for messages, tools in _conversations(subject):
        masked = _masked(subject, messages, tools)
        count = len(masked.token_ids)
        subject.expect(
            len(masked.loss_mask) == count,
            f"it returned {count} tokens and {len(masked.loss_mask)} mask entries; expected one for each token.",
        )
        subject.expect(
            set(masked.loss_mask) <= {0, 1}, f"its mask holds {sorted(set(masked.loss_mask))}; expected 0 and 1 only."
        )
        subject.expect(
            len(masked.offsets) in (0, count),
            f"it returned {count} tokens and {len(masked.offsets)} offsets; expected one for each token, or none at "
            "all.",
        )


def trains_an_answer(subject: Subject[MaskedTokens]) -> None:
    """trains something of a conversation that ends with an answer, but not all of it"""
    for messages, tools in _conversations(subject):
        mask = _masked(subject, messages, tools).loss_mask
        subject.expect(
            sum(mask) > 0 and not mask[0],
            f"it trains {sum(mask)} of {len(mask)} tokens, the first one {'too' if mask[0] else 'not'}; a conversation "
            "with an answer has trained tokens, and nothing precedes the first one to predict it from.",
        )


def leaves_conversations_alone(subject: Subject[MaskedTokens]) -> None:
    """does not change messages or tools"""
    for messages, tools in _conversations(subject):
        with subject.unchanged("the messages or tools", partial(copy.deepcopy, (messages, tools))):
            _masked(subject, messages, tools)


def refuses_what_it_cannot_mask(subject: Subject[MaskedTokens]) -> None:
    """refuses a conversation that it cannot mask with a DataError"""
    subject.need("transformers")
    for messages in ([], [{"role": "user", "content": "What is 3 + 4?"}]):
        try:
            subject.target(chat_tokenizer(), copy.deepcopy(messages), None)
        except DataError:
            continue
        except Exception as error:
            raise ContractError(
                f"given the messages {messages!r} it raised {type(error).__name__}: {error}. Raise "
                "slime_core.errors.DataError with the reason; the caller adds file and row."
            ) from error


def _masked(subject: Subject[MaskedTokens], messages: list[Row], tools: list[Row] | None) -> MaskedTokens:
    with subject.takes(
        "conversations (user and assistant, once with a system message and two turns, with and without tools)"
    ):
        return subject.call(chat_tokenizer(), messages, tools)


def _conversations(subject: Subject[MaskedTokens]) -> list[tuple[list[Row], list[Row] | None]]:
    """Return the conversations to try, each without and with tools."""
    subject.need("transformers")
    conversations = copy.deepcopy(subject.examples) or copy.deepcopy(CONVERSATIONS)
    return [(messages, tools) for messages in conversations for tools in (None, copy.deepcopy(TOOLS))]


def _rendering(messages: list[Row], tools: list[Row] | None) -> str:
    return str(chat_tokenizer().apply_chat_template(messages, tools=list(tools or ()) or None, tokenize=False))


LOSS_MASK: list[Check] = [
    renders_the_whole_conversation,
    masks_every_token,
    trains_an_answer,
    leaves_conversations_alone,
    refuses_what_it_cannot_mask,
]
