"""The loss-mask generators that `--loss-mask-type` names. Contract: `slime_core.contracts.data.loss_mask`.

* `auto`: every turn of the assistant. slime's names `qwen`, `qwen3` and `qwen3_5` mean the same here, since it works
  for any template; docs/sft.md says which tokens slime trains otherwise.
* `last_turn`: only the assistant's last turn, for templates that show earlier turns without their reasoning.
* `distill_qwen`: as `last_turn`, with the answer exactly as the data has it, reasoning included, for templates that
  leave reasoning out of everything they render (DeepSeek-R1 distillations).

Warnings are about what a person should look at before training; none of them stops a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.data import ImageTexts, MaskedTokens
from slime_core.data.chat_template import Dropped, Template, is_of_earlier, render_whole
from slime_core.data.conversation import Conversation, Message, read_conversation
from slime_core.data.message_texts import reasoning_of
from slime_core.errors import DataError
from slime_rollout_sft.masks.images import with_images
from slime_rollout_sft.masks.marks import marked_turns
from slime_rollout_sft.masks.spans import Turn, assistant_turns, closing_text
from slime_rollout_sft.masks.spelled import special_tokens_in
from slime_rollout_sft.masks.tokens import encode, encoding_problem, straddles, tokens_between

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def auto(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Row],
    tools: list[Row] | None,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    images: ImageTexts | None = None,
) -> MaskedTokens:
    """Train every assistant turn of the whole rendering, except those with `step_loss_mask` 0.

    Where the template leaves the reasoning of the last turn out (DeepSeek-R1 distillations), that turn is as
    `distill_qwen` has it.

    Raises:
        DataError: the conversation cannot be read, rendered or tokenised.
    """
    return _from_rendering(read_conversation(messages, tools), tokenizer, template_kwargs, images, last_only=False)


def last_turn(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Row],
    tools: list[Row] | None,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    images: ImageTexts | None = None,
) -> MaskedTokens:
    """Train only the assistant's last message of the whole rendering, unless its `step_loss_mask` is 0.

    Raises:
        DataError: what `auto` raises.
    """
    return _from_rendering(read_conversation(messages, tools), tokenizer, template_kwargs, images, last_only=True)


def distill_qwen(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Row],
    tools: list[Row] | None,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    images: ImageTexts | None = None,
) -> MaskedTokens:
    """Train the last message as the data has it: the rendering of everything before it with the generation prompt,
    then its reasoning and content verbatim, then the template's end of turn; tokenised as one text.

    Raises:
        DataError: what `auto` raises; the last message is not the assistant's, comes first, or calls tools.
    """
    conversation = read_conversation(messages, tools)
    if not _ends_with_answer(conversation.messages):
        raise DataError(
            "--loss-mask-type distill_qwen trains the last message, which must be the assistant's, follow another and "
            "call no tools. Use auto."
        )
    template = Template(tokenizer, conversation.tools, template_kwargs)
    before, _, dropped = render_whole(template, conversation.messages[:-1])
    text, turn = _verbatim(template, before, conversation.messages[-1])
    rendered = [*before, conversation.messages[-1]]
    chosen = {len(before)} if conversation.trained[-1] else set()
    return _masked(template, conversation, rendered, text, [turn], chosen, dropped, images=images)


def _from_rendering(
    conversation: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any] | None,
    images: ImageTexts | None,
    last_only: bool,
) -> MaskedTokens:
    template = Template(tokenizer, conversation.tools, template_kwargs)
    rendered, text, dropped = render_whole(template, conversation.messages)
    last = max(i for i, message in enumerate(rendered) if message["role"] == "assistant")
    besides: list[str] = []
    if (with_reasoning := _with_dropped_reasoning(template, conversation, rendered, dropped)) is not None:
        text, turns, besides = with_reasoning
        dropped = [item for item in dropped if item.number != last + 1]
    elif template.has_generation_marks:
        turns, besides = marked_turns(template, rendered, text)
    else:
        turns = assistant_turns(template, rendered, text)
    chosen = {i for i, is_trained in enumerate(conversation.trained) if is_trained and (i == last or not last_only)}
    return _masked(template, conversation, rendered, text, turns, chosen, dropped, besides, images)


def _ends_with_answer(messages: list[Message]) -> bool:
    return messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1] and len(messages) > 1


def _with_dropped_reasoning(
    template: Template, conversation: Conversation, rendered: list[Message], dropped: list[Dropped]
) -> tuple[str, list[Turn], list[str]] | None:
    """Return text and turns with the last answer as the data has it, and what marks of the template train besides, if the template
    leaves out nothing but its reasoning and writes all before it as it does otherwise; else None."""
    last = len(rendered)
    of_last = {item.what for item in dropped if item.number == last}
    if (
        not template.writes_thoughts
        or of_last != {"reasoning"}
        or not _ends_with_answer(rendered)
        or not conversation.trained[-1]
    ):
        return None
    before = rendered[:-1]
    earlier = template.try_render(before)
    text, turn = _verbatim(template, before, conversation.messages[-1])
    if earlier is None or not text.startswith(earlier):
        return None
    if not template.has_generation_marks:
        return text, [*assistant_turns(template, before, earlier), turn], []
    marked, besides = marked_turns(template, before, earlier)
    return text, [*marked, turn], besides


def _verbatim(template: Template, before: list[Message], last: Message) -> tuple[str, Turn]:
    """Return the rendering of `before` with the generation prompt, the last answer as the data has it, and the template's
    end of turn; and the turn that is the answer."""
    prompt = template.render(before, prompt=True)
    reasoning, content = reasoning_of(last), last["content"]
    answer = f"<think>\n{reasoning.strip()}\n</think>\n\n{content}" if reasoning else content
    if prompt.rstrip().endswith("<think>") and answer.startswith("<think>"):
        answer = answer.removeprefix("<think>").lstrip("\n")
    complete = [*before, last]
    text = prompt + answer + closing_text(template, complete, template.render(complete))
    closed = bool(template.special.search(text, len(prompt + answer)))
    return text, Turn(len(before), len(prompt), len(text), closed)


def _masked(
    template: Template,
    conversation: Conversation,
    rendered: list[Message],
    text: str,
    turns: list[Turn],
    chosen: set[int],
    dropped: list[Dropped],
    besides: Sequence[str] = (),
    images: ImageTexts | None = None,
) -> MaskedTokens:
    """Return the tokens of a rendering, of which those of the messages `chosen` are trained."""
    text, turns = with_images(text, [turn for turn in turns if turn.index in chosen], images)
    ids, offsets = encode(template.tokenizer, text)
    mask = [0] * len(ids)
    for turn in turns:
        for token in tokens_between(offsets, turn.start, turn.end):
            mask[token] = 1
    warnings = [item.sentence for item in dropped]
    warnings += (spelled := special_tokens_in(template.tokenizer, conversation.messages, conversation.tools))
    if template.trained_header and not template.has_generation_marks and turns:
        warnings.append(
            f"the chat template ignores add_generation_prompt, so its header {template.trained_header!r} is trained; a model "
            "that is asked with this template is given none"
        )
    warnings += besides
    for turn in turns:
        for position, name in ((turn.start, "start"), (turn.end, "end")):
            if straddles(offsets, position):
                what = "not trained" if name == "start" else "trained"
                warnings.append(f"a token reaches over the {name} of message {turn.index + 1}; it is {what}")
        if not turn.closed:
            warnings.append(
                f"no token ends the turn of message {turn.index + 1}: the model does not learn to stop there"
            )
    if unasked := [str(turn.index + 1) for turn in turns if not turn.asked]:
        warnings.append(
            f"the chat template does not write its own generation prompt before message {', '.join(unasked)}: a model that is "
            "asked with it sees another beginning there"
        )
    if problem := encoding_problem(template.tokenizer, text, ids):
        warnings.append(problem)
    if 1 not in mask:
        warnings.append("no token is trained")
    lost = [item.sentence for item in dropped if item.number - 1 in chosen and not is_of_earlier(item, rendered)]
    counts = {"with_special_token_text": len(spelled), "with_dropped_text": len(dropped)}
    return MaskedTokens(
        ids, mask, text, offsets, warnings, lost, {name: 1 for name, number in counts.items() if number}, rendered
    )
