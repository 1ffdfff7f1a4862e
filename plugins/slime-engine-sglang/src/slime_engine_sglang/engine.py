"""`SGLangEngine`: the inference engine `--rollout-engine sglang`. Made by the run, called by rollout functions.

Requests go through the router to one of the servers. All of that happens in an event loop of the engine's own, on one
thread, so that connections outlive a rollout and servers are watched between rollouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from slime_core.contracts.engine import Generation
from slime_core.errors import ArgumentError, first_error_only
from slime_core.runtime.handles import wait
from slime_engine_sglang import placement
from slime_engine_sglang.answers import (
    Answer,
    joined,
    read_answer,
    refusal,
    remaining,
    request_body,
    room_for,
    sampling_words,
)
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.fleet import Fleet
from slime_engine_sglang.options import SERVER, words
from slime_engine_sglang.router import Router
from slime_engine_sglang.server import Server
from slime_engine_sglang.weights import WeightSender

if TYPE_CHECKING:
    from torch import Tensor

    from slime_engine_sglang.remote import RemoteServer

T = TypeVar("T")

ATTEMPTS = 8
"""How often a request is sent before the engine gives up."""
_ABORT_AGAIN_S = 0.25  # an abort may overtake its request on the way through the router
_NO_ANSWER = Answer([], [], [], "abort")


@dataclass(eq=False)
class _Request:
    """A call of `generate`.

    Attributes:
        name: what the caller calls it.
        rid: what the server calls it; every attempt has another one.
    """

    name: str | None
    rid: str | None = None
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class SGLangEngine:
    """Generates on SGLang servers.

    They are started when the engine is made and awaited when it is first used: on this machine or, in a run on a Ray
    cluster, in the slots that it gives the engine. Closed with `close`; they also end when this process does, in whatever
    way.

    Args:
        args: all options of the run.
        servers: what starts the servers; by default one for each `--rollout-num-gpus-per-engine` of `--rollout-num-gpus`.
    """

    @staticmethod
    def devices_per_server(args: Any) -> int:
        """See `slime_core.runtime.layout`."""
        return 0 if args.rollout_external_engine_addrs else args.rollout_num_gpus_per_engine

    def __init__(self, args: Any, servers: Sequence[Server | RemoteServer] | None = None) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self._args = args
        self._logs = Path(args.run_dir or ".") / "sglang"
        self._weights = Path(args.update_weight_disk_dir or Path(args.run_dir or ".") / "weights")
        if servers is None:
            placement.require_installed(args)
            servers = placement.servers_of_run(args, self._logs)
        placement.require_gpus(args, servers)
        router = Router(args, self._logs / "router.log")
        words(SERVER, vars(args))
        config = AutoConfig.from_pretrained(args.hf_checkpoint).get_text_config()
        given = getattr(args, "sglang_context_length", None)
        self._context: int | None = int(given) if given else getattr(config, "max_position_embeddings", None)
        self._vocabulary: int = config.vocab_size
        self._tokenizer = AutoTokenizer.from_pretrained(args.hf_checkpoint)
        self._sender: WeightSender | None = None
        self._counts: Counter[str] = Counter()
        self._running: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._fleet: Fleet | None = None
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-engine", daemon=True)
        self._thread.start()
        self._started = self._submit(self._start(servers, router))

    async def generate(
        self, input_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str | None = None
    ) -> Generation:
        """One response; see `slime_core.contracts.engine.InferenceEngine.generate`.

        The log-probs are those of the softmax of logits / temperature over the whole vocabulary, as the contract wants,
        but for the first `min_new_tokens` tokens: there SGLang leaves stop tokens out of the softmax. Seeds have an effect
        only with `--sglang-enable-deterministic-inference`.

        A request whose server or router dies is sent again. If a server ends one of its own accord, it goes on from there.

        Raises:
            ArgumentError: the prompt or a sampling parameter cannot be used.
            SGLangError: no server answers, or the engine was closed.
        """
        prompt = [int(token) for token in input_ids]
        room = room_for(prompt, self._context, self._vocabulary)
        sampling = sampling_words(sampling_params, room)
        try:
            await asyncio.shield(asyncio.wrap_future(self._started))
            return await asyncio.wrap_future(self._submit(self._generate(prompt, sampling, request_id)))
        except (asyncio.CancelledError, CancelledError):
            if self._closed:
                raise SGLangError("The engine 'sglang' was closed.") from None
            raise

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests, or all; see `slime_core.contracts.engine.InferenceEngine.abort`."""
        await asyncio.shield(asyncio.wrap_future(self._started))
        await asyncio.wrap_future(self._submit(self._abort(None if request_ids is None else set(request_ids))))

    def weight_sender(self) -> WeightSender:
        """What hands the weights to the servers from the training process. Waits for the servers to start."""
        args = self._args
        fleet = wait(self._started, "the SGLang servers to start")
        return WeightSender(
            urls=fleet.urls,
            checkpoint=args.hf_checkpoint,
            folder=self._weights.resolve(),
            transport=args.update_weight_transport,
            ranks=args.rollout_num_gpus_per_engine,
            on_gpu=fleet.on_gpu,
            shares_gpus=args.colocate,
            piece_bytes=args.update_weight_buffer_size,
            pause_mode=args.pause_generation_mode,
            tolerant=args.use_fault_tolerance,
            compare_servers=args.check_weight_update_equal,
        )

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Hand weights over from this process; see `slime_core.contracts.engine.InferenceEngine.update_weights`."""
        self._sender = self._sender or self.weight_sender()
        self._sender.send(iter(weights), version)

    def offload(self) -> None:
        """Give back the memory of the servers' GPUs until `onload`. Requests that are running end as by `abort`."""
        self._take_turn(lambda fleet: fleet.give_back_memory(lambda: self._abort(None)))

    def onload(self) -> None:
        """The inverse of `offload`: the weights are as they were, and can be replaced."""
        self._take_turn(Fleet.take_memory)

    def take_metrics(self) -> dict[str, float]:
        """What happened since the last time: the share of prompt tokens that servers had computed before, requests that
        were sent again, servers and routers that were started again."""
        counts, self._counts = self._counts, Counter()
        if self._started.done() and self._started.exception() is None:
            fleet_counts = self._started.result().counts
            counts.update(fleet_counts)
            fleet_counts.clear()
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

    # ------------------------------------------------------------------------------------ inside the engine's event loop

    async def _start(self, servers: Sequence[Server | RemoteServer], router: Router) -> Fleet:
        timeout = httpx.Timeout(60.0, read=self._args.sglang_router_request_timeout_secs + 60.0, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
        self._http = httpx.AsyncClient(timeout=timeout, limits=limits)
        self._fleet = fleet = Fleet(self._args, servers, router, self._weights, self._http)
        self._places = asyncio.Semaphore(self._args.sglang_server_concurrency * len(fleet.members))
        with first_error_only():
            await fleet.start()
        return fleet

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._fleet is not None:
            await self._fleet.close()
            await self._http.aclose()

    async def _generate(self, prompt: list[int], sampling: dict[str, Any], name: str | None) -> Generation:
        request = _Request(name)
        number = next(self._numbers)
        self._running[number] = request
        whole = _NO_ANSWER
        try:
            for _ in range(ATTEMPTS):
                part = await self._ask(request, prompt + whole.tokens, remaining(sampling, len(whole.tokens)))
                whole = joined(whole, part)
                if part.finish_reason != "abort" or request.aborted.is_set():
                    return self._generation(whole)
                self._counts["retries"] += 1
                await asyncio.sleep(_ABORT_AGAIN_S)
            raise SGLangError(f"The servers ended a request {ATTEMPTS} times that nobody had aborted.")
        finally:
            del self._running[number]
            request.done.set()

    async def _ask(self, request: _Request, prompt: list[int], sampling: dict[str, Any]) -> Answer:
        """One answer to a request, in as many attempts as it takes; none if it is aborted before."""
        if sampling["max_new_tokens"] < 1:
            return replace(_NO_ANSWER, finish_reason="length")
        if not await _unless(request.aborted, self._places.acquire()):
            return _NO_ANSWER
        try:
            reason = ""
            fleet = self._started.result()
            for attempt in range(ATTEMPTS):
                if attempt:
                    self._counts["retries"] += 1
                    await _unless(request.aborted, asyncio.sleep(min(5.0, 0.25 * 2**attempt)))
                if not await _unless(request.aborted, fleet.usable()):
                    return _NO_ANSWER
                # SGLang aborts all requests whose names begin with the given one, so no name may begin with another.
                request.rid = uuid.uuid4().hex
                try:
                    answer = await self._http.post(fleet.generate_url, json=request_body(prompt, sampling, request.rid))
                except httpx.HTTPError as error:
                    reason = repr(error)
                    continue
                if answer.status_code == 200:
                    found = read_answer(answer.json())
                    self._counts["prompt_tokens"] += found.prompt_tokens
                    self._counts["cached_tokens"] += found.cached_tokens
                    return found
                reason = f"{answer.status_code}: {refusal(answer.text)}"
                if answer.status_code in (400, 422):
                    raise ArgumentError(f"SGLang refuses a request ({reason}).")
            raise SGLangError(f"A request got no answer in {ATTEMPTS} attempts. The last one: {reason}")
        finally:
            self._places.release()

    async def _abort(self, names: set[str] | None) -> None:
        fleet = self._started.result()
        targets = [r for r in self._running.values() if names is None or r.name in names]
        for request in targets:
            request.aborted.set()
        while left := [request for request in targets if not request.done.is_set()]:
            shared = bool(self._args.rollout_external_engine_addrs)
            everything = not shared and len(left) == len(self._running)
            bodies = [{"abort_all": True}] if everything else [{"rid": r.rid} for r in left if r.rid]
            await asyncio.gather(*(self._tell(url, body) for url in fleet.answering for body in bodies))
            await asyncio.wait([asyncio.ensure_future(r.done.wait()) for r in left], timeout=_ABORT_AGAIN_S)

    async def _tell(self, url: str, body: dict[str, Any]) -> None:
        with contextlib.suppress(httpx.HTTPError):  # a server that is gone has ended its requests
            await self._http.post(f"{url}/abort_request", json=body, timeout=10)

    def _generation(self, answer: Answer) -> Generation:
        text = self._tokenizer.decode(answer.tokens, skip_special_tokens=True)
        return Generation(answer.tokens, answer.log_probs, answer.finish_reason, answer.versions, text)

    # ---------------------------------------------------------------------------------------------------------------

    def _take_turn(self, turn: Callable[[Fleet], Coroutine[Any, Any, None]]) -> None:
        self._submit(turn(wait(self._started, "the SGLang servers to start"))).result()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop.is_closed():
            work.close()
            raise SGLangError("The engine 'sglang' was closed.")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _unless(aborted: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do the work, or leave it when the request is aborted before it is done."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(aborted.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, waiting):
            task.cancel()
