"""`LocalEngine`: the inference engine `--rollout-engine local`. The run makes it, and rollout functions call it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slime_core.contracts.engine import Generation, ScoredToken
from slime_core.contracts.memory import Holding, MemoryUse, ModelShape
from slime_core.data.ends import configured_ends, known_ends
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import FAMILIES, is_vision_model, processor_of
from slime_core.errors import ArgumentError
from slime_core.remote_code import load_configuration
from slime_core.tensors.freed_memory import keep_freed_memory
from slime_core.tensors.quantised_weights import restored
from slime_engine_local.errors import EngineError, HalfReplaced
from slime_engine_local.memory import memory
from slime_engine_local.model import LanguageModel, dtype_of
from slime_engine_local.request import Request
from slime_engine_local.sampling import SamplingParams
from slime_engine_local.scheduler import Scheduler
from slime_engine_local.scoring import Scoring
from slime_engine_local.static_proof import DecodingChoice
from slime_engine_local.vision import Gallery

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments import RunArguments
    from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
    from slime_core.contracts.engine import (
        Generates,
        GivesUpWeights,
        Holds,
        InferenceEngine,
        Offloads,
        Scores,
        Streams,
        TakesImages,
    )
    from slime_engine_local.arguments import LocalRunArguments

LOOP_ITERATIONS = 16
"""For so many iterations of the event loop the engine waits for those who asked for a response, or are about to ask for
one."""


class _CallbackReference:
    """Lives as long as the event loop keeps a callback that refers to it."""


class LocalEngine:
    """Generates in this process, on a GPU if there is one, in the dtype of the weights that it was handed; on a GPU with --bf16 in
    bfloat16, as the trainer's products are.

    Requests that are awaited together are decoded together, and a prefix that several have in common is computed and
    stored once. The response and log-probs of a request do not depend on which others run (but for the last bits of
    floating-point numbers).

    Args:
        args: the options of the run. Configuration and tokenizer are those of `--hf-checkpoint`; its weights are used
            only if `generate` is called before `update_weights`.
        quantised: the format of that checkpoint; None if it is not quantised. Weights in low precision are restored when they
            arrive, and products are computed in high precision, in float32 on a CPU.

    Raises:
        ArgumentError: `--offload` was given on a machine without a GPU, or several GPUs were reserved for this engine.
    """

    def __init__(self, args: LocalRunArguments, quantised: QuantisedCheckpoint | None = None) -> None:
        check_device(args)
        if not torch.cuda.is_available():
            keep_freed_memory("engine")
        self._checkpoint, self._quantised = args.hf_checkpoint, quantised
        self._max_tokens = args.local_max_total_tokens
        self._dtype = torch.bfloat16 if args.bf16 and torch.cuda.is_available() else None
        whole = load_configuration(self._checkpoint)
        config = whole.get_text_config()
        self._context: int | None = getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._tokenizer = load_tokenizer(self._checkpoint)
        self._gallery = Gallery(processor_of(args))
        self._special = frozenset(token for token in self._gallery.special if token < self._vocabulary)
        # The class of a configuration may name an end that config.json leaves out.
        self._end_tokens = known_ends(self._checkpoint, self._tokenizer).union(configured_ends(whole.to_dict()))
        load = partial(LanguageModel.from_checkpoint, self._checkpoint, quantised)
        requests = args.local_max_running_requests
        decoding = DecodingChoice(args.local_decoding, requests, self._max_tokens, self._context)
        self._scheduler = Scheduler(requests, self._max_tokens, load, decoding)
        # Also runs when the engine is garbage or the interpreter ends, so that no step is cut off half-way.
        self._finalizer = weakref.finalize(self, self._scheduler.close)

    @staticmethod
    def memory(args: LocalRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
        """What the engine will hold."""
        return memory(args, model, use)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy all weights, given as (Hugging Face name, tensor) pairs, tied ones once. Returns when they are in use
        and the tensors handed over may change.

        Requests that are running go on with the new weights, on the keys and values that the old ones made;
        `Generation.weight_versions` tells which token came from which. Requests that join later share nothing with
        them.

        Weights that come from an iterator are copied as they come, and no step is made until all have; nobody keeps those that
        are copied. The first weights, and others than the model's in dtype or device, are collected before.

        Raises:
            EngineError: the weights are not those of the model that the checkpoint's configuration describes, or the
                engine cannot serve that model. The weights in use stay as they were; but if some of an iterator's have been
                copied, requests fail until all weights are handed over again.
        """

        def copy() -> None:
            rest = iter(weights)
            if self._quantised is not None:
                rest = restored(rest, self._quantised.format, dtype_of(self._checkpoint))
            first = list(islice(rest, 1))
            if not first:
                raise EngineError("The engine 'local' was handed no weights at all.")
            model, given = self._scheduler.model, _with_first(first, rest)
            if model is None or not model.fits(dict(first)):
                model = LanguageModel(self._checkpoint, dict(given), self._dtype)
            elif isinstance(weights, Iterator):
                try:
                    model.replace(given)
                except HalfReplaced as error:
                    self._scheduler.spoil(EngineError(f"The update to weights of version {version} failed: {error}"))
                    raise
            else:
                model.update(dict(given))
            self._scheduler.use(model, version)

        self._scheduler.call(copy).result()

    @staticmethod
    def image_refusal(args: RunArguments) -> str:
        """Why the model of a run is shown no images."""
        if _reads_images(args.hf_checkpoint):
            return ""
        return f"it reads no images of the checkpoint {args.hf_checkpoint}, which is of none of the types {', '.join(FAMILIES)}"

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None = None,
        images: Sequence[bytes] | None = None,
    ) -> Generation:
        """Generate one response to the prompt `input_ids`.

        It ends with a stop token or the token that completes a stop string (which belong to it), after `max_new_tokens`
        or where the model's context ends ("length"), or when it is aborted. The log-probs are those of the whole
        vocabulary at the temperature (1 for greedy decoding): `top_p`, `top_k` and `min_new_tokens` restrict the choice
        and do not renormalise, so a trainer computes the same numbers. Cancelling the call ends the request.

        The random numbers depend on the seed and on the position in the sequence. So a response that was aborted, when
        asked for again with its tokens after the prompt, goes on as if nothing had happened.

        Args:
            input_ids: token ids, at least one.
            sampling_params: the fields of `slime_engine_local.sampling.SamplingParams`; unknown ones are an error.
            request_id: the name by which `abort` finds the request.
            images: the encoded images that the prompt shows, whose tokens are among `input_ids`. Equal ones are computed once.

        Raises:
            ArgumentError: the prompt, an image or a sampling parameter cannot be used, or the request needs more than
                `--local-max-total-tokens`.
            EngineError: the weights cannot be loaded or give NaN, or the engine was closed.
        """
        return await self._generate(input_ids, sampling_params, request_id, images)

    async def stream(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        on_token: Callable[[ScoredToken], None],
        likeliest: int = 0,
        request_id: str | None = None,
        images: Sequence[bytes] | None = None,
    ) -> Generation:
        """Generate one response as `generate` does, and call `on_token` in this event loop with every token as soon as it is
        chosen, with so many of the `likeliest` tokens at its place and their log-probs.

        Raises: what `generate` does.
        """
        loop = asyncio.get_running_loop()

        def tell(chosen: ScoredToken) -> None:
            with suppress(RuntimeError):  # the loop was closed, so nobody listens
                loop.call_soon_threadsafe(on_token, chosen)

        return await self._generate(input_ids, sampling_params, request_id, images, tell, likeliest)

    async def score(
        self,
        input_ids: Sequence[int],
        temperature: float = 1.0,
        likeliest: int = 0,
        images: Sequence[bytes] | None = None,
    ) -> list[ScoredToken]:
        """Return each of N tokens but the first with its log-prob given those before it, and with so many of the `likeliest`
        tokens at its place. Running requests go on meanwhile, between pieces of the text.

        Args:
            input_ids: at most as many as the model's context has.
            temperature: divides the logits, above 0.
            images: the encoded images that the tokens show.

        Raises:
            ArgumentError: there are no tokens, too many, or unknown ones, or an image cannot be used.
            EngineError: the weights cannot be loaded, or the engine was closed.
        """
        tokens = [int(token) for token in input_ids]
        self._check_tokens(tokens)
        if self._context and len(tokens) > self._context:
            raise ArgumentError(
                f"There are {len(tokens)} tokens to score, but the model's context ends at {self._context}."
            )
        if not temperature > 0:
            raise ArgumentError(f"The temperature is {temperature!r}; tokens are scored with a number above 0.")
        scoring = Scoring(self._scheduler, tokens, temperature, likeliest, self._gallery.shown(tokens, images or ()))
        while not scoring.is_done:
            await asyncio.wrap_future(self._scheduler.call(scoring.advance))
        return scoring.scored

    async def _generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None,
        images: Sequence[bytes] | None,
        tell: Callable[[ScoredToken], None] | None = None,
        likeliest: int = 0,
    ) -> Generation:
        params = SamplingParams.parse(sampling_params, self._end_tokens)
        prompt = [int(token) for token in input_ids]
        self._check_prompt(prompt)
        limit = min(params.max_new_tokens, self._context - len(prompt)) if self._context else params.max_new_tokens
        if (needed := len(prompt) + limit - 1) > self._max_tokens:  # the last token is never read
            raise ArgumentError(
                f"A prompt of {len(prompt)} tokens with a response of up to {limit} may need keys and values of "
                f"{needed} tokens, but --local-max-total-tokens is {self._max_tokens}. Raise it, or lower "
                "max_new_tokens."
            )
        decode = partial(_decode, self._tokenizer)
        shown = self._gallery.shown(prompt, images or ())
        request = Request(
            *(prompt, params, limit, decode, self._scheduler.hold, request_id, tell, likeliest, shown, self._special)
        )
        banned = request.banned()
        if all(token in banned for token in range(self._vocabulary)):
            raise ArgumentError(
                f"min_new_tokens is {params.min_new_tokens}, and all {self._vocabulary} tokens that the model knows are stop tokens (or "
                "those of images), so that none may be chosen. Give fewer stop_token_ids, or min_new_tokens 0."
            )
        self._scheduler.hold(1)
        self._end_hold_soon()
        self._scheduler.submit(request)
        try:
            reason = await asyncio.wrap_future(request.done)
        finally:
            if not request.done.cancel() and not request.done.cancelled() and request.done.exception() is None:
                self._end_hold_soon()
        text = _decode(self._tokenizer, request.tokens, skip_special_tokens=True)
        return Generation(request.tokens, request.log_probs, reason, request.versions, text)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Return a context in which no token is generated.

        A rollout function that decides something when a response is finished holds the engine meanwhile. Then how far
        the other responses have come does not depend on how long that takes, and the run can be repeated bit for bit.

        The engine itself waits, when it is asked for a response and when it has finished one, until the event loop has
        run the callbacks that follow: requests that are made together are decoded together, and whoever waits for a
        response can call `hold` before the next token.
        """
        self._scheduler.hold(1)
        try:
            yield
        finally:
            self._scheduler.hold(-1)

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests (None: all), running or waiting, between two steps. Returns when it is done.

        Their `generate` calls return what there is. Unknown and finished requests are no error.
        """
        names = None if request_ids is None else frozenset(request_ids)
        await asyncio.wrap_future(self._scheduler.call(partial(self._scheduler.abort, names)))

    def offload(self) -> None:
        """Give back the GPU's memory until `onload`. Weights wait in host memory, keys and values are computed anew.
        Requests that are made meanwhile wait, and weights must not be updated."""
        self._scheduler.call(self._scheduler.offload).result()

    def onload(self) -> None:
        """Take the GPU's memory again. The weights are as they were, bit for bit."""
        self._scheduler.call(self._scheduler.onload).result()

    def give_up_weights(self) -> None:
        """Free most of the memory of the weights on a CPU; all are handed over anew before the next request. With requests that
        are not finished nothing happens."""
        self._scheduler.call(self._scheduler.give_up_weights).result()

    def close(self) -> None:
        """End the engine's thread. Requests that are not finished fail."""
        self._finalizer()

    def _end_hold_soon(self) -> None:
        """End a hold after the next iterations of the event loop, or when the loop is closed."""
        end = weakref.finalize(reference := _CallbackReference(), self._scheduler.hold, -1)
        loop = asyncio.get_running_loop()

        def iterate(left: int, kept: _CallbackReference) -> None:
            if left:
                loop.call_soon(iterate, left - 1, kept)
            else:
                end()

        iterate(LOOP_ITERATIONS, reference)

    def _check_prompt(self, prompt: list[int]) -> None:
        """Raise `ArgumentError` for a prompt that the model cannot read, or not answer."""
        self._check_tokens(prompt)
        if self._context and len(prompt) >= self._context:
            raise ArgumentError(
                f"The prompt has {len(prompt)} tokens, but the model's context ends at {self._context}, which leaves "
                "no room for a response. Shorten the prompt or leave it out."
            )

    def _check_tokens(self, prompt: list[int]) -> None:
        """Raise `ArgumentError` for tokens that the model does not know, or none."""
        if not prompt:
            raise ArgumentError("The prompt has no tokens; the engine 'local' needs at least one.")
        if outside := [token for token in prompt if not 0 <= token < self._vocabulary]:
            raise ArgumentError(
                f"The prompt holds the token {outside[0]}; the model knows 0 to {self._vocabulary - 1}."
            )


def _with_first(first: list[tuple[str, Tensor]], rest: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """All weights again, after the first one was looked at. Keeps none of them."""
    while first:
        yield first.pop()
    yield from rest


def check_device(args: LocalRunArguments) -> None:
    """Raise `ArgumentError` for `--offload` where there is no memory but the host's, and for GPUs that would be idle."""
    if torch.cuda.is_available() and not args.colocate and (args.rollout_num_gpus or 1) > 1:
        raise ArgumentError(
            f"--rollout-num-gpus is {args.rollout_num_gpus}, but the engine 'local' computes on one GPU. Leave the option out, or take "
            "--rollout-engine sglang, whose servers use several."
        )
    if args.offload and args.colocate and not torch.cuda.is_available():
        raise ArgumentError(
            "--offload needs a GPU: the engine 'local' generates on the CPU here, so all that it holds is in host "
            "memory already. Leave the option out."
        )


@lru_cache(maxsize=4)
def _reads_images(folder: str) -> bool:
    """Whether a checkpoint's model is shown images here. Asked with every request that has some."""
    return is_vision_model(load_configuration(folder))


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, skip_special_tokens: bool = False) -> str:
    """Return the text of one sequence of tokens."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))


if TYPE_CHECKING:  # type checkers compare the class with the contract and the abilities that it has
    _engine: type[InferenceEngine] = LocalEngine
    _generates: type[Generates] = LocalEngine
    _takes_images: type[TakesImages] = LocalEngine
    _holds: type[Holds] = LocalEngine
    _offloads: type[Offloads] = LocalEngine
    _gives_up: type[GivesUpWeights] = LocalEngine
    _streams: type[Streams] = LocalEngine
    _scores: type[Scores] = LocalEngine
