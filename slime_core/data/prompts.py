"""`read_prompt`: from a prompt to the token ids that the model reads before it answers.

Called by the rollouts of reinforcement learning and their evaluations, by `slime check --parity`, and by the preview, so that
all of them read the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from slime_core.data.tokenizer import template_variables
from slime_core.data.tokens import is_tokenised, require_known, vocabulary_of
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments


def read_prompt(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, args: DataArguments, render: bool
) -> tuple[str, list[int]]:
    """Return the text that the model reads, and its token ids.

    Where they are to be rendered, messages are rendered with the chat template, generation prompt included, and text as one
    message of the user. Where not, and where it was rendered already, text is tokenised as it is; no special tokens are put
    around it. Token ids are used as they are.

    Args:
        args: `apply_chat_template_kwargs` and `chat_template_date` are read.
        render: `--apply-chat-template`.

    Raises:
        ArgumentError: the prompt has messages, and `--apply-chat-template` is not given; or it is, and there is no template; or
            the prompt has images.
        DataError: the prompt cannot be rendered, or has no tokens; names file and row.
    """
    prompt: Any = sample.prompt
    if sample.images:
        raise ArgumentError(
            f"{_place(sample)}: the prompt has images, which no engine is shown here: images are trained in fine-tuning alone "
            "(--rollout-function-path sft, without --eval-generate). Give prompts of text."
        )
    if is_tokenised(prompt):
        return cast("str", tokenizer.decode(prompt)), _known(sample, prompt, tokenizer)
    text = _rendered(sample, tokenizer, args) if render and not sample.is_rendered else prompt
    if not isinstance(text, str):
        raise ArgumentError(
            f"{_place(sample)}: the prompt is a list of messages, which the model cannot read as it is. Give "
            "--apply-chat-template to render it, or name a column of text with --input-key."
        )
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise DataError(f"{_place(sample)}: the prompt has no tokens.")
    return text, tokens


def _rendered(sample: Sample, tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> str:
    from jinja2 import TemplateError

    prompt: Any = sample.prompt
    if not tokenizer.chat_template:
        raise ArgumentError(
            f"{_place(sample)}: the model has no chat template (chat_template.jinja), with which --apply-chat-template would render the "
            "prompt. Leave the option out to let the model go on with the text as it is, or choose a model that has one."
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=sample.tools,
            add_generation_prompt=True,
            tokenize=False,
            **template_variables(tokenizer, args),
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{_place(sample)}: the chat template cannot render the messages: {type(error).__name__}: {error}."
        ) from error
    return cast("str", text)


def _known(sample: Sample, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    try:
        require_known(ids, vocabulary_of(tokenizer))
    except DataError as error:
        raise DataError(f"{_place(sample)}: {error}.") from None
    return ids


def _place(sample: Sample) -> str:
    """Return how messages about a prompt begin: file and row if they are known, else the sample's name."""
    return sample.source or sample.name
