"""From messages or text to the token ids that the model reads, as training and evaluation read them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from slime_core.contracts.data import ImageTexts
from slime_core.data.chat_template import Template, render_whole
from slime_core.data.conversation import ROLES, prompt_messages
from slime_core.data.image_processor import Processor, image_places
from slime_core.data.image_rows import count_places, take_images
from slime_core.data.image_texts import expanded
from slime_core.data.images import ImageRules, encoded
from slime_core.data.tools import tool_definitions
from slime_core.errors import DataError, SampleError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENT = ImageRules(files=False)
"""Images are in the messages themselves: whoever asks is not to read files of this machine, or to let it fetch something."""


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model was made for conversations."""
    return bool(getattr(tokenizer, "chat_template", None))


class ReadConversation(NamedTuple):
    """A conversation as the model reads it.

    Attributes:
        tokens: up to where the model's next answer begins.
        images: the encoded images among them, in their order.
    """

    tokens: list[int]
    images: Sequence[bytes] = ()


def shows_images(messages: Any) -> bool:
    """Whether there are images among the parts of what may be messages."""
    return isinstance(messages, list) and count_places(messages, False) > 0


def read_images(messages: Any, processor: Processor | None, rules: ImageRules = SENT) -> tuple[Any, Sequence[bytes]]:
    """Return messages in which images have places alone, and the encoded images in the order of these. May fetch some, and wait for it.

    Args:
        messages: content is text, or a list of parts of text and, of what the model is given, images.
        processor: what the model makes of images; None where it reads none.
        rules: where images may come from.

    Raises:
        DataError: what is wrong with which image.
    """
    if not shows_images(messages):
        return messages, ()
    if processor is None:
        raise DataError("the messages have images, and the model reads none")
    return take_images(messages, None, partial(encoded, folder=Path(), rules=rules))


def read_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Any,
    tools: Any = None,
    variables: dict[str, Any] | None = None,
    processor: Processor | None = None,
    images: Sequence[bytes] = (),
) -> ReadConversation:
    """Render a conversation and tokenise it.

    Args:
        messages: as `chat_messages` takes them; content is text, or a list of parts of text and of places of images.
        tools: definitions of tools, or None.
        variables: that the chat template is given besides.
        processor: what the model makes of images; None where it reads none.
        images: those of the messages, as `read_images` gives both.

    Raises:
        DataError: what is wrong with which message or image, or what the chat template has against it, or drops of it but for
            reasoning.
    """
    read = prompt_messages(messages)
    for number, message in enumerate(read, 1):
        if message["role"] not in ROLES:
            raise DataError(
                f"message {number} has the unknown role {message['role']!r}; known roles are: {', '.join(ROLES)}"
            )
    if not has_chat_template(tokenizer):
        raise DataError("the model has no chat template, so that it cannot read messages; it completes plain text")
    template = Template(tokenizer, tool_definitions(tools), variables)
    if template.ignores_tools:
        raise DataError("the chat template shows no tools, so that the model would not know of them; leave them out")
    _, text, dropped = render_whole(template, read, prompt=True)
    if lost := next((item for item in dropped if item.what != "reasoning"), None):
        raise DataError(lost.sentence)
    if processor is None:
        return ReadConversation(plain_tokens(tokenizer, text))
    counts = processor.counts(images)
    text, _ = expanded(text, ImageTexts(processor.placeholder, tuple(map(processor.text, counts))))
    tokens = plain_tokens(tokenizer, text)
    try:
        image_places("the conversation", tokens, processor.token, counts)
    except SampleError as error:
        raise DataError(str(error)) from None
    return ReadConversation(tokens, images)


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """The token ids of a text.

    Args:
        special: put the tokenizer's special tokens around it, such as one for the beginning of a text.
    """
    return cast("list[int]", tokenizer(text, add_special_tokens=special)["input_ids"])
