"""A program that answers like an SGLang server, or like the router, but computes nothing: real servers give back memory
only on a GPU.

Like a real server, it dies of a request while parts of its memory are away, of giving back memory that it does not
have, and of taking memory that it has. It appends what it is asked to a file.

    python scripted_sglang.py server PORT FILE VERSION [OPTION …]       OPTION: one of `server.MEMORY_OPTIONS`, --tp-size=N, --pp-size=N
    python scripted_sglang.py router PORT
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Answering(BaseHTTPRequestHandler):
    """Passes requests to `answer(method, path, body)`, which returns the status and the data of the response."""

    protocol_version = "HTTP/1.1"
    answer: Any

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, data = type(self).answer(self.command, self.path, json.loads(body or b"null"))
        said = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_DELETE = _handle

    def log_message(self, *args: Any) -> None:
        """Print nothing: the file has the requests."""


class Server:
    """The state of a server.

    The files `refuse` and `hang` beside its log make it refuse to give back memory, or wait with that until the file is
    gone; `lost` has the name of a tensor that does not arrive in the body of a request; one that is called like its log, with `.dies` behind it, makes it die when it is to take part in a broadcast or to tell
    checksums. What has to do with weights it does one after the other.
    """

    def __init__(self, log: str, version: str, options: list[str]) -> None:
        self.log, self.version, self.options = Path(log), version, options
        self.away: set[str] = set()
        self.paused = False
        self.weights: dict[str, Any] = {}
        self.is_updated = False
        self.groups: list[Any] = []
        self.scheduler = threading.Lock()

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the data of the response to a request."""
        if path not in ("/model_info", "/server_info"):
            with self.log.open("a") as file:
                file.write(json.dumps([path, body]) + "\n")
        work = getattr(self, path.strip("/"), None)
        with self.scheduler if "weight" in path else nullcontext():
            return work(body) if work is not None else (404, None)

    def _require(self, condition: bool) -> None:
        """Die unless the condition is true."""
        if not condition:
            os._exit(1)

    def health(self, body: Any) -> tuple[int, Any]:
        self._require(self.paused or not self.away)
        return (503 if self.paused else 200), None

    def model_info(self, body: Any) -> tuple[int, Any]:
        return 200, {"weight_version": self.version}

    def server_info(self, body: Any) -> tuple[int, Any]:
        return 200, {**self._started_with(), "max_req_input_len": 94}

    def _started_with(self) -> dict[str, Any]:
        words = [option.removeprefix("--").replace("-", "_").partition("=") for option in self.options]
        return {name: int(number) if number else True for name, _, number in words}

    def generate(self, body: Any) -> tuple[int, Any]:
        self._require(not self.away and not self.paused)
        meta = {"finish_reason": {"type": "length"}, "output_token_logprobs": [[-1.0, 7, None]]}
        return 200, {"output_ids": [7], "meta_info": {**meta, "weight_version": self.version}}

    def pause_generation(self, body: Any) -> tuple[int, Any]:
        self.paused = True
        return 200, {}

    def continue_generation(self, body: Any) -> tuple[int, Any]:
        self.paused = False
        return 200, {}

    def flush_cache(self, body: Any) -> tuple[int, Any]:
        return 200, {}

    def get_weights_by_name(self, body: Any) -> tuple[int, Any]:
        if body["name"] not in self.weights or body["name"].startswith("fused."):
            return 400, {"message": "not this model's"}
        return 200, self.weights[body["name"]][: body["truncate_size"]].tolist()

    def update_weights_from_disk(self, body: Any) -> tuple[int, Any]:
        from safetensors.torch import load_file

        self._require("weights" not in self.away)
        for file in Path(body["model_path"]).glob("*.safetensors"):
            self.weights |= load_file(file)
        self.version = body["weight_version"]
        return 200, {"success": True}

    def begin_weight_update(self, body: Any) -> tuple[int, Any]:
        if self.is_updated:
            return 400, {"success": False, "message": "a weight-update session is already open"}
        self.is_updated = True
        return 200, {"success": True}

    def end_weight_update(self, body: Any) -> tuple[int, Any]:
        if not self.is_updated:
            return 400, {"success": False, "message": "no weight-update session is open"}
        self.is_updated = False
        return 200, {"success": True}

    def init_weights_update_group(self, body: Any) -> tuple[int, Any]:
        ranks = range(self._started_with().get("tp_size", 1))
        with ThreadPoolExecutor(len(ranks)) as threads:
            self.groups = list(threads.map(lambda rank: self._joined(body, body["rank_offset"] + rank), ranks))
        return 200, {"success": True}

    def _joined(self, body: Any, rank: int) -> Any:
        from datetime import timedelta

        from torch.distributed import PrefixStore, TCPStore, distributed_c10d

        # One process has one group of a name. In SGLang every rank is a process.
        distributed_c10d._register_process_group = lambda *_: None
        place = body["master_address"], body["master_port"], body["world_size"]
        store = PrefixStore(body["group_name"], TCPStore(*place, is_master=False))
        backend = distributed_c10d.Backend(body["backend"])
        group, _ = distributed_c10d._new_process_group_helper(
            *(body["world_size"], rank, [], backend, store),
            group_name=body["group_name"],
            timeout=timedelta(minutes=4),
        )
        distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(body["world_size"])}
        return group

    def update_weights_from_distributed(self, body: Any) -> tuple[int, Any]:
        import torch

        self._require(not Path(f"{self.log}.dies").exists())
        if not self.is_updated:
            return 400, {"success": False, "message": "must run between begin_weight_update() and end_weight_update()"}
        for name, dtype, shape in zip(body["names"], body["dtypes"], body["shapes"], strict=True):
            arriving = [torch.empty(shape, dtype=getattr(torch, dtype)) for _ in self.groups]
            works = [
                torch.distributed.broadcast(tensor, src=0, group=group, async_op=True)
                for tensor, group in zip(arriving, self.groups, strict=True)
            ]
            for work in works:
                work.wait()
            self.weights[name] = arriving[-1]
        self.version = body["weight_version"]
        return 200, {"success": True}

    def update_weights_from_tensor(self, body: Any) -> tuple[int, Any]:
        import base64
        import pickle

        lost = self.log.parent / "lost"  # the name of a tensor that does not arrive
        for name, tensor in pickle.loads(base64.b64decode(body["serialized_named_tensors"][-1])):
            if not lost.exists() or name != lost.read_text():
                self.weights[name] = tensor
        self.version = body["weight_version"]
        return 200, {"success": True}

    def weights_checker(self, body: Any) -> tuple[int, Any]:
        import hashlib

        import torch

        self._require(not Path(f"{self.log}.dies").exists())
        if body["action"] == "reset_tensors":
            self.weights = {name: torch.rand_like(tensor) for name, tensor in self.weights.items()}
            return 200, {"success": True}
        sums = {
            name: [str(t.dtype), list(t.shape), hashlib.sha256(t.contiguous().view(torch.uint8).numpy()).hexdigest()]
            for name, t in self.weights.items()
        }
        return 200, {"ranks": [{"checksums": sums}]}

    def destroy_weights_update_group(self, body: Any) -> tuple[int, Any]:
        return 200, {"success": True}

    def release_memory_occupation(self, body: Any) -> tuple[int, Any]:
        if (self.log.parent / "refuse").exists():
            return 400, {"error": {"message": "no memory is given back today"}}
        while (self.log.parent / "hang").exists():
            time.sleep(0.01)
        self._require(self.paused and not self.away & set(body["tags"]))
        self.away |= set(body["tags"])
        return 200, None

    def resume_memory_occupation(self, body: Any) -> tuple[int, Any]:
        self._require(set(body["tags"]) <= self.away)
        self.away -= set(body["tags"])
        return 200, None


class Router:
    """The state of a router, which sends requests to its workers in turn. A server becomes one when it answers."""

    def __init__(self) -> None:
        self.workers: list[str] = []
        self.keys: dict[str, str] = {}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Return the status and the data of the response to a request."""
        if method == "DELETE":
            self.workers[int(path.rpartition("/")[2])] = ""
        elif path == "/workers" and method == "POST":
            self.keys[body["url"]] = body.get("api_key", "")
            threading.Thread(target=self._take_up, args=[body["url"]], daemon=True).start()
            return 202, {}
        elif path == "/workers":
            return 200, {"workers": [{"id": n, "url": url} for n, url in enumerate(self.workers) if url]}
        elif path == "/generate":
            if not any(self.workers):
                return 503, {"error": {"message": "No available workers"}}
            self.workers.append(self.workers.pop(0))
            url = next(url for url in self.workers if url)
            shown = {"Authorization": f"Bearer {self.keys[url]}"}
            request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), shown)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return 200, json.load(answer)
        return 200, {}

    def _take_up(self, url: str) -> None:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=60):
                break
            time.sleep(0.01)
        if url not in self.workers:
            self.workers.append(url)


if __name__ == "__main__":
    role, port, *rest = sys.argv[1:]
    Answering.answer = (Server(rest[0], rest[1], rest[2:]) if role == "server" else Router()).answer
    ThreadingHTTPServer(("127.0.0.1", int(port)), Answering).serve_forever()
