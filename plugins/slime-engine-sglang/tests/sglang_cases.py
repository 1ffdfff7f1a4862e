"""A run's arguments and models for the tests against real SGLang servers, and what plain transformers says about them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.contracts.engine import Generation
from slime_core.plugins import Plugins

LONG = {"max_new_tokens": 400, "temperature": 0.0, "ignore_eos": True}
PATIENCE_S = 600.0  # of a test, on a machine that does other things as well


def arguments(model: Path, folder: Path, *more: str) -> Any:
    """Those of a run with the engine `sglang`."""
    rows = folder / "rows.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_text(json.dumps({"input": "hello"}) + "\n")
    words = ["--hf-checkpoint", str(model), "--prompt-data", str(rows), "--rollout-engine", "sglang"]
    words += ["--rollout-batch-size", "1", "--num-rollout", "1", "--run-dir", str(folder), *more]
    return resolve(Namespace(Plugins()), words, env={}).args


def ask(engine: Any, *prompts: Sequence[int], name: str = "r", **params: Any) -> list[Generation]:
    """The engine's answers to several prompts at a time; the requests are called NAME-0, NAME-1 …"""

    async def all_of_them() -> list[Generation]:
        calls = (engine.generate(prompt, dict(params), f"{name}-{n}") for n, prompt in enumerate(prompts))
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)

    return asyncio.run(all_of_them())


class Reference:
    """The model in plain transformers."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, as a trainer gives them: tied ones once."""
        yield from self.module.named_parameters()

    def change(self, seed: int) -> None:
        """Other weights, of which no two layers are alike."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, tensor in self.named():
                tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))

    @torch.no_grad()
    def log_probs(self, prompt: Sequence[int], answer: Sequence[int], temperature: float = 1.0) -> torch.Tensor:
        """Of each token of the answer."""
        logits = self.module(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        every = torch.log_softmax(logits / temperature, -1)
        return every.gather(1, torch.tensor(answer)[:, None])[:, 0]

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest tokens."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.module(torch.tensor([tokens])).logits[0, -1].argmax()))
        return tokens[len(prompt) :]


def difference(reference: Reference, prompt: Sequence[int], answer: Generation, temperature: float = 1.0) -> float:
    """How far the engine's log-probs are from transformers', at most."""
    theirs = reference.log_probs(prompt, answer.tokens, temperature)
    return (theirs - torch.tensor(answer.log_probs)).abs().max().item()


def until(true: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What `true` returns when it is."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return found


def starts(log: Path) -> list[str]:
    """What a server's or the router's log says of each start: process and command."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.startswith("slime: process ")]


def running_pid(log: Path) -> int:
    """The process of the newest start."""
    return int(starts(log)[-1].split()[2].rstrip(":"))


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def even_tokens(args: Any, sample: Any) -> float:
    """A reward that varies within a group: the share of even token ids."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


def mostly_even(args: Any, samples: list[Any], **kwargs: Any) -> bool:
    """A filter that rejects some groups."""
    return sum(sample.reward for sample in samples) / len(samples) > 0.45


async def lose_both_servers(args: Any, sample: Any) -> float:
    """That reward; in the second rollout, the first server is killed, and the Ray actor that the second one belongs to.
    Both are awaited."""
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
    """A server's process, its guard's, and that of the Ray actor, which both belong to."""
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
