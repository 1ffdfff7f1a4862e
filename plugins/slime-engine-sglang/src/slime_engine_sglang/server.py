"""`Server`: starts one SGLang server on the machine that it is made on. `Fleet` drives it, directly or through a Ray
actor on another machine (`remote`); so it is a plain object whose methods take and return plain data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_core.errors import ArgumentError
from slime_engine_sglang.options import SERVER, words
from slime_engine_sglang.process import Child, free_port, tail

LOOPBACK = "127.0.0.1"
CPU_OPTIONS = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--dtype": "float32",
    "--max-total-tokens": "65536",  # else it takes most of the machine's memory
    "--max-running-requests": "64",
}
"""What a server on a CPU is told, unless somebody set it otherwise."""
MEMORY_OPTIONS = ("--enable-memory-saver", "--enable-weights-cpu-backup")
"""What a server is told that shall give back its memory, and have its weights again afterwards."""


class Server:
    """One SGLang server.

    Args:
        args: all options of the run.
        number: of this server, from 0.
        log: file for what it prints.
        host: address that it listens on, which the router and the trainer must reach.
        gpus: the devices that it may use, as in CUDA_VISIBLE_DEVICES; none: a CPU.
        port: that it listens on; by default a free one.
    """

    def __init__(
        self,
        args: Any,
        number: int,
        log: Path,
        host: str = LOOPBACK,
        gpus: Sequence[int | str] = (),
        port: int | None = None,
    ) -> None:
        self._args, self._number, self._log, self._gpus = args, number, log, [str(gpu) for gpu in gpus]
        self.host, self.port = host, port or free_port(host)  # kept when it is started again
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def on_gpu(self) -> bool:
        return bool(self._gpus)

    def start(self, model: str, version: int) -> str:
        """Start it, and return its address; it is not ready yet.

        Args:
            model: folder of a Hugging Face checkpoint.
            version: of the weights in there.
        """
        self.close()
        command = server_command(self._args, self._number, model, version, self.host, self.port, self.on_gpu)
        self._child = Child(command, self._log, self._environment())
        return self.url

    def status(self) -> int | None:
        """The exit status of a server that has ended; None while it runs."""
        return self._child.status if self._child else -1

    def log_tail(self) -> str:
        """Where its log is, and how it ends."""
        return f"{self._log} ends with:\n{tail(self._log)}"

    def close(self) -> None:
        """End it."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _environment(self) -> dict[str, str]:
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)}
        own["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "false"  # log-probs are those at the temperature of the request
        defaults = {"TOKENIZERS_PARALLELISM": "false"}
        if not self._gpus:
            defaults["SGLANG_USE_CPU_ENGINE"] = "1"
        if self.host == LOOPBACK:
            defaults |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        return {**{name: value for name, value in defaults.items() if name not in os.environ}, **own}


def server_command(args: Any, number: int, model: str, version: int, host: str, port: int, on_gpu: bool) -> list[str]:
    """The command line of a server: slime's own part, then what somebody set.

    SGLang ignores the seeds of requests unless it is told to be deterministic, so servers get different seeds of their
    own, which follow from --rollout-seed.
    """
    passed = words(SERVER, vars(args))
    stages = _number(passed, "--pp-size", "--pipeline-parallel-size", "--pp")
    if args.rollout_num_gpus_per_engine % stages:
        raise ArgumentError(
            f"--rollout-num-gpus-per-engine {args.rollout_num_gpus_per_engine} cannot be divided by the {stages} pipeline "
            "stages of --sglang-pp-size."
        )
    own = {
        "--model-path": model,
        "--tokenizer-path": args.hf_checkpoint,
        "--weight-version": str(version),
        "--host": host,
        "--port": str(port),
        "--tp-size": str(args.rollout_num_gpus_per_engine // stages),
        "--random-seed": str(args.rollout_seed + number),
        "--served-model-name": "slime",
        **({} if on_gpu else CPU_OPTIONS),
    }
    kept = [word for flag, value in own.items() if flag not in passed for word in (flag, value)]
    wanted = [] if on_gpu else ["--sleep-on-idle"]
    wanted += MEMORY_OPTIONS if gives_back_memory(args) else ()
    switches = [flag for flag in wanted if flag not in passed]
    return [sys.executable, "-m", "sglang.launch_server", *kept, *switches, *passed]


def gives_back_memory(args: Any) -> bool:
    """Whether servers take turns with the trainer in having the memory of the GPUs."""
    return args.offload and args.colocate


def _number(passed: Sequence[str], *flags: str) -> int:
    """The value of the first of these flags that is there, else 1."""
    return next((int(passed[passed.index(flag) + 1]) for flag in flags if flag in passed), 1)
