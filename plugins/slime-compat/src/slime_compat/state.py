"""`GenerateState` of `slime.rollout.sglang_rollout`: what generate functions share, made from the arguments of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from slime_compat.elsewhere import not_here
from slime_core.data.tokenizer import load_tokenizer
from slime_core.rollout.surroundings import current

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_READ = (
    *(
        "hf_checkpoint",
        "rollout_temperature",
        "rollout_top_p",
        "rollout_top_k",
        "rollout_max_response_len",
        "rollout_stop",
    ),
    *("rollout_stop_token_ids", "rollout_skip_special_tokens", "sglang_server_concurrency", "rollout_num_engines"),
)


class GenerateState:
    """What generate functions share: tokenizer, sampling parameters, and whether sampling was stopped.

    As in slime, it is made as `GenerateState(args)` wherever it is needed, and that gives the same object again while the options
    that it reads are the same.

    Attributes:
        args: what it was made with.
        tokenizer: of `--hf-checkpoint`.
        sampling_params: those of rollouts, under SGLang's names; a generate function is given its own.
    """

    _made: ClassVar[dict[tuple[Any, ...], GenerateState]] = {}
    _semaphores: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]

    args: Any
    tokenizer: PreTrainedTokenizerBase
    sampling_params: dict[str, Any]

    def __new__(cls, args: Any) -> GenerateState:
        key = (cls, *(_hashable(getattr(args, name, None)) for name in _READ))
        if key not in cls._made:
            state = super().__new__(cls)
            state.args = args
            state.tokenizer = load_tokenizer(args.hf_checkpoint)
            state.sampling_params = sampling_params(args)
            state._semaphores = WeakKeyDictionary()
            cls._made[key] = state
        return cls._made[key]

    @property
    def aborted(self) -> bool:
        """Whether sampling was stopped: requests are answered with "abort" then, and nothing more shall be begun."""
        surroundings = current()
        return surroundings is not None and surroundings.stopped()

    @property
    def semaphore(self) -> asyncio.Semaphore:
        """As many turns as requests may run at the same time; one semaphore for each event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._semaphores:
            turns = self.args.sglang_server_concurrency * (self.args.rollout_num_engines or 1)
            self._semaphores[loop] = asyncio.Semaphore(turns)
        return self._semaphores[loop]

    @property
    def processor(self) -> Any:
        """What prepares images and sound for the model; None for a model that reads text alone. Raises as `load_processor`."""
        from slime_compat.tokenizers import load_processor

        return load_processor(self.args.hf_checkpoint)

    @contextmanager
    def dp_rank_context(self) -> Iterator[int]:
        """A context that gives the data-parallel rank of a server that shall answer: the engine chooses, so it is 0."""
        yield 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(not_here(f"slime.rollout.sglang_rollout.GenerateState.{name}"))


def sampling_params(args: Any) -> dict[str, Any]:
    """Return the sampling parameters of rollouts as slime names them."""
    return {
        "temperature": args.rollout_temperature,
        "top_p": args.rollout_top_p,
        "top_k": args.rollout_top_k,
        "max_new_tokens": args.rollout_max_response_len,
        "stop": args.rollout_stop,
        "stop_token_ids": args.rollout_stop_token_ids,
        "skip_special_tokens": args.rollout_skip_special_tokens,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
