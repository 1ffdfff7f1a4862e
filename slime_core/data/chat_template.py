"""The tokenizer's chat template: renders conversations, explains refusals, and notices text that it drops.

Called for conversations that are trained and for prompts that a model answers, so that both are rendered alike.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import TYPE_CHECKING, Any, cast

from slime_core.data.conversation import REASONING_KEYS, Message, has_images
from slime_core.data.message_texts import reasoning_of, texts, with_arguments
from slime_core.data.tools import with_object_arguments, with_text_arguments
from slime_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "question\ue001", "answer\ue001"  # private use: no template contains them
_TOOL_NAME = "toolname0mark"
_TOOL = {
    "name": _TOOL_NAME,
    "description": "What it does.",
    "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]},
}
_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ONE_AT_A_TIME = threading.Lock()  # transformers records generation marks in the shared compiled template


class Template:
    """Renders conversations that have the same tools with a tokenizer's chat template.

    Args:
        tools: their definitions.
        variables: of the template, `--apply-chat-template-kwargs`.
        source: the text of the template; by default the one that the tokenizer has for conversations with these tools.

    Raises:
        DataError: the tokenizer has no chat template, or a variable would decide how it is rendered instead.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any] | None = None,
        source: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.tools: list[Any] | None = tools
        self.variables = dict(variables or {})
        if self.variables and (own := sorted(self.variables.keys() & _decisions(tokenizer))):
            raise DataError(f"{own[0]!r} is no variable of a chat template, but decides how it is rendered")
        if not getattr(tokenizer, "chat_template", None):
            raise DataError(
                "the tokenizer of --hf-checkpoint has no chat template. Put one into its folder, as the file chat_template.jinja."
            )
        try:
            self.source = source or tokenizer.get_chat_template(None, self.tools)
        except ValueError as error:  # there are several, and none for this
            raise DataError(f"the tokenizer has no chat template for the conversation: {error}") from error

    def render(self, messages: list[Message], prompt: bool = False) -> str:
        """Return the text of `messages`; with `prompt` also the header that asks the model for the next turn.

        Raises:
            DataError: the template refuses, with its own message.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=self.tools,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except Exception as error:  # templates are programs: they fail in every way that Python can
            raise _refusal(error) from error
        return cast(str, text)

    def try_render(self, messages: list[Message], prompt: bool = False) -> str | None:
        """Return what `render` returns, but None where the template refuses."""
        try:
            return self.render(messages, prompt)
        except DataError:
            return None

    @property
    def writes_thoughts(self) -> bool:
        """Whether the template knows reasoning as `<think>` blocks."""
        return "</think>" in self.source

    @property
    def has_generation_marks(self) -> bool:
        """Whether the template itself marks with `{% generation %}` what the model generates."""
        return _GENERATION_MARK.search(self.source) is not None

    def marked_spans(self, messages: list[Message]) -> list[tuple[int, int]]:
        """Return the characters (start, end) in the rendering of `messages` that the template marks as generated.

        Raises:
            DataError: the template refuses, with its own message.
        """
        from transformers.utils import chat_template_utils

        render: Any = chat_template_utils.render_jinja_template
        try:
            with _ONE_AT_A_TIME:
                _, spans = render(
                    conversations=[messages],
                    tools=self.tools,
                    chat_template=self.source,
                    return_assistant_tokens_mask=True,
                    **{**self.tokenizer.special_tokens_map, **self.variables},
                )
        except Exception as error:
            raise _refusal(error) from error
        return [(start, end) for start, end in spans[0]]

    @property
    def ignores_tools(self) -> bool:
        """Whether there are tools, and the template writes nothing of any."""
        return bool(self.tools) and _ignores_tools(
            self.tokenizer, self.source, json.dumps(self.variables, sort_keys=True)
        )

    @property
    def writes_argument_text(self) -> bool:
        """Whether the template writes arguments of tool calls that are JSON text as they stand."""
        return _writes_argument_text(self.tokenizer, self.source, json.dumps(self.variables, sort_keys=True))

    @property
    def trained_header(self) -> str:
        """What the template writes between a question and its answer, if it ignores `add_generation_prompt`; else "".

        Then nothing tells the model's own text from the header, so that the header is trained.
        """
        return _trained_header(self.tokenizer, self.source, json.dumps(self.variables, sort_keys=True))

    @property
    def special(self) -> re.Pattern[str]:
        """The pattern that matches the text of any special token."""
        return special_tokens(self.tokenizer)


def _decisions(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """What tells a tokenizer how to render, and is not handed on to the template."""
    return signature(tokenizer.apply_chat_template).parameters.keys() - {"documents"}


def _refusal(error: Exception) -> DataError:
    return DataError(f"the chat template refuses the conversation: {error}")


@lru_cache(maxsize=16)
def _trained_header(tokenizer: PreTrainedTokenizerBase, source: str, variables: str) -> str:
    """Find it once for each template and its variables, which are given as JSON."""
    template = Template(tokenizer, None, json.loads(variables), source)
    question, answer = [{"role": "user", "content": _QUESTION}], {"role": "assistant", "content": _ANSWER}
    asked, prompted = template.try_render(question), template.try_render(question, prompt=True)
    whole = template.try_render([*question, answer])
    if asked is None or asked != prompted or whole is None or not whole.startswith(asked):
        return ""
    head, found, _ = whole[len(asked) :].partition(_ANSWER)
    return head if found and head.strip() else ""


@lru_cache(maxsize=16)
def _ignores_tools(tokenizer: PreTrainedTokenizerBase, source: str, variables: str) -> bool:
    """Find it once for each template and its variables, which are given as JSON. Some show tools only in a system message."""
    template = Template(tokenizer, [{"type": "function", "function": _TOOL}], json.loads(variables), source)
    setting, question = {"role": "system", "content": _ANSWER}, {"role": "user", "content": _QUESTION}
    shown = [text for asked in ([question], [setting, question]) if (text := template.try_render(asked)) is not None]
    return bool(shown) and not any(_TOOL_NAME in text for text in shown)


@lru_cache(maxsize=16)
def _writes_argument_text(tokenizer: PreTrainedTokenizerBase, source: str, variables: str) -> bool:
    """Find it once for each template and its variables, which are given as JSON. Some want calls with ids of nine letters, some no content
    beside them."""
    template = Template(tokenizer, None, json.loads(variables), source)
    arguments = f'{{"{_ANSWER}":1e2}}'  # as no template would write the object
    call = {"type": "function", "id": "123456789", "function": {"name": _TOOL_NAME, "arguments": arguments}}
    question, answer = {"role": "user", "content": _QUESTION}, {"role": "assistant", "tool_calls": [call]}
    shown = (template.try_render([question, {**answer, **content}]) for content in ({"content": ""}, {}))
    return any(text is not None and arguments in text for text in shown)


@lru_cache(maxsize=4)
def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return the pattern that matches the text of any special token."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted(added | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, found)) or r"(?!)")


@dataclass(frozen=True)
class Dropped:
    """Text of a message that is not in the rendering.

    Attributes:
        number: the message, counted from 1.
        role: its role.
        what: the kind of text: "content", "reasoning" or "tool call".
        text: the text, or the name of the tool.
    """

    number: int
    role: str
    what: str
    text: str

    @property
    def sentence(self) -> str:
        """What messages say of it."""
        short = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"the chat template drops the {self.what} of message {self.number} ({self.role}): {short!r}"


def render_whole(
    template: Template, messages: list[Message], prompt: bool = False
) -> tuple[list[Message], str, list[Dropped]]:
    """Render a whole conversation; where the template refuses or drops text, try the other forms that templates expect.

    Args:
        prompt: whether the header that asks the model for the next turn is rendered too.

    Returns:
        The messages in the form that lost least, their rendering, and what is not in it. The reasoning of earlier turns
        starts no search for another form: many templates drop it on purpose.

    Raises:
        DataError: the template refuses every form; the reason is the one for the first.
    """
    best: tuple[list[Message], str, list[Dropped]] | None = None
    refusals: list[DataError] = []
    for form in _forms(template, messages):
        try:
            text = template.render(form, prompt)
        except DataError as error:
            refusals.append(error)
            continue
        dropped = [*dropped_texts(template, form, text), *_dropped_calls(template, form)]
        if best is None or len(dropped) < len(best[2]):
            best = (form, text, dropped)
        if all(is_of_earlier(item, messages) for item in dropped):
            break
    if best is None:
        raise refusals[0]
    return best


def is_of_earlier(item: Dropped, messages: list[Message]) -> bool:
    """Whether what is dropped is the reasoning of an earlier question. It is dropped on purpose: the model does not see it either,
    when it is asked."""
    return item.what == "reasoning" and any(message["role"] == "user" for message in messages[item.number - 1 :])


def lost_question(template: Template, messages: list[Message], text: str, dropped: list[Dropped]) -> Dropped | None:
    """Return what is dropped of the question of a prompt, if nothing of its text is in `text`, its rendering with the header for the
    answer; else None. The question is the last message of the user or, without one, the last message.

    Text that a template writes in another way, such as in capitals, is looked for by writing another one in its place.
    """
    number = max((i for i, message in enumerate(messages, 1) if message["role"] == "user"), default=len(messages))
    question = messages[number - 1]
    lost = [item for item in dropped if item.number == number and item.what == "content"]
    if not lost or len(lost) < sum(what == "content" for what, _ in texts(question)):
        return None
    for item in lost:
        question = _with_mark(question, item, _QUESTION)
    other = template.try_render([*messages[: number - 1], question, *messages[number:]], prompt=True)
    return lost[0] if other == text else None


def dropped_texts(template: Template, messages: list[Message], text: str) -> list[Dropped]:
    """Return what messages say that `text`, their rendering, does not show. JSON-escaped text counts as shown.

    A text that stands elsewhere too, such as a "Sure." said twice, is replaced by a mark of its own to see whether it is this one that is
    shown.
    """
    said = [Dropped(number, m["role"], *piece) for number, m in enumerate(messages, 1) for piece in texts(m)]
    calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
    known = "\n".join(
        [template.source, json.dumps([template.tools, calls], ensure_ascii=False), *(s.text for s in said)]
    )
    dropped, unsure = list[Dropped](), dict[str, Dropped]()
    for item in said:
        if item.text not in text and json.dumps(item.text, ensure_ascii=False)[1:-1] not in text:
            dropped.append(item)
        elif known.count(item.text) > 1 or text.count(item.text) > 1:
            unsure[f"\ue004{len(unsure)}\ue005"] = item
    if unsure:
        other = list(messages)
        for mark, item in unsure.items():
            other[item.number - 1] = _with_mark(other[item.number - 1], item, mark)
        shown = template.try_render(other)
        dropped += [item for mark, item in unsure.items() if shown is not None and mark not in shown]
    return sorted(dropped, key=lambda item: item.number)


def _with_mark(message: Message, item: Dropped, mark: str) -> Message:
    """Return a message with a mark in the place of one of its texts."""
    if item.what == "reasoning" and reasoning_of(message).strip() == item.text:
        return {key: mark if key in REASONING_KEYS and value else value for key, value in message.items()}
    content = message["content"]
    if isinstance(content, list):
        return {
            **message,
            "content": [{**p, "text": p["text"].replace(item.text, mark)} if "text" in p else p for p in content],
        }
    before, _, behind = (content.partition if item.what == "reasoning" else content.rpartition)(item.text)
    return {**message, "content": f"{before}{mark}{behind}"}


def _dropped_calls(template: Template, messages: list[Message]) -> list[Dropped]:
    """Return the tool calls that leave no trace in the rendering, or are shown as Python writes objects, not as JSON.

    A function's name is no trace, since it may be shown with the tools; so their arguments are replaced by others.
    """
    calls: dict[str, Dropped] = {}
    other = []
    for number, message in enumerate(messages, 1):
        if "tool_calls" in message:
            message = {**message, "tool_calls": list(message["tool_calls"])}
            for i, call in enumerate(message["tool_calls"]):
                mark = f"argument{len(calls)}mark"
                calls[mark] = Dropped(number, message["role"], "tool call", call["function"]["name"])
                message["tool_calls"][i] = with_arguments(call, mark, mark)
        other.append(message)
    text = template.try_render(other) if calls else None
    if text is None:
        return []
    return [call for mark, call in calls.items() if mark not in text or repr({mark: mark}) in text]


def _forms(template: Template, messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the same messages in the forms that templates differ in, the most common one first: with objects for arguments of tool calls
    or, where the template writes text as it stands, with those that are given."""
    given, has_calls = messages, any("tool_calls" in message for message in messages)
    if has_calls and not template.writes_argument_text:
        messages = [_with_calls(message, with_object_arguments) for message in given]
    yield messages
    yield from _with_other_reasoning(template, messages)
    if has_calls:
        texted = [_with_calls(message, with_text_arguments) for message in given]
        yield texted
        for form in (messages, texted):
            yield [
                {
                    key: value
                    for key, value in message.items()
                    if key != "content" or value or "tool_calls" not in message
                }
                for message in form
            ]
    yield [m if has_images(m) else {**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _with_other_reasoning(template: Template, messages: list[Message]) -> Iterator[list[Message]]:
    """Yield the messages with their reasoning under each name that the template knows, and in front of their content."""
    own = {key for message in messages for key in REASONING_KEYS if message.get(key)}
    if not own:
        return
    for key in REASONING_KEYS:
        if {key} != own and re.search(rf"\b{key}\b", template.source):
            yield [_renamed(message, key) for message in messages]
    if template.writes_thoughts:
        yield [_inline(message) for message in messages]


def _renamed(message: Message, key: str) -> Message:
    reasoning = reasoning_of(message)
    rest = {name: value for name, value in message.items() if name not in REASONING_KEYS}
    return {**rest, key: reasoning} if reasoning else rest


def _inline(message: Message) -> Message:
    reasoning = reasoning_of(message)
    if not reasoning or message["role"] != "assistant":
        return message
    rest = {name: value for name, value in message.items() if name not in REASONING_KEYS}
    return {**rest, "content": f"<think>\n{reasoning.strip()}\n</think>\n\n{message['content']}"}


def _with_calls(message: Message, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Message:
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [change(call) for call in message["tool_calls"]]}
