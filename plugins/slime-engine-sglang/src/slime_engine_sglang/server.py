"""`Server`: starts and ends one SGLang server on the machine that the object is made on.

`Fleet` drives it, directly or through a Ray actor on another machine (`remote`); so it is a plain object whose methods
take and return plain data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.errors import ArgumentError
from slime_core.free_port import FreePort
from slime_core.tensors.interfaces import variables_towards, variables_with_servers
from slime_engine_sglang.keys import Keys
from slime_engine_sglang.options import SERVER, command_line
from slime_engine_sglang.process import ChildProcess, tail

if TYPE_CHECKING:
    from slime_core.arguments.groups.cluster import ClusterArguments
    from slime_engine_sglang.arguments import SGLangRunArguments

LOOPBACK = "127.0.0.1"
CPU_OPTIONS = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--dtype": "float32",
    "--max-total-tokens": "65536",  # by default it takes most of the machine's memory
    "--max-running-requests": "64",
}
"""The options of a server on a CPU, unless the user set them otherwise."""
MEMORY_OPTIONS = ("--enable-memory-saver", "--enable-weights-cpu-backup")
"""The options of a server that can give back its memory, and has its weights again afterwards."""


class Server:
    """One SGLang server.

    Args:
        args: the options of the run.
        number: the number of the server, from 0.
        log: the file that gets what the server prints.
        host: the address that it listens on, which the router and the trainer must reach.
        gpus: the devices that it may use, as in CUDA_VISIBLE_DEVICES; none: it computes on the CPU.
        port: the port that it listens on; by default one that is free.
    """

    def __init__(
        self,
        args: SGLangRunArguments,
        number: int,
        log: Path,
        host: str = LOOPBACK,
        gpus: Sequence[int | str] = (),
        port: int | None = None,
    ) -> None:
        self._args, self._number, self._log, self._gpus = args, number, log, [str(gpu) for gpu in gpus]
        if port is None:
            self._free = FreePort(host)  # kept also for when it is started again
            port = self._free.number
        self.host, self.port = host, port
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://{self.host}:{self.port}"

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on GPUs."""
        return bool(self._gpus)

    def start(self, model: str, version: int) -> str:
        """Start the server and return its address. It is not ready yet.

        Args:
            model: the folder of a Hugging Face checkpoint.
            version: the version of the weights in that folder.
        """
        self.close()
        command = server_command(self._args, self._number, model, version, self.host, self.port, self.on_gpu)
        self._child = ChildProcess(command, self._log, self._environment())
        return self.url

    def status(self) -> int | None:
        """Return the exit status of a server that has ended; None while it runs."""
        return self._child.status if self._child else -1

    def log_tail(self) -> str:
        """Say where the log is, and how it ends."""
        return f"{self._log} ends with:\n{tail(self._log)}"

    def close(self) -> None:
        """End the server."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _environment(self) -> dict[str, str]:
        """The environment variables of the server that differ from those of this process."""
        own = {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus)}
        own["SGLANG_RETURN_ORIGINAL_LOGPROB"] = "false"  # log-probs are those at the temperature of the request
        own["SGLANG_VLM_CACHE_SIZE_MB"] = "0"  # what the vision tower makes of images, which would outlive its weights
        defaults = {"TOKENIZERS_PARALLELISM": "false", **variables_with_servers()}
        if not self._gpus:
            defaults["SGLANG_USE_CPU_ENGINE"] = "1"
        defaults |= variables_towards(self.host, self.port)  # its process groups are where its HTTP address is
        return {**{name: value for name, value in defaults.items() if name not in os.environ}, **own}


def server_command(
    args: SGLangRunArguments, number: int, model: str, version: int, host: str, port: int, on_gpu: bool
) -> list[str]:
    """Return the command line of a server: slime's own options, then those that the user set.

    SGLang ignores the seeds of requests unless it is told to be deterministic, so every server gets a seed of its own,
    which follows from --rollout-seed.
    """
    passed = command_line(SERVER, vars(args))
    stages = _number(passed, "--pp-size", "--pipeline-parallel-size", "--pp")
    if args.rollout_num_gpus_per_engine % stages:
        raise ArgumentError(
            f"--rollout-num-gpus-per-engine {args.rollout_num_gpus_per_engine} cannot be divided by the {stages} "
            "pipeline stages of --sglang-pp-size."
        )
    if stages > 1 and args.update_weight_transport == "nccl":
        raise ArgumentError(no_group_of(f"--sglang-pp-size {stages}"))
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
    if key := Keys.of(args).server:
        kept += ["--api-key", key]
    wanted = [] if on_gpu else ["--sleep-on-idle"]
    wanted += MEMORY_OPTIONS if gives_back_memory(args) else ()
    wanted += ["--trust-remote-code"] if args.trust_remote_code else []
    switches = [flag for flag in wanted if flag not in passed]
    return [sys.executable, "-m", "sglang.launch_server", *kept, *switches, *passed]


def no_group_of(stages: str) -> str:
    """Say that servers with pipeline stages cannot be given weights in a process group: SGLang numbers the ranks of every stage alike."""
    return (
        f"{stages}: SGLang gives the ranks of all pipeline stages of a server the same numbers in the process group of "
        "--update-weight-transport nccl, which then never forms. Give --update-weight-transport disk or tensor."
    )


def gives_back_memory(args: ClusterArguments) -> bool:
    """Return whether servers take turns with the trainer in having the memory of the GPUs."""
    return args.offload and args.colocate


def _number(passed: Sequence[str], *flags: str) -> int:
    """Return the value of the first of these flags that was passed, or 1."""
    return next((int(passed[passed.index(flag) + 1]) for flag in flags if flag in passed), 1)
