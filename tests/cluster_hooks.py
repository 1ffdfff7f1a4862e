"""Hook functions of a user's own project for the cluster tests. They run in the workers' processes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch

from slime_core.data import GlobalDataSource
from slime_core.runtime.slots import engine_slots
from slime_core.sample import Sample
from slime_engine_local.engine import LocalEngine
from slime_torch.backend import TorchBackend


async def even_tokens(args, sample: Sample) -> float:
    """The share of even token ids in the response."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


class OwnError(ValueError):
    """An exception of the user's own."""


def refuse_rewards(args, rollout_id: int, rollout_data: dict):
    """A post-process of rollout data that fails; it runs in a training rank."""
    logging.getLogger("cluster_hooks").warning("refusing %d rewards", len(rollout_data["rewards"]))
    raise OwnError(f"these {len(rollout_data['rewards'])} rewards are no good")


def refuse_to_convert(args, samples: list[Sample]):
    """A sample converter that fails; it runs in the rollout worker."""
    raise OwnError(f"these {len(samples)} samples are no good")


def kill_this_rank(args, rollout_id: int, rollout_data: dict):
    """A post-process of rollout data in which the second rank is killed in the second rollout, while the first one goes on; once."""
    done = Path(args.save) / "killed"
    if rollout_id and os.environ["RANK"] == "1" and not done.exists():
        done.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def tell_of_call(args, samples: list[Sample]):
    """A reward post-process that leaves a line in the run directory for each call, whoever calls it."""
    with (Path(args.run_dir) / "calls.txt").open("a") as file:
        file.write(f"{len(samples)} samples\n")
    raw = [float(sample.reward) for sample in samples]
    return raw, [2 * reward for reward in raw]


async def kill_the_trainer(args, sample: Sample) -> float:
    """A reward that kills the training rank, while nothing waits for that, and then takes for ever."""
    if sample.group_index:
        with suppress(ProcessLookupError):
            os.kill(int((Path(args.run_dir) / "trainer.pid").read_text()), signal.SIGKILL)
        time.sleep(600)
    return 1.0


def tell_pid(args, rollout_id: int, rollout_data: dict):
    """A post-process of rollout data that leaves the training rank's process id in the run directory."""
    (Path(args.run_dir) / "trainer.pid").write_text(str(os.getpid()))


class FileSender:
    """A way for weights that passes by the driver and by Ray: a file that the engine reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def send(self, weights, version: int) -> None:
        torch.save(dict(weights), self.folder / "weights.tmp")
        (self.folder / "weights.tmp").rename(self.folder / f"weights-{version}.pt")

    def close(self) -> None:
        (self.folder / f"closed-{os.environ.get('RANK')}").touch()


class ClosingSource(GlobalDataSource):
    """Notes in the run directory which process closes it."""

    def close(self) -> None:
        with (Path(self.args.run_dir) / "sources").open("a") as file:
            file.write(f"{os.getpid()}\n")


class Server:
    """What a real engine would generate with."""

    def pid(self) -> int:
        return os.getpid()


class ServedEngine(LocalEngine):
    """Has a server in each of its slots, and takes weights from files."""

    needs_ray = True

    def __init__(self, args) -> None:
        super().__init__(args)
        import ray

        self.folder = Path(args.run_dir)
        self.version = -1
        self.servers = [ray.remote(Server).options(**slot.options()).remote() for slot in engine_slots()]
        pids = ray.get([server.pid.remote() for server in self.servers])
        (self.folder / "servers").write_text(" ".join(map(str, pids)))

    def weight_sender(self) -> FileSender:
        return FileSender(self.folder)

    async def generate(self, input_ids, sampling_params, request_id=None):
        newest = max(int(path.stem.split("-")[1]) for path in self.folder.glob("weights-*.pt"))
        if newest > self.version:
            self.version = newest
            self.update_weights(torch.load(self.folder / f"weights-{newest}.pt").items(), newest)
        return await super().generate(input_ids, sampling_params, request_id)


class Memory:
    """Who has given back the memory, in the order in which it happened, and who worked without it."""

    log: list[str] = []  # noqa: RUF012
    out: set[str] = set()  # noqa: RUF012

    @classmethod
    def note(cls, who: str, leaves: bool) -> None:
        assert (who in cls.out) is not leaves
        (cls.out.add if leaves else cls.out.discard)(who)
        cls.log.append(f"{who} {'leaves' if leaves else 'comes'}")

    @classmethod
    def work(cls, who: str) -> None:
        assert who not in cls.out, f"the {who} works without memory"
        if cls.log[-1:] != [f"{who} works"]:
            cls.log.append(f"{who} works")


class LeavingEngine(LocalEngine):
    def offload(self) -> None:
        Memory.note("engine", leaves=True)

    def onload(self) -> None:
        Memory.note("engine", leaves=False)

    def update_weights(self, weights, version: int) -> None:
        assert not Memory.out
        super().update_weights(weights, version)

    async def generate(self, input_ids, sampling_params, request_id=None):
        Memory.work("engine")
        return await super().generate(input_ids, sampling_params, request_id)


class LeavingBackend(TorchBackend):
    def offload(self) -> None:
        Memory.note("trainer", leaves=True)

    def onload(self) -> None:
        Memory.note("trainer", leaves=False)

    def train_step(self, batch):
        Memory.work("trainer")
        return super().train_step(batch)

    def save_state(self, path) -> None:
        Memory.work("trainer")
        super().save_state(path)


TRAINED = threading.Event()


def note_rollouts(rollout_id, args, samples, rollout_extra_metrics, rollout_time) -> bool:
    """A rollout log that tells the tests when the third rollout has been trained."""
    if rollout_id == 2:
        TRAINED.set()
    return False
