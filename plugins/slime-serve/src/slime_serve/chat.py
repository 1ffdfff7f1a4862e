"""`slime chat`: a conversation with a model in the terminal, or one question."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.contracts.engine import GREEDY_BELOW
from slime_core.errors import ArgumentError, DataError, SlimeError, did_you_mean
from slime_core.plugins import Plugins
from slime_serve.folders import opened
from slime_serve.generation_defaults import sampling_defaults
from slime_serve.options import ChatOptions, read_command_line
from slime_serve.terminal import ask, is_a_person_there, piped, remark, write

if TYPE_CHECKING:
    from slime_core.data.conversation import Message
    from slime_serve.model import ServedModel
    from slime_serve.prompts import ReadConversation

DESCRIPTION = (
    'Talk to a model: `slime chat MODEL`. Or ask one question, `slime chat MODEL "QUESTION"`, which standard input may hold as well; '
    "then the answer alone is printed. MODEL is a Hugging Face folder, the directory of a run, or a checkpoint iter_N "
    "of one."
)
HELP = """/image FILE   show this image with the next question
/system TEXT  begin anew with this system message; without TEXT, with none
/reset        begin anew; the system message stays
/quit         end; so do Ctrl-D, and Ctrl-C twice
/help         say this
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""
COMMANDS = ("/help", "/image", "/quit", "/exit", "/reset", "/system")


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime chat MODEL …`."""
    read = read_command_line(argv, "slime chat MODEL [QUESTION]", DESCRIPTION, ChatOptions, plugins)
    if len(read.words) > 1:
        raise ArgumentError(f'What is {read.words[1]!r}? Put the question in quotes: slime chat MODEL "QUESTION".')
    question = read.words[0] if read.words else None if is_a_person_there() else piped()
    if question is not None and not question.strip():
        raise ArgumentError(
            "The question is empty. Give it behind MODEL or on standard input, or start slime chat in a terminal."
        )
    from slime_serve.model import open_model

    with (
        opened(read.given, plugins, read.own.trust_remote_code) as folder,
        closing(open_model(read.args_for(folder), plugins)) as model,
    ):
        conversation = Conversation(model, _parameters(read.own, str(folder)), read.own)
        conversation.begin(read.own.system)
        for name in read.own.image or ():
            conversation.show(name)
        if question is None:
            return _talk(conversation)
        with asyncio.Runner() as runner:
            conversation.say(question, runner)
        return 0


@dataclass
class Conversation:
    """What was said so far.

    Attributes:
        params: the engine's sampling parameters.
        messages: the conversation; empty for a model without chat template, which completes every text on its own.
        images: encoded, which the next question shows.
    """

    model: ServedModel
    params: dict[str, Any]
    options: ChatOptions
    messages: list[Message] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    _asked: int = 0

    @property
    def has_turns(self) -> bool:
        """Whether the model reads conversations."""
        from slime_serve.prompts import has_chat_template

        return has_chat_template(self.model.tokenizer)

    def begin(self, system: str | None) -> None:
        """Begin anew.

        Raises:
            ArgumentError: there is a system message, and the model reads none.
        """
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        if system and not self.has_turns:
            raise ArgumentError("The model has no chat template, so that it cannot read a system message.")
        if system:
            self._read([*messages, {"role": "user", "content": "?"}])
        self.messages, self.images = messages, []

    def show(self, name: str) -> int:
        """Show the image in a file with the next question. Returns how many tokens it takes.

        Raises:
            ArgumentError: there is no such file, it has no image that can be used, or the model reads none.
        """
        from slime_core.data.images import NO_RULES, encoded

        path = Path(name).expanduser().resolve()
        if self.model.processor is None or not self.has_turns:
            raise ArgumentError(
                f"{self.model.folder} is shown no images: it is no model whose images are read, or its engine reads none."
            )
        if not path.is_file():
            raise ArgumentError(f"There is no image file {name}. A question stands in front of --image.")
        try:
            data = encoded(str(path), path.parent, NO_RULES)
            (count,) = self.model.processor.counts([data])
        except DataError as error:
            raise ArgumentError(f"{name}: {str(error).removeprefix('image 1: ')}.") from None
        self.images.append(data)
        return count

    def say(self, text: str, runner: asyncio.Runner) -> None:
        """Say something, and print the answer while it comes. An answer that Ctrl-C stops is kept as far as it came.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SlimeError: the model cannot read that, or the engine fails; the conversation is as it was then.
        """
        before = list(self.messages)
        told: list[str] = []
        if self.has_turns:
            shown = [{"type": "image", "image": data} for data in self.images]
            content: Any = [*shown, {"type": "text", "text": text}] if shown else text
            self.messages.append({"role": "user", "content": content})
        is_whole = False
        try:
            tokens, images = self._read(self.messages) if self.has_turns else self._plain(text)
            runner.run(self._answer(tokens, images, told))
            is_whole = True
        finally:
            stopped = isinstance(sys.exception(), KeyboardInterrupt) and any(told)
            if self.has_turns and (is_whole or stopped):
                self.messages.append({"role": "assistant", "content": "".join(told)})
                self.images = []
            else:
                self.messages = before
        if not any(told):
            remark("(the answer is empty)")

    async def _answer(self, tokens: list[int], images: Sequence[bytes], told: list[str]) -> None:
        seed = self.options.rollout_seed
        seed = None if seed is None else seed + self._asked
        self._asked += 1
        room = self.options.rollout_max_response_len
        if self.model.context is not None:
            room = min(room, self.model.context - len(tokens))
        if room < 1:
            raise ArgumentError(
                f"The conversation has {len(tokens)} tokens; the model's context ends at {self.model.context}. /reset begins anew."
            )
        reason = None
        params = {**self.params, "max_new_tokens": room, "seed": seed}
        try:
            async with aclosing(self.model.answer(tokens, params, images=images)) as pieces:
                async for piece in pieces:
                    told.append(piece.text)
                    write(piece.text)
                    reason = piece.finish_reason
                    await asyncio.sleep(0)  # Ctrl-C is heard here, also where the next pieces are there already
        finally:
            if not "".join(told).endswith("\n"):
                write("\n")
        if reason == "length":
            limit = "the context of the model ends here" if room < self.options.rollout_max_response_len else "cut off"
            remark(f"({limit} after {room} tokens, see --rollout-max-response-len)")

    def _read(self, messages: list[Message]) -> ReadConversation:
        from slime_serve.prompts import read_conversation, read_images

        variables = self.options.apply_chat_template_kwargs
        try:
            read, images = read_images(messages, self.model.processor)
            return read_conversation(self.model.tokenizer, read, None, variables, self.model.processor, images)
        except DataError as error:
            text = str(error)
            raise ArgumentError(f"{text[0].upper()}{text[1:]}.") from None

    def _plain(self, text: str) -> ReadConversation:
        from slime_serve.prompts import ReadConversation, plain_tokens

        return ReadConversation(plain_tokens(self.model.tokenizer, text))


def _talk(conversation: Conversation) -> int:
    """Ask and answer until the person ends it."""
    _show_begin(conversation)
    stopped = False  # Ctrl-C was the last thing that happened
    with asyncio.Runner() as runner:
        while True:
            try:
                text = ask()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                if stopped:
                    return 0
                stopped = True
                remark("(Ctrl-C again ends, /help says what there is)")
                continue
            if not text.strip():
                continue
            stopped = False
            try:
                if text.startswith("/"):
                    if _obey(text, conversation):
                        return 0
                else:
                    conversation.say(text, runner)
            except KeyboardInterrupt:
                stopped = True
                remark("(stopped; Ctrl-C again ends)")
            except SlimeError as error:
                remark(str(error))


def _obey(line: str, conversation: Conversation) -> bool:
    """Do what a line with a command says. Returns whether to end."""
    command, _, rest = line.strip().partition(" ")
    if command in ("/quit", "/exit"):
        return True
    if command == "/help":
        remark(HELP)
    elif command == "/reset":
        system = next((m["content"] for m in conversation.messages if m["role"] == "system"), None)
        conversation.begin(system)
        remark("(a new conversation)")
    elif command == "/image":
        if not rest.strip():
            raise ArgumentError("Which image? /image FILE")
        remark(f"(the next question shows this image, of {conversation.show(rest.strip())} tokens)")
    elif command == "/system":
        conversation.begin(rest.strip() or None)
        remark("(a new conversation, with this system message)" if rest.strip() else "(a new conversation)")
    else:
        remark(f"There is no command {command}.{did_you_mean(command, COMMANDS)} /help says which there are.")
    return False


def _show_begin(conversation: Conversation) -> None:
    params = conversation.params
    sampling = "greedy" if params["temperature"] < GREEDY_BELOW else f"temperature {params['temperature']:g}"
    remark(f"{conversation.model.folder}   ({sampling}; /help)")
    if not conversation.has_turns:
        remark("It has no chat template, so it knows no conversation: every text is completed on its own.")


def _parameters(options: ChatOptions, folder: str) -> dict[str, Any]:
    """The engine's sampling parameters: what the options say, or else the model's own settings."""
    own = sampling_defaults(folder)

    def chosen(given: Any, name: str) -> Any:
        return own[name] if given is None else given

    return {
        "temperature": chosen(options.rollout_temperature, "temperature"),
        "top_p": chosen(options.rollout_top_p, "top_p"),
        "top_k": chosen(options.rollout_top_k, "top_k"),
        "stop": options.rollout_stop or [],
    }
