"""The loss-mask generators that `--loss-mask-type` names. Contract: `slime_core.contracts.data.loss_mask`.

* `auto`: every turn of the assistant. slime's names `qwen`, `qwen3` and `qwen3_5` mean the same here, since it works
  for any template; unlike there, the newline after `<|im_end|>` is not trained.
* `last_turn`: only the assistant's last turn, for templates that show earlier turns without their reasoning.
* `distill_qwen`: as `last_turn`, with the answer exactly as the data has it, reasoning included, for templates that
  leave reasoning out of everything they render (DeepSeek-R1 distillations).

Warnings are about what a person should look at before training; none of them stops a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_core.contracts.data import MaskedTokens
from slime_core.data.conversation import REASONING_KEYS, read_conversation
from slime_core.errors import DataError
from slime_rollout_sft.masks.spans import Turn, assistant_turns, closing_text
from slime_rollout_sft.masks.template import Dropped, Template, render_whole
from slime_rollout_sft.masks.tokens import encode, encoding_problem, straddles, tokens_between

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]


def auto(tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list[Row] | None) -> MaskedTokens:
    """Train every assistant turn of the whole rendering, except those with `step_loss_mask` 0.

    Raises:
        DataError: the conversation cannot be read, rendered or tokenised.
    """
    return _from_rendering(tokenizer, messages, tools, last_only=False)


def last_turn(tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list[Row] | None) -> MaskedTokens:
    """Train only the assistant's last message of the whole rendering, unless its `step_loss_mask` is 0.

    Raises:
        DataError: what `auto` raises.
    """
    return _from_rendering(tokenizer, messages, tools, last_only=True)


def distill_qwen(tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list[Row] | None) -> MaskedTokens:
    """Train the last message as the data has it: the rendering of everything before it with the generation prompt,
    then its reasoning and content verbatim, then the template's end of turn; tokenised as one text.

    Raises:
        DataError: what `auto` raises; the last message is not the assistant's, comes first, or calls tools.
    """
    conversation = read_conversation(messages, tools)
    last = conversation.messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last or len(conversation.messages) == 1:
        raise DataError(
            "--loss-mask-type distill_qwen trains the last message, which must be the assistant's, follow another and "
            "call no tools. Use auto."
        )
    template = Template(tokenizer, conversation.tools)
    before, _, dropped = render_whole(template, conversation.messages[:-1])
    prompt = template.render(before, prompt=True)
    reasoning = next((last[key] for key in REASONING_KEYS if last.get(key)), None)
    answer = last["content"] if reasoning is None else f"<think>\n{reasoning.strip()}\n</think>\n\n{last['content']}"
    if prompt.rstrip().endswith("<think>") and answer.startswith("<think>"):
        answer = answer.removeprefix("<think>").lstrip("\n")
    complete = [*before, last]
    text = prompt + answer + closing_text(template, complete, template.render(complete))
    turn = Turn(len(before), len(prompt), len(text), closed=bool(template.special.search(text, len(prompt + answer))))
    return _masked(template, text, [turn] if conversation.trained[-1] else [], dropped)


def _from_rendering(
    tokenizer: PreTrainedTokenizerBase, messages: list[Row], tools: list[Row] | None, last_only: bool
) -> MaskedTokens:
    conversation = read_conversation(messages, tools)
    template = Template(tokenizer, conversation.tools)
    rendered, text, dropped = render_whole(template, conversation.messages)
    last = max(i for i, message in enumerate(rendered) if message["role"] == "assistant")
    turns = assistant_turns(template, rendered, text)
    trained = [turn for turn in turns if conversation.trained[turn.index] and (turn.index == last or not last_only)]
    return _masked(template, text, trained, dropped)


def _masked(template: Template, text: str, turns: list[Turn], dropped: list[Dropped]) -> MaskedTokens:
    ids, offsets = encode(template.tokenizer, text)
    mask = [0] * len(ids)
    for turn in turns:
        for token in tokens_between(offsets, turn.start, turn.end):
            mask[token] = 1
    warnings = [
        f"the chat template drops the {item.what} of message {item.number} ({item.role}): {_short(item.text)}"
        for item in dropped
    ]
    for turn in turns:
        for position, name in ((turn.start, "start"), (turn.end, "end")):
            if straddles(offsets, position):
                what = "not trained" if name == "start" else "trained"
                warnings.append(f"a token reaches over the {name} of message {turn.index + 1}; it is {what}")
        if not turn.closed:
            warnings.append(
                f"no token ends the turn of message {turn.index + 1}: the model does not learn to stop there"
            )
    if problem := encoding_problem(template.tokenizer, text, ids):
        warnings.append(problem)
    if 1 not in mask:
        warnings.append("no token is trained")
    return MaskedTokens(ids, mask, text, offsets, warnings)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
