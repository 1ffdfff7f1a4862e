"""`SGLangEngine`: the inference engine `--rollout-engine sglang`. The run makes it, and rollout functions call it.

Requests go through the router to one of the servers. All of that happens in an event loop of the engine's own, on one
thread, so that connections outlive a rollout and servers are watched between rollouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import httpx

from slime_core.contracts.engine import Generation
from slime_core.contracts.memory import Holding, MemoryUse, ModelShape
from slime_core.data.ends import known_ends
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import first_error_only
from slime_core.remote_code import from_pretrained
from slime_core.run.claims import Claims
from slime_core.runtime.handles import wait
from slime_engine_sglang import placement, snapshot
from slime_engine_sglang.answers import require_usable, sglang_sampling_params
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.fleet import Fleet
from slime_engine_sglang.held import memory
from slime_engine_sglang.images import ShownPrompt, banned_tokens, refusal, shown_prompt
from slime_engine_sglang.keys import Keys
from slime_engine_sglang.options import SERVER, command_line
from slime_engine_sglang.requests import Requests
from slime_engine_sglang.router import Router
from slime_engine_sglang.server import Server
from slime_engine_sglang.weights import SGLangWeightSender

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments
    from slime_core.contracts.engine import (
        HasServers,
        InferenceEngine,
        Offloads,
        SendsWeights,
        TakesImages,
        TakesMetrics,
    )
    from slime_engine_sglang.arguments import SGLangRunArguments
    from slime_engine_sglang.remote import RemoteServer

logger = logging.getLogger(__name__)

T = TypeVar("T")


class SGLangEngine:
    """Generates on SGLang servers.

    They are started when the engine is made and awaited when it is first used: on this machine or, in a run on a Ray
    cluster, in the slots that the run gives the engine. They end when the engine is closed, and when this process ends,
    in whatever way.

    Args:
        args: the options of the run.
        servers: the objects that start the servers. By default the run has one server for each
            `--rollout-num-gpus-per-engine` of `--rollout-num-gpus`.

    Raises:
        ArgumentError: the options do not fit each other or this machine, or a program is not installed.
        CheckpointError: another run keeps its weights in `--update-weight-disk-dir`.
    """

    needs_ray: ClassVar[bool] = False

    @staticmethod
    def devices_per_server(args: RunArguments) -> int:
        """Return how many devices one server has; 0 if the servers are external and need none here."""
        own = cast("SGLangRunArguments", args)
        return 0 if own.rollout_external_engine_addrs else own.rollout_num_gpus_per_engine

    @staticmethod
    def memory(args: SGLangRunArguments, model: ModelShape, use: MemoryUse) -> Holding:
        """What a server will hold on each of its GPUs."""
        return memory(args, model, use)

    def __init__(self, args: SGLangRunArguments, servers: Sequence[Server | RemoteServer] | None = None) -> None:
        from transformers import AutoConfig

        self._args = args
        self._logs = Path(args.run_dir or ".") / "sglang"
        shared = Path(args.update_weight_disk_dir) if args.update_weight_disk_dir else None
        self._weights = shared / snapshot.OWN if shared else Path(args.run_dir or ".") / "weights"
        if servers is None:
            placement.require_installed(args)
            servers = placement.servers_of_run(args, self._logs)
        placement.require_gpus(args, servers)
        router = Router(args, self._logs / "router.log")
        command_line(SERVER, vars(args))  # which checks SGLang's own options
        config = from_pretrained(AutoConfig, args.hf_checkpoint).get_text_config()
        given = getattr(args, "sglang_context_length", None)  # exists if somebody set it
        self._context: int | None = int(given) if given else getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._tokenizer = load_tokenizer(args.hf_checkpoint)
        self._processor = processor_of(args)
        self._banned = banned_tokens(self._processor)
        self._sender: SGLangWeightSender | None = None
        self._fleet: Fleet | None = None
        self._closed = False
        self._claims = Claims()
        claimed = {Path(folder).resolve() for folder in (args.run_dir, args.save) if folder}  # by the run itself
        if shared and shared.resolve() not in claimed:
            self._claims.claim("--update-weight-disk-dir", shared)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-engine", daemon=True)
        self._thread.start()
        self._started = self._submit(self._start(servers, router))

    @staticmethod
    def image_refusal(args: RunArguments) -> str:
        """Why the servers of a run are shown no images, as half a sentence; "" where they are."""
        return refusal(args)

    async def generate(
        self,
        input_ids: Sequence[int],
        sampling_params: dict[str, Any],
        request_id: str | None = None,
        images: Sequence[bytes] = (),
    ) -> Generation:
        """Generate one response, as `slime_core.contracts.engine.InferenceEngine.generate` says.

        The log-probs are those of the softmax of logits / temperature over the whole vocabulary, as the contract wants,
        but for the first `min_new_tokens` tokens: there SGLang leaves stop tokens out of the softmax. Seeds have an
        effect only with `--sglang-enable-deterministic-inference`.

        A request whose server or router dies is sent again. If a server ends one of its own accord, it goes on from
        there.

        Raises:
            ArgumentError: the prompt, an image or a sampling parameter cannot be used.
            SGLangError: SGLang makes other tokens of images than those of the prompt, no server answers, or the engine was closed.
        """
        ids = [int(token) for token in input_ids]
        require_usable(ids, self._context, self._vocabulary)
        prompt = ShownPrompt(ids, ids)
        if self._processor is not None:
            prompt = await asyncio.to_thread(shown_prompt, ids, images, self._processor)
        sampling = sglang_sampling_params(sampling_params)
        try:
            _, requests = await asyncio.shield(asyncio.wrap_future(self._started))
            answer = await asyncio.wrap_future(
                self._submit(requests.generate(prompt, sampling, request_id, self._banned))
            )
        except (asyncio.CancelledError, CancelledError):
            if self._closed:
                raise SGLangError("The engine 'sglang' was closed.") from None
            raise
        text = self._decode(answer.tokens, skip_special=True)
        return Generation(answer.tokens, answer.log_probs, answer.finish_reason, answer.versions, text)

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests, or all if None, and return when they have ended."""
        _, requests = await asyncio.shield(asyncio.wrap_future(self._started))
        names = None if request_ids is None else set(request_ids)
        await asyncio.wrap_future(self._submit(requests.abort(names)))

    def weight_sender(self) -> SGLangWeightSender:
        """Return what hands the weights to the servers from the training process. Waits for the servers to start."""
        args = self._args
        fleet, _ = self._wait_for_start()
        return SGLangWeightSender(
            urls=fleet.urls,
            checkpoint=args.hf_checkpoint,
            folder=self._weights.resolve(),
            transport=args.update_weight_transport,
            ranks=fleet.ranks,
            on_gpu=fleet.on_gpu,
            shares_gpus=args.colocate,
            piece_bytes=args.update_weight_buffer_size,
            pause_mode=args.pause_generation_mode,
            tolerant=args.use_fault_tolerance,
            checks_equal=args.check_weight_update_equal,
            keys=Keys.of(args),
        )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand all weights, given as (Hugging Face name, tensor) pairs, to the servers from this process. Returns when
        they are in use."""
        self._sender = self._sender or self.weight_sender()
        self._sender.send(iter(weights), version)

    def offload(self) -> None:
        """Give back the memory of the servers' GPUs until `onload`. Requests that are running end as by `abort`."""
        fleet, requests = self._wait_for_start()
        self._submit(fleet.give_back_memory(lambda: requests.abort(None))).result()

    def onload(self) -> None:
        """Take the memory of the servers' GPUs again. The weights are as they were, and can be replaced."""
        fleet, _ = self._wait_for_start()
        self._submit(fleet.take_memory()).result()

    def take_metrics(self) -> dict[str, float]:
        """Return what happened since the last call: the share of prompt tokens that servers had computed before,
        requests that were sent again, servers and routers that were started again."""
        counts: Counter[str] = Counter()
        if self._started.done() and self._started.exception() is None:
            fleet, requests = self._started.result()
            counts, requests.counts = requests.counts, Counter()
            counts.update(fleet.counts)
            fleet.counts.clear()
        found = {
            "engine_request_retries": float(counts["retries"]),
            "engine_server_restarts": float(counts["restarts"]),
            "engine_router_restarts": float(counts["router_restarts"]),
        }
        if counts["prompt_tokens"]:
            found["prefix_cache_hit_rate"] = counts["cached_tokens"] / counts["prompt_tokens"]
        return found

    def close(self) -> None:
        """End the servers and the router, unless they are external. Requests that are not finished fail."""
        if self._closed:
            return
        self._closed = True
        if self._sender is not None:
            self._sender.close()
        ending = self._submit(self._end())
        with contextlib.suppress(CancelledError):
            ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._claims.give_back()

    async def _start(self, servers: Sequence[Server | RemoteServer], router: Router) -> tuple[Fleet, Requests]:
        """Start the servers and the router. Runs in the engine's event loop."""
        timeout = httpx.Timeout(60.0, read=self._args.sglang_router_request_timeout_secs + 60.0, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
        keys = Keys.of(self._args, router.url)
        self._http = httpx.AsyncClient(timeout=timeout, limits=limits, auth=keys)
        self._fleet = fleet = Fleet(self._args, servers, router, self._weights, self._http)
        with first_error_only():
            await fleet.start()
        if self._context and fleet.context and fleet.context < self._context:
            logger.warning(
                "The SGLang servers take prompts and responses of up to %d tokens together, the model %d: longer responses are cut off "
                "there, and prompts that leave no room get none. Servers say at their start what bounds them (--sglang-context-length, "
                "or --sglang-mem-fraction-static, for keys and values).",
                *(fleet.context, self._context),
            )
        ends = known_ends(self._args.hf_checkpoint, self._tokenizer)
        return fleet, Requests(self._args, fleet, self._http, self._decode, ends, self._context)

    async def _end(self) -> None:
        """End all tasks of the engine's event loop, the servers and the router. Runs in that event loop."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._fleet is not None:
            await self._fleet.close()
            await self._http.aclose()

    def _decode(self, tokens: list[int], skip_special: bool = False) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip_special))

    def _wait_for_start(self) -> tuple[Fleet, Requests]:
        return wait(self._started, "the SGLang servers to start")

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the engine's event loop."""
        if self._loop.is_closed():
            work.close()
            raise SGLangError("The engine 'sglang' was closed.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


if TYPE_CHECKING:  # type checkers compare the class with the contract and the abilities that it has
    _engine: type[InferenceEngine] = SGLangEngine
    _sends_weights: type[SendsWeights] = SGLangEngine
    _takes_images: type[TakesImages] = SGLangEngine
    _takes_metrics: type[TakesMetrics] = SGLangEngine
    _offloads: type[Offloads] = SGLangEngine
    _has_servers: type[HasServers] = SGLangEngine
