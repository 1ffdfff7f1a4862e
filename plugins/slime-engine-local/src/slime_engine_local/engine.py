"""`LocalEngine`: the inference engine `--rollout-engine local`. Made by the run, called by rollout functions."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from slime_core.engine import Generation
from slime_core.errors import ArgumentError
from slime_engine_local.errors import EngineError
from slime_engine_local.model import LanguageModel
from slime_engine_local.sampling import SamplingParams
from slime_engine_local.scheduler import Request, Scheduler


class LocalEngine:
    """Generates in this process, on the device and in the number format of the weights that it was handed.

    Requests that are awaited together are decoded together. The response and log-probs of a request do not depend on
    which others run (but for the last bits of floating-point numbers).

    Args:
        args: `hf_checkpoint` (configuration and tokenizer; no weights are read) and `local_max_running_requests`.
    """

    def __init__(self, args: Any) -> None:
        self._checkpoint: str = args.hf_checkpoint
        self._scheduler = Scheduler(args.local_max_running_requests)
        self._tokenizer: Any = None
        self._stop_token_ids: frozenset[int] = frozenset()
        # Also runs when the engine is garbage or the interpreter ends, so that no step is cut off half-way.
        self._finalizer = weakref.finalize(self, self._scheduler.close)

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy all weights, given as (Hugging Face name, tensor) pairs, tied ones once. Returns when they are in use.

        The first call builds the model. Requests that are running go on with the new weights, on the keys and values
        that the old ones made; `Generation.weight_versions` tells which token came from which.

        Raises:
            EngineError: the weights are not those of the model that the checkpoint's configuration describes, or the
                engine cannot serve that model. The weights in use stay as they were.
        """
        handed = list(weights)
        if self._tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(self._checkpoint)
            self._stop_token_ids = _stop_token_ids(self._checkpoint, tokenizer)

        def copy() -> None:
            if not handed:
                raise EngineError("The engine 'local' was handed no weights at all.")
            model = self._scheduler.model or LanguageModel(self._checkpoint, handed[0][1].dtype)
            model.update(handed)
            self._scheduler.model, self._scheduler.version = model, version

        self._scheduler.call(copy)
        self._tokenizer = self._tokenizer or tokenizer

    async def generate(self, input_ids: Sequence[int], sampling_params: dict[str, Any]) -> Generation:
        """One response to the prompt `input_ids`.

        It ends with a stop token (which belongs to it), after `max_new_tokens`, or where the model's context ends
        ("length"). The log-probs are those of the whole vocabulary at the temperature (1 for greedy decoding):
        `top_p` and `top_k` restrict the choice and do not renormalise, so a trainer computes the same numbers.
        Cancelling the call frees its place in the batch.

        Args:
            input_ids: token ids, at least one.
            sampling_params: see `slime_engine_local.sampling.SamplingParams`; unknown ones are an error.

        Raises:
            ArgumentError: the prompt or a sampling parameter cannot be used.
            EngineError: there are no weights yet, they give NaN, or the engine was closed.
        """
        model = self._scheduler.model
        if model is None or self._tokenizer is None:
            raise EngineError("The engine 'local' has no weights yet: call update_weights before generate.")
        params = SamplingParams.parse(sampling_params, self._stop_token_ids)
        prompt = [int(token) for token in input_ids]
        _check_prompt(prompt, model)
        room = model.context - len(prompt) if model.context else params.max_new_tokens
        request = Request(prompt, params, limit=min(params.max_new_tokens, room))
        self._scheduler.submit(request)
        reason = await asyncio.wrap_future(request.done)
        text = self._tokenizer.decode(request.tokens, skip_special_tokens=True)
        return Generation(request.tokens, request.log_probs, reason, request.versions, text)

    def close(self) -> None:
        """End the engine's thread. Requests that are not finished fail."""
        self._finalizer()


def _check_prompt(prompt: list[int], model: LanguageModel) -> None:
    if not prompt:
        raise ArgumentError("The prompt has no tokens; the engine 'local' needs at least one.")
    if outside := [token for token in prompt if not 0 <= token < model.vocabulary]:
        raise ArgumentError(f"The prompt holds the token {outside[0]}; the model knows 0 to {model.vocabulary - 1}.")
    if model.context and len(prompt) >= model.context:
        raise ArgumentError(
            f"The prompt has {len(prompt)} tokens, but the model's context ends at {model.context}, which leaves no "
            "room for a response. Shorten the prompt or leave it out."
        )


def _stop_token_ids(checkpoint: str, tokenizer: Any) -> frozenset[int]:
    """The checkpoint's end tokens: those of its generation settings (else of its configuration), and the tokenizer's."""
    try:
        ends = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    except OSError:  # the file is optional
        ends = AutoConfig.from_pretrained(checkpoint).get_text_config().eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)
