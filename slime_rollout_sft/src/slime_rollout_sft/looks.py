"""How the preview reads a row: as the SFT rollout does, or as the rollouts of reinforcement learning do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slime_core.contracts.data import MaskedTokens
from slime_core.data import is_tokenised
from slime_core.data.chat_template import Template
from slime_core.data.conversation import prompt_messages
from slime_core.data.image_processor import Processor
from slime_core.data.notices import Notices
from slime_core.data.prompts import Prompt, read_prompt
from slime_core.errors import DataError
from slime_core.sample import Sample, Status
from slime_rollout_sft.conversations import Conversations, Unusable
from slime_rollout_sft.lint import LeftOut, Look
from slime_rollout_sft.masks.roles import roles_in_text, roles_of_ids
from slime_rollout_sft.masks.spelled import special_tokens_in
from slime_rollout_sft.masks.tokens import encode, encoding_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments


def as_conversations(
    conversations: Conversations, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]
) -> Look:
    """Return what reads rows as the SFT rollout does.

    Args:
        variables: of the chat template.
    """

    def look(sample: Sample) -> tuple[MaskedTokens, list[str], Status]:
        masked = None
        try:
            masked = conversations.render(sample)
            done = conversations.respond(sample, masked)
        except Unusable as problem:
            raise LeftOut(str(problem), problem.skip, masked) from problem
        count = len(done.tokens)  # fewer than there were where it was cut
        trained = [0, *masked.loss_mask[1:count]]  # nothing precedes the first token to predict it from
        masked = replace(masked, token_ids=done.tokens, loss_mask=trained, offsets=masked.offsets[:count])
        return masked, _roles(sample, masked, tokenizer, variables), done.status

    return look


def as_prompts(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    variables: Mapping[str, Any],
    limit: tuple[int, str] | None,
    processor: Processor | None,
    notices: Notices,
) -> Look:
    """Return what reads rows as the rollouts of reinforcement learning do; nothing of a prompt is trained.

    Args:
        args: says whether prompts are rendered, and with what.
        variables: of the chat template.
        limit: the longest prompt in tokens, and the option that says so; None for any.
        processor: what the checkpoint makes of images; None of one that reads none.
        notices: are told of tools that the template does not show.
    """

    def look(sample: Sample) -> tuple[MaskedTokens, list[str], Status]:
        prompt = read_prompt(sample, tokenizer, args, args.apply_chat_template, processor, notices)
        ids, text = prompt.tokens, prompt.expanded
        masked = MaskedTokens(ids, [0] * len(ids), text, images=prompt.images, messages=[*prompt.messages])
        if limit is not None and len(ids) > limit[0]:
            raise LeftOut(
                f"the prompt has {len(ids)} tokens, more than the {limit[0]} that {limit[1]} allows.", True, masked
            )
        if not is_tokenised(sample.prompt):
            masked.offsets.extend(encode(tokenizer, text)[1])
            masked.warnings.extend(_warnings_of_prompt(sample, args, tokenizer, prompt))
        return masked, _roles(sample, masked, tokenizer, variables), Status.PENDING

    return look


def _warnings_of_prompt(
    sample: Sample,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
) -> list[str]:
    """Return what a person should look at in a prompt that is text or messages."""
    warnings = []
    if args.label_key is not None and sample.label is None:
        warnings.append(f"the label {args.label_key!r} is null, so that rewards have nothing to compare with")
    warnings += [item.sentence for item in prompt.dropped]
    warnings += special_tokens_in(tokenizer, prompt.messages, sample.tools)
    if problem := encoding_problem(tokenizer, prompt.expanded, prompt.tokens):
        warnings.append(problem)
    return warnings


def _roles(
    sample: Sample, masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]
) -> list[str]:
    """Return whose each token is."""
    if is_tokenised(sample.prompt):
        return roles_of_ids(tokenizer, masked.token_ids)
    if not masked.offsets:  # a loss mask that gives no positions
        return roles_of_ids(tokenizer, masked.token_ids)
    if isinstance(sample.prompt, str) and not masked.messages:
        return ["user"] * len(masked.token_ids)
    messages = masked.messages or _read(sample)
    return roles_in_text(Template(tokenizer, sample.tools, variables), messages, masked.text, masked.offsets)


def _read(sample: Sample) -> list[dict[str, Any]]:
    """Return the messages in one form, as far as they can be read."""
    messages: Any = sample.prompt
    try:
        return prompt_messages(messages)
    except DataError:  # such as a part that only this loss mask knows
        return [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
