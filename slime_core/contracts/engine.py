"""Inference engines: what generates tokens, and the further abilities that one may have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from slime_core.contracts.kind import Kind
from slime_core.contracts.memory import EstimatesMemory

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments

GREEDY_BELOW = 1e-6
"""At a temperature below this the likeliest token is taken, as in SGLang, and log-probs are those at temperature 1."""


@dataclass(frozen=True)
class Generation:
    """One response.

    Attributes:
        tokens: R new token ids, the stop token included if one ended the response.
        log_probs: R floats, log-prob of each token in the softmax of logits / temperature over the whole vocabulary
            (temperature 1 for greedy decoding). top_p and top_k restrict the choice and do not renormalise, so a trainer
            computes the same numbers.
        finish_reason: "stop" (a stop token or string), "length" (the limit) or "abort" (ended by `abort`; what there is).
        weight_versions: R entries, which weights produced each token.
        text: the tokens decoded, special tokens left out.
    """

    tokens: list[int]
    log_probs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    weight_versions: list[int] = field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class ScoredToken:
    """A token, and how likely the model found it at its place.

    Attributes:
        log_prob: as in `Generation`.
        likeliest: (token, log-prob) of the likeliest tokens at this place, the likeliest first; as many as were asked for.
    """

    token: int
    log_prob: float
    likeliest: tuple[tuple[int, float], ...] = ()


class Generates(Protocol):
    """What a generate function may ask of the engine that it is given."""

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None = None,
        images: Sequence[bytes] | None = None,
    ) -> Generation:
        """Generate one response, as `InferenceEngine.generate` does.

        Args:
            images: the encoded images that `input_ids` show, in their order; see `TakesImages`. None: those of the sample that is
                generated, where there are image tokens among `input_ids`, else none.
        """
        raise NotImplementedError

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End requests, as `InferenceEngine.abort` does."""
        raise NotImplementedError


class InferenceEngine(Protocol):
    """Generates tokens with the newest weights it was given. Made once per run as `InferenceEngine(args)`, in the process
    of the rollout worker. One that names the parameter `quantised` of `__init__` is given `--hf-checkpoint` as a
    `slime_core.contracts.checkpoint_format.QuantisedCheckpoint`, or None where that is not quantised.
    Its further abilities are `SendsWeights`, `Holds`, `Streams`, `Scores`, `TakesImages`, `TakesMetrics`, `Offloads`, `GivesUpWeights`,
    `slime_core.contracts.memory.EstimatesMemory` and, for servers on a cluster, `HasServers`."""

    def __init__(self, args: RunArguments) -> None: ...

    async def generate(
        self, input_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str | None = None
    ) -> Generation:
        """Generate one response.

        Args:
            input_ids: the prompt, and after it what an aborted call has generated already, if it is to go on.
            sampling_params: `max_new_tokens`, `min_new_tokens`, `temperature` (0 is greedy, as is less than 1e-6), `top_p`,
                `top_k` (-1: all), `seed`, `stop_token_ids` (besides the checkpoint's end tokens), `stop` (strings), `ignore_eos` (no token
                ends the response); SGLang's names and meaning, but that no stop string ends a response before `min_new_tokens` either.
            request_id: names the request for `abort`.
        """
        raise NotImplementedError

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests (None: all) now: their `generate` calls return what there is with the finish reason
        "abort", possibly no token at all. Requests that are unknown or finished are no error. Returns when no aborted
        request is running any more."""
        raise NotImplementedError

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Take over all weights, given as (Hugging Face name, tensor) pairs. Returns when they are in use. An engine
        that is asked to generate before any were handed over loads those of `args.hf_checkpoint`, as version 0.

        The weights arrive while they are read, in buckets of at most `--update-weight-buffer-size` bytes, so an engine that
        copies each of them and keeps none needs no memory for a second model. Where `--hf-checkpoint` is quantised they are what
        that checkpoint would hold: names, dtypes and numbers of its format, scales right behind their weights. Called on a thread of its own; a trainer that
        fails half-way makes the iterator raise.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give back threads, processes and memory. Requests that are not finished fail."""
        raise NotImplementedError


class WeightSender(Protocol):
    """How an engine takes the weights from the training process itself. Runs in the training ranks.

    It is pickled on its way there. `send` is called in the first rank, in place of the engine's `update_weights`.
    """

    def send(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Hand all weights to the engine, as (Hugging Face name, full tensor). Must read the iterator to its end, as the
        other ranks take part in gathering what it gives. Returns when the weights are in use."""

    def close(self) -> None:
        """Give back what the sender holds, as the run is over. Called in every rank."""


@runtime_checkable
class SendsWeights(Protocol):
    """An engine that knows a shorter way for weights than through the rollout worker's process: a collective, shared
    memory, a file."""

    def weight_sender(self) -> WeightSender | None:
        """What hands the weights over from the first training rank; None: they come through `update_weights` all the same.
        Called once, in the rollout worker."""
        raise NotImplementedError


@runtime_checkable
class Holds(Protocol):
    """An engine that can pause between two steps."""

    def hold(self) -> AbstractContextManager[None]:
        """A context in which no step is made, so that what is decided meanwhile does not depend on the clock."""
        raise NotImplementedError


@runtime_checkable
class Streams(Protocol):
    """An engine that hands out every token as soon as it is chosen."""

    async def stream(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        on_token: Callable[[ScoredToken], None],
        likeliest: int = 0,
        request_id: str | None = None,
    ) -> Generation:
        """Generate one response, as `InferenceEngine.generate` does. Cancelling the call ends the request.

        Args:
            on_token: is called in the caller's event loop with every token of the response, in their order, before this returns.
            likeliest: how many tokens `ScoredToken.likeliest` lists.
        """
        raise NotImplementedError


@runtime_checkable
class Scores(Protocol):
    """An engine that tells how likely given tokens are."""

    async def score(self, input_ids: Sequence[int], temperature: float = 1.0, likeliest: int = 0) -> list[ScoredToken]:
        """The tokens with their log-probs given those before them; of the first one, which has none before it, nothing is said.

        Args:
            input_ids: N tokens.
            temperature: divides the logits, above 0.
            likeliest: how many tokens `ScoredToken.likeliest` lists.

        Returns:
            N - 1 entries.
        """
        raise NotImplementedError


@runtime_checkable
class TakesImages(Protocol):
    """An engine that can be shown images.

    Its `generate`, and `stream` and `score` where it has them, take one parameter more, `images: Sequence[bytes] = ()`: the encoded
    images (such as PNG files) that `input_ids` show, in the order of their places. It is passed by its name, and only where there
    are images. The ids are those that the model reads: what stands for an image is expanded, so that each has one run of as many
    image tokens as the model makes features of it (`slime_core.data.image_processor.image_places` finds the runs, by what
    `load_processor` says of the checkpoint). The same images are handed over again when an aborted response goes on.

    An engine compares the numbers of tokens and features, with which it fails rather than answer blind; refuses ids with image
    tokens and no images; and chooses no token that stands for images or videos (`Processor.is_special`).
    """

    @staticmethod
    def image_refusal(args: RunArguments) -> str:
        """Why it shows no images to the model of `args.hf_checkpoint`, as half a sentence ("it …"); "" where it does. Asked before
        the run starts."""
        raise NotImplementedError


@runtime_checkable
class TakesMetrics(Protocol):
    """An engine that counts what it does."""

    def take_metrics(self) -> dict[str, float]:
        """Numbers about what happened since the last time; they are logged with the rollout."""
        raise NotImplementedError


@runtime_checkable
class Offloads(Protocol):
    """An engine or train backend that can give back its device's memory (`--offload`)."""

    def offload(self) -> None:
        """Give back the memory until `onload`."""
        raise NotImplementedError

    def onload(self) -> None:
        """Take the memory again, with everything in it as it was."""
        raise NotImplementedError


@runtime_checkable
class GivesUpWeights(Protocol):
    """An engine that need not hold weights that are about to be replaced."""

    def give_up_weights(self) -> None:
        """Free the memory of the weights, if no request needs them. The trainer trains next, and `update_weights` is called before
        the next request; one that comes earlier fails."""
        raise NotImplementedError


class HasServers(Protocol):
    """An engine class that starts servers, and so needs places for them on a cluster.

    With `devices_per_server` alone it starts its servers itself in a run of one process, and through Ray in a cluster.

    Attributes:
        needs_ray: it runs nowhere but on Ray; without `devices_per_server` a server has one device.
    """

    needs_ray: ClassVar[bool]

    @staticmethod
    def devices_per_server(args: RunArguments) -> int:
        """How many devices one server takes, all on one machine; 0 if the servers run elsewhere and need none here."""
        raise NotImplementedError


KINDS = (
    Kind(
        "engine",
        "slime_engines",
        InferenceEngine,
        ("--rollout-engine",),
        extras=("quantised",),
        abilities=(
            *(SendsWeights, Holds, Streams, Scores, TakesImages, TakesMetrics),
            *(Offloads, GivesUpWeights, HasServers, EstimatesMemory),
        ),
    ),
)
