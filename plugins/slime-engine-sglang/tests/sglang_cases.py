"""Helpers of these tests: the options of a run, requests to an engine, and what plain transformers computes; hook
functions of runs; and processes that are started and killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import torch

from slime_core.arguments.groups import GROUPS
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.contracts.engine import Generation
from slime_core.plugins import Plugins
from slime_engine_sglang.arguments import SGLangArguments
from slime_engine_sglang.keys import Keys

if TYPE_CHECKING:
    from slime_engine_sglang.answers import Answer
    from slime_engine_sglang.engine import SGLangEngine
    from slime_engine_sglang.fleet import Fleet
    from slime_engine_sglang.images import ShownPrompt
    from slime_engine_sglang.requests import Requests

LONG = {"max_new_tokens": 400, "temperature": 0.0, "ignore_eos": True}
KEYS = Keys("key-of-the-tests")
"""What the servers of `arguments` demand, real ones too."""
SCRIPTED = str(Path(__file__).with_name("scripted_sglang.py"))
"""The program that answers like a server or the router."""
PATIENCE_S = 600.0
"""How many seconds a test waits, on a machine that does other things as well."""


def arguments(model: Path, folder: Path, *more: str) -> Any:
    """The resolved options of a run with the engine `sglang`."""
    rows = folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_text(json.dumps({"input": "hello"}) + "\n")
    words = ["--hf-checkpoint", str(model), "--prompt-data", str(rows), "--rollout-engine", "sglang"]
    words += ["--rollout-batch-size", "1", "--num-rollout", "1", "--run-dir", str(folder)]
    words += ["--sglang-api-key", str(KEYS.server), *more]
    return resolve(Namespace(Plugins()), words, env={}).args


def options(**changes: Any) -> Any:
    """The options of the core and of the engine at their defaults, but for those that are given here."""
    defaults = {
        name: field.get_default(call_default_factory=True)
        for group in (*GROUPS, SGLangArguments)
        for name, field in group.model_fields.items()
    }
    return SimpleNamespace(**{**defaults, "hf_checkpoint": "model", **changes})


def fleet_of(engine: SGLangEngine) -> Fleet:
    """The servers of an engine that has started."""
    return engine._started.result()[0]


def requests_of(engine: SGLangEngine) -> Requests:
    """The requests of an engine that has started."""
    return engine._started.result()[1]


def ask(engine: Any, *prompts: Sequence[int], name: str = "r", **params: Any) -> list[Generation]:
    """The engine's answers to several prompts at a time; the requests are called NAME-0, NAME-1 …"""

    async def all_of_them() -> list[Generation]:
        calls = (engine.generate(prompt, dict(params), f"{name}-{n}") for n, prompt in enumerate(prompts))
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)

    return asyncio.run(all_of_them())


class Reference:
    """The model in plain transformers, to compare an engine with."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights as a trainer hands them over: tied ones once."""
        yield from self.module.named_parameters()

    def change(self, seed: int) -> None:
        """Change the weights, so that no two layers are alike."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, tensor in self.named():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))

    @torch.no_grad()
    def log_probs(self, prompt: Sequence[int], answer: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """The log-prob of each token of the answer."""
        logits = self.module(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        every = torch.log_softmax(logits / temperature, -1)
        return every.gather(1, torch.tensor(answer)[:, None])[:, 0]

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The response of greedy decoding."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.module(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(prompt) :]


def answer_of(
    prompt: ShownPrompt,
    scripted: Sequence[dict[str, Any]],
    sampling: dict[str, Any],
    banned: Sequence[int] = (),
    ends: Collection[int] = (),
    context: int | None = None,
) -> tuple[Answer, list[dict[str, Any]]]:
    """What `Requests` makes of these responses of a server, one after the other, and the bodies of its requests, with the host that
    they were sent to. The text of a token is the letter of its number: 1 is "a"."""
    from slime_engine_sglang.requests import Requests

    asked: list[dict[str, Any]] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append({**json.loads(request.content), "host": request.url.host})
        return httpx.Response(200, json=scripted[len(asked) - 1])

    async def usable() -> None:
        pass

    async def generate() -> Answer:
        urls = {False: "http://server/generate", True: "http://router/generate"}
        fleet: Any = SimpleNamespace(members=[1], context=None, wait_until_usable=usable)
        fleet.generate_url = lambda key: urls[key is None]
        async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as http:
            requests = Requests(options(), fleet, http, lambda ids: "".join(chr(96 + n) for n in ids), ends, context)
            return await requests.generate(prompt, {"temperature": 1.0, **sampling}, "r", banned)

    return asyncio.run(generate()), asked


def difference(reference: Reference, prompt: Sequence[int], answer: Generation, temperature: float = 1.0) -> float:
    """The largest difference between the engine's log-probs and those of transformers."""
    theirs = reference.log_probs(prompt, answer.tokens, temperature)
    return (theirs - torch.tensor(answer.log_probs)).abs().max().item()


def until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What the condition returns when it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return found


def starts(log: Path) -> list[str]:
    """The line about each start, with process and command, in the log of a server or the router."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.startswith("slime: process ")]


def running_pid(log: Path) -> int:
    """The process id of the newest start."""
    return int(starts(log)[-1].split()[2].rstrip(":"))


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def even_tokens(args: Any, sample: Any) -> float:
    """A reward that varies within a group: the share of even token ids in the response."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


def mostly_even(args: Any, samples: list[Any], **kwargs: Any) -> bool:
    """A dynamic filter that rejects some groups."""
    return sum(sample.reward for sample in samples) / len(samples) > 0.45


async def lose_both_servers(args: Any, sample: Any) -> float:
    """The same reward. In the second rollout it kills the first server, and the Ray actor that the second one belongs
    to, and waits until both servers are back."""
    folder = Path(args.run_dir)
    logs = [folder / "sglang" / f"server-{number}.log" for number in (0, 1)]
    if sample.group_index >= args.rollout_batch_size and not (folder / "processes.json").exists():
        found = [_ancestors(running_pid(log)) for log in logs]
        (folder / "processes.json").write_text(json.dumps(found))
        os.kill(found[0]["pid"], signal.SIGKILL)
        os.kill(found[1]["actor"], signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        for log in logs:
            while len(starts(log)) < 2 or not await asyncio.to_thread(is_healthy, _url(starts(log)[-1])):
                assert time.monotonic() < deadline, "the server does not come back"
                await asyncio.sleep(0.5)
    return await even_tokens(args, sample)


def _ancestors(pid: int) -> dict[str, Any]:
    """The process ids of a server, of its guard, and of the Ray actor that both belong to, and the actor's title."""
    guard = _parent(pid)
    actor = _parent(guard)
    title = Path(f"/proc/{actor}/cmdline").read_bytes().split(b"\0")[0].decode()
    return {"pid": pid, "guard": guard, "actor": actor, "title": title}


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _url(command: str) -> str:
    words = command.split()
    host, port = (words[words.index(flag) + 1] for flag in ("--host", "--port"))
    return f"http://{host}:{port}"


def is_healthy(url: str) -> bool:
    """Whether a server answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30) as answer:
            return answer.status == 200
    except OSError:
        return False
