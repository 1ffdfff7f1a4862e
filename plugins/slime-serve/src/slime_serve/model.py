"""`ServedModel`: a model that answers, piece by piece. `slime chat` and `slime serve` open one and ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from slime_core.arguments import RunArguments
from slime_core.contracts.engine import Generation, InferenceEngine, ScoredToken, Scores, Streams
from slime_core.data.ends import known_ends
from slime_core.data.image_processor import Processor
from slime_core.data.quantised_checkpoints import quantised_checkpoint
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import load_processor
from slime_core.plugins import Plugins, Selected
from slime_core.remote_code import from_pretrained
from slime_core.rollout.asking import image_refusal
from slime_serve.text_stream import TextStream
from slime_serve.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: whole characters, possibly none yet.
        tokens: those that were generated since the last piece. Their text may come with a later one.
        offsets: for each of the tokens, at which character of the whole answer it begins.
        finish_reason: of the last piece, why the answer ended.
    """

    text: str
    tokens: tuple[ScoredToken, ...] = ()
    offsets: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass
class ServedModel:
    """A model with its engine.

    Attributes:
        folder: the Hugging Face checkpoint.
        context: the longest prompt and answer together in tokens; None where the configuration sets no limit.
        vocabulary_size: how many tokens the model knows, which may be more than the tokenizer.
        processor: what the model makes of images; None where it reads none, or the engine is shown none.
    """

    folder: str
    engine: InferenceEngine
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    vocabulary_size: int
    processor: Processor | None = None
    vocabulary: Vocabulary = field(init=False)

    def __post_init__(self) -> None:
        self.vocabulary = Vocabulary(self.tokenizer)

    @property
    def lists_likeliest(self) -> bool:
        """Whether the engine tells which other tokens were likely."""
        return isinstance(self.engine, Streams)

    @property
    def scores(self) -> bool:
        """Whether the engine tells how likely given tokens are."""
        return isinstance(self.engine, Scores)

    def decode(self, tokens: list[int], with_special: bool = False) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not with_special))

    async def answer(
        self,
        prompt: Sequence[int],
        params: dict[str, Any],
        likeliest: int = 0,
        images: Sequence[bytes] = (),
        with_special: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """Generate one answer. Closing the generator ends the request.

        Args:
            params: the sampling parameters of `InferenceEngine.generate`. Answers end before the first of `stop`.
            likeliest: how many of the likeliest tokens are listed for each token.
            images: the encoded images that the prompt shows, in their order.
            with_special: special tokens are in the text, all but those that end the answer, as in SGLang.

        Yields:
            at least one piece; the last one alone has a finish reason.

        Raises:
            SlimeError: what the engine raises.
        """
        decode = self._decode_with_special(params) if with_special else self.decode
        text = TextStream(decode, params.get("stop") or ())
        arrived: asyncio.Queue[ScoredToken | None] = asyncio.Queue()
        request = asyncio.ensure_future(self._generate(prompt, params, likeliest, arrived.put_nowait, images))
        request.add_done_callback(lambda _: arrived.put_nowait(None))
        try:
            is_going_on = True
            while is_going_on and not text.is_stopped:
                tokens, offsets, new = [], [], ""
                batch = [await arrived.get()]
                while not arrived.empty():
                    batch.append(arrived.get_nowait())
                for token in batch:
                    if token is None:
                        is_going_on = False
                    elif not text.is_stopped:
                        tokens.append(token)
                        offsets.append(text.length)
                        new += text.add(token.token)
                if tokens and is_going_on and not text.is_stopped:
                    yield Piece(new, tuple(tokens), tuple(offsets))
            reason: FinishReason = "stop" if text.is_stopped else (await request).finish_reason
            yield Piece(new + text.finish(), tuple(tokens), tuple(offsets), reason)
        finally:
            request.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await request

    def _decode_with_special(self, params: dict[str, Any]) -> Callable[[list[int]], str]:
        """What makes text of the tokens of an answer, special ones included that do not end it."""
        ends: set[int] = set()
        if not params.get("ignore_eos"):
            named = (*known_ends(self.folder, self.tokenizer), *(params.get("stop_token_ids") or ()))
            ends = {token for token in named if not self.decode([token])}
        return lambda tokens: self.decode([token for token in tokens if token not in ends], with_special=True)

    async def warm_up(self) -> None:
        """Generate one token, for which the engine loads the weights.

        Raises:
            SlimeError: it cannot.
        """
        begin = self.tokenizer.bos_token_id
        await self.engine.generate([begin if isinstance(begin, int) else 0], {"max_new_tokens": 1, "temperature": 0.0})

    async def score(self, tokens: Sequence[int], temperature: float, likeliest: int) -> list[ScoredToken]:
        """Every token but the first with its log-prob given those before it.

        Raises:
            SlimeError: what the engine raises.
        """
        assert isinstance(self.engine, Scores), "whoever asks has looked at `scores`"
        return await self.engine.score(tokens, temperature, likeliest)

    async def _generate(
        self,
        prompt: Sequence[int],
        params: dict[str, Any],
        likeliest: int,
        on_token: Callable[[ScoredToken], None],
        images: Sequence[bytes],
    ) -> Generation:
        more: Any = {"images": images} if images else {}
        if isinstance(self.engine, Streams):
            return await self.engine.stream(prompt, params, on_token, likeliest, **more)
        answer = await self.engine.generate(prompt, params, **more)
        for token, log_prob in zip(answer.tokens, answer.log_probs, strict=True):
            on_token(ScoredToken(token, log_prob))
        return answer

    def close(self) -> None:
        """End the engine; answers that are not finished fail."""
        self.engine.close()


def open_model(args: RunArguments, plugins: Plugins) -> ServedModel:
    """Make the engine of `--rollout-engine` for the model of `--hf-checkpoint`. Its weights are loaded when it is first asked.

    Raises:
        SlimeError: the folder has no tokenizer or no configuration that can be read, or the engine cannot be made.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    folder = str(args.hf_checkpoint)
    quantised = quantised_checkpoint(folder, plugins)
    engine: Selected[InferenceEngine] = plugins.select("engine", str(args.rollout_engine), "--rollout-engine")
    tokenizer = load_tokenizer(folder)
    config = from_pretrained(AutoConfig, folder).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    make = partial(engine.bind(quantised=quantised), args)
    made = make()
    processor = None if image_refusal(type(made), args) else load_processor(folder)
    return ServedModel(folder, made, tokenizer, context, max(len(tokenizer), config.vocab_size), processor)
