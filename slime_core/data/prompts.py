"""`read_prompt`: from a prompt to the token ids that the model reads before it answers.

Called by the rollouts of reinforcement learning and their evaluations, by `slime check --parity`, and by the preview, so that
all of them read the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from slime_core.contracts.data import ImageTexts
from slime_core.data.chat_template import Dropped, Template, is_of_earlier, lost_question, render_whole
from slime_core.data.conversation import Message, prompt_messages
from slime_core.data.image_processor import Processor, image_places
from slime_core.data.image_texts import expanded
from slime_core.data.notices import Notices
from slime_core.data.tokenizer import template_variables
from slime_core.data.tokens import is_tokenised, require_known, vocabulary_of
from slime_core.data.vision import FAMILIES
from slime_core.errors import ArgumentError, DataError, SampleError
from slime_core.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments


class Prompt(NamedTuple):
    """What the model reads before it answers.

    Attributes:
        text: the rendering, in which each image is what the chat template writes for it.
        tokens: its ids, in which each image is as many tokens as the model makes features of it.
        expanded: the text that was tokenised.
        images: of every image its first token and the one behind its last.
        messages: the messages in the form in which they were rendered; none where nothing was.
        dropped: what they say and the rendering does not show, but for the reasoning of earlier turns.
    """

    text: str
    tokens: list[int]
    expanded: str
    images: list[tuple[int, int]]
    messages: Sequence[Message] = ()
    dropped: Sequence[Dropped] = ()


_NOTICES = Notices()  # of the process


def read_prompt(
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
    args: DataArguments,
    render: bool,
    processor: Processor | None = None,
    notices: Notices = _NOTICES,
) -> Prompt:
    """Return the text that the model reads, and its token ids.

    Where they are to be rendered, messages are rendered with the chat template as those that are trained are, generation prompt
    included, and text as one message of the user. Where not, and where it was rendered already, text is tokenised as it is; no
    special tokens are put around it. Token ids are used as they are.

    Args:
        args: `apply_chat_template_kwargs` and `chat_template_date` are read.
        render: `--apply-chat-template`.
        processor: what the checkpoint makes of images; None of one that reads none.
        notices: are told of tools that the template does not show, and of a prompt that ends with the assistant's answer; by default those
            of the process.

    Raises:
        ArgumentError: the prompt has messages, and `--apply-chat-template` is not given; or it is, and there is no template.
        DataError: the prompt cannot be rendered, its question is not in the rendering, it has no tokens, or has images that cannot
            be read or more or fewer of them than places; names file and row.
    """
    prompt: Any = sample.prompt
    if sample.images and processor is None:
        raise DataError(
            f"{_place(sample)}: the prompt has images, and the checkpoint reads none; checkpoints of the types "
            f"{', '.join(FAMILIES)} do."
        )
    if is_tokenised(prompt):
        text = cast("str", tokenizer.decode(prompt))
        tokens = _known(sample, prompt, tokenizer)
        return Prompt(text, tokens, text, _places(sample, tokens, processor, _counts(sample, processor)))
    rendered, messages, dropped = prompt, list[Message](), list[Dropped]()
    if render and not sample.is_rendered:
        messages, rendered, dropped = _rendered(sample, tokenizer, args, notices)
    if not isinstance(rendered, str):
        raise ArgumentError(
            f"{_place(sample)}: the prompt is a list of messages, which the model cannot read as it is. Give "
            "--apply-chat-template to render it, or name a column of text with --input-key."
        )
    text, counts = rendered, _counts(sample, processor)
    if processor is not None and counts:
        try:
            text = expanded(text, ImageTexts(processor.placeholder, tuple(map(processor.text, counts))))[0]
        except DataError as error:
            raise DataError(f"{_place(sample)}: {error}.") from None
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise DataError(f"{_place(sample)}: the prompt has no tokens.")
    return Prompt(rendered, tokens, text, _places(sample, tokens, processor, counts), messages, dropped)


def _counts(sample: Sample, processor: Processor | None) -> list[int]:
    """How many tokens each image of a prompt takes."""
    try:
        return processor.counts(sample.images) if processor is not None and sample.images else []
    except DataError as error:
        raise DataError(f"{_place(sample)}: {error}.") from None


def _places(sample: Sample, tokens: list[int], processor: Processor | None, counts: list[int]) -> list[tuple[int, int]]:
    """Where the images of a prompt are, whose every image token has a feature."""
    if processor is None:
        return []
    if other := next((token for token in tokens if token != processor.token and processor.is_special(token)), None):
        raise DataError(f"{_place(sample)}: the prompt has the token {other}, which stands for a video; none is read.")
    try:
        return image_places(_place(sample), tokens, processor.token, counts)
    except SampleError as error:
        raise DataError(str(error)) from None


def _rendered(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, args: DataArguments, notices: Notices
) -> tuple[list[Message], str, list[Dropped]]:
    """Return the messages of a prompt in the form in which they were rendered, their rendering, and what it lacks."""
    prompt: Any = sample.prompt
    if not tokenizer.chat_template:
        raise ArgumentError(
            f"{_place(sample)}: the model has no chat template (chat_template.jinja), with which --apply-chat-template would render the "
            "prompt. Put one into its folder"
            + (
                ", or leave the option out to let the model go on with the text as it is."
                if isinstance(prompt, str)
                else "."
            )
        )
    try:
        messages = prompt_messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
        template = Template(tokenizer, sample.tools, template_variables(tokenizer, args))
        messages, text, dropped = render_whole(template, messages, prompt=True)
    except DataError as error:
        raise DataError(f"{_place(sample)}: {error}.") from error
    if lost := lost_question(template, messages, text, dropped):
        raise DataError(
            f"{_place(sample)}: {lost.sentence}, so that the model would not be asked it. Use a template that shows it, or take the row "
            "out."
        )
    tell_of_tools(template, sample, notices)
    if messages[-1]["role"] == "assistant":
        notices.once(
            "answered",
            f"{_place(sample)}: the prompt ends with a message of the assistant. The model reads it, and is asked for one more. If it is the "
            "answer to the question, as in rows for fine-tuning, take it out of the prompt. Further rows are not named.",
        )
    return messages, text, [item for item in dropped if not is_of_earlier(item, messages)]


def tell_of_tools(template: Template, sample: Sample, notices: Notices) -> None:
    """Say once that a chat template shows no definitions of tools, if the row has some."""
    if template.ignores_tools:
        notices.once(
            "tools",
            f"{_place(sample)}: the row has definitions of tools, and the chat template shows none, so that the model does not know of "
            "them. Use a template that shows tools, or leave them out. Further rows are not named.",
        )


def _known(sample: Sample, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        require_known(ids, vocabulary_of(tokenizer))
    except DataError as error:
        raise DataError(f"{_place(sample)}: {error}.") from None
    return ids


def _place(sample: Sample) -> str:
    """Return how messages about a prompt begin: file and row if they are known, else the sample's name."""
    return sample.source or sample.name
