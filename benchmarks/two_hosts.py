"""What a run on two machines does, and what it says when a machine, the cable or an installation fails:

    python -m benchmarks.two_hosts [SCENARIO …]

Runs every scenario, or those named, on two network namespaces that are made for it (`benchmarks.hosts`: needs root and
iproute2), prints what was seen, and ends with status 1 if one did not go as it should. `submitted_job` needs 'ray[default]',
and `servers` an environment with SGLang, such as that of `scripts/test-sglang.sh`; else they are skipped. About six minutes on
two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.hosts import PORT, START_S, Command, Host, two_hosts, why_not
from slime_core.run.tracking import read_metrics
from slime_core.testing.checkpoint import tiny_checkpoint

LIMIT_S = 240.0
"""How long a run may take."""
NAMED_S, GONE_S, ALONE_S = 5.0, 60.0, 240.0
"""How soon a machine that does not answer must be named, and the run have ended; and then what is left on that machine."""

_MEET = """
import os, sys, torch
from slime_core.errors import ClusterError
from slime_core.tensors.ranks import Ranks
try:
    ranks = Ranks.join(float(os.environ["MINUTES"]))
    print("met", int(ranks.sum(torch.ones(1)).item()), "by", os.environ["GLOO_SOCKET_IFNAME"])
except ClusterError as error:
    sys.exit(f"refused: {error}")
"""

_WEIGHTS = """
import os, sys, torch
from slime_core.tensors.interfaces import variables_towards
from slime_engine_sglang import transports

server, number, port = sys.argv[1], int(sys.argv[2]), 5002
if number:  # a process of the server, which SGLang's own code brings into the group
    from torch.distributed import TCPStore, PrefixStore, distributed_c10d as c10d
    os.environ.update(variables_towards(server, 1))
    store = PrefixStore("weights", TCPStore(sys.argv[3], port, 2, wait_for_workers=False))
    group, _ = c10d._new_process_group_helper(
        *(2, 1, [], c10d.Backend("gloo"), store), group_name="weights", timeout=transports.GROUP_TIMEOUT
    )
    c10d._world.pg_group_ranks[group] = {0: 0, 1: 1}
else:
    import socket
    host = transports.address_for([f"http://{server}:1"])
    _, group = transports._make_group(host, socket.create_server((host, port)), 2, "weights", "gloo")
    assert "GLOO_SOCKET_IFNAME" not in os.environ
weight = torch.full((3,), 7.0 - 7 * number)
torch.distributed.broadcast(weight, src=0, group=group)
print("has", weight.tolist(), flush=True)
os._exit(0)  # a server never ends so: the threads of gloo do not outlive an interpreter that ends
"""

_PLUGIN = """
from slime_core import hookimpl

@hookimpl
def slime_run_finished(args, error):
    pass
"""

_REWARD = """
async def even(args, sample):
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))
"""


@dataclass
class Scene:
    """The two machines and what runs on them need, on storage that both see.

    Attributes:
        folder: for runs and checkpoints.
        model, rows: a model folder and a file of conversations.
    """

    first: Host
    second: Host
    folder: Path
    model: Path
    rows: Path

    def start_ray(self, first: int = 2, second: int = 1, dashboard: bool = False) -> None:
        """Start a cluster of both with so many CPUs; by default for a rank and the rollout worker, and for another rank."""
        for host in (self.first, self.second):
            host.end_all()
        self.first.join(self.first, first, dashboard=dashboard)
        self.join_second(second)

    def join_second(self, cpus: int = 1) -> None:
        """Start Ray on the second machine, on which a folder `site` is another one than on the first."""
        here, there = self.folder / "site", self.folder / "site-there"
        for site, version in ((here, "1.0"), (there, "2.0")):
            info = site / f"hostpack-{version}.dist-info"
            info.mkdir(parents=True, exist_ok=True)
            (site / "hostpack.py").write_text(_PLUGIN)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: hostpack\nVersion: {version}\nRequires-Dist: slime-core>=0.1\n"
            )
            (info / "entry_points.txt").write_text("[slime]\nhostpack = hostpack\n")
        self.second.join(self.first, cpus, prepare=f"mount --bind {there} {here}")

    def words(self, name: str, *more: str, rollouts: int = 6) -> list[str]:
        """The command of a run of supervised fine-tuning with a rank on each machine."""
        given = f"""slime train --ray-address {self.first.address}:{PORT} --actor-num-nodes 2 --actor-num-gpus-per-node 1
            --hf-checkpoint {self.model} --prompt-data {self.rows} --input-key messages --rollout-batch-size 4
            --num-rollout {rollouts} --lr 1e-2 --run-dir {self.folder / name} --save {self.folder / name}-save
            --save-interval 1 --save-hf {self.folder / name}-hf"""
        return [*given.split(), *(more or _SFT)]

    def train(self, name: str, *more: str, rollouts: int = 6) -> Command:
        """Make a run on the first machine, which must end well, with a rank on each machine, and return it."""
        run = self.first.start(self.words(name, *more, rollouts=rollouts), PYTHONPATH=self.path())
        assert run.wait(LIMIT_S) == 0, run.text
        on = set(re.findall(r"training rank \d: process \d+ on (\S+)", run.text))
        assert on == {self.first.address, self.second.address}, run.text
        return run

    def path(self, *more: Path) -> str:
        """PYTHONPATH of this process, with more folders in front."""
        return ":".join([*map(str, more), *(entry for entry in sys.path if entry)])

    def weights(self, name: str) -> str:
        """A hash of the weights that a run has exported."""
        return hashlib.sha256((self.folder / f"{name}-hf" / "model.safetensors").read_bytes()).hexdigest()


_SFT = ("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--calculate-per-token-loss", "--debug-train-only")


def ranks_meet(scene: Scene) -> list[str]:
    """Ranks find the interface that reaches rank 0, though the host names stand for loopback addresses."""
    runs = _meet(scene)
    for run, host in zip(runs, (scene.first, scene.second), strict=True):
        assert f"met 2 by {host.device}" in run.text, run.text
    return [run.lines[-1][1] for run in runs]


def unreachable_rank_is_named(scene: Scene) -> list[str]:
    """A rank that announces what the other machine does not reach: both say which rank, machine and port."""
    runs = _meet(scene, second={"GLOO_SOCKET_IFNAME": "lo"})
    for run in runs:
        assert re.search(
            r"refused: Training rank 0 \(process \d+ on 10.77.0.1\) does not reach training rank 1 \(process \d+ on "
            r"10.77.0.2\) at 127.0.0.1:\d+ \(interface lo, as GLOO_SOCKET_IFNAME says\): Connection refused, after \d.\d s",
            run.text,
        ), run.text
    return [runs[1].lines[-1][1]]


def missing_ranks_are_named(scene: Scene) -> list[str]:
    """The other rank is told another port: each says what it tried, for the time that it really took."""
    runs = _meet(scene, second={"MASTER_PORT": "5001"}, minutes="0.05")
    took = r"It took 3.\d s, of at most 0.05 minutes"
    assert re.search(rf"Training rank 0 .* 10.77.0.1:5000.* rank 1 did not come.* {took}", runs[0].text), runs[0].text
    assert re.search(rf"Training rank 1 .* 10.77.0.1:5001.* Connection refused.* {took}", runs[1].text), runs[1].text
    return [run.lines[-1][1] for run in runs]


def weights_reach_a_server(scene: Scene) -> list[str]:
    """A trainer alone, which met no other rank, broadcasts weights to the process of a server on the other machine."""
    words = [sys.executable, "-c", _WEIGHTS, scene.second.address]
    runs = [
        host.start([*words, str(number), scene.first.address], PYTHONPATH=scene.path())
        for number, host in enumerate((scene.first, scene.second))
    ]
    for run in reversed(runs):  # the server first, for which the trainer waits
        assert run.wait(START_S) == 0, run.text
        assert run.lines[-1][1] == "has [7.0, 7.0, 7.0]", run.text
    return [run.lines[-1][1] for run in runs]


def _meet(scene: Scene, second: dict[str, str] | None = None, minutes: str = "1") -> list[Command]:
    """Two ranks without Ray, one on each machine, until both have ended."""
    common = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": scene.first.address, "MASTER_PORT": "5000"}
    common |= {"MINUTES": minutes, "PYTHONPATH": scene.path()}
    words = [sys.executable, "-c", _MEET]
    runs = [
        scene.first.start(words, **{**common, "RANK": "0"}),
        scene.second.start(words, **{**common, "RANK": "1", **(second or {})}),
    ]
    for run in runs:
        run.wait(LIMIT_S)
    return runs


def sft(scene: Scene) -> list[str]:
    """Supervised fine-tuning with a rank on each machine, checkpoints on storage that both see."""
    run = scene.train("whole")
    return [line for _, line in run.lines if line.startswith(("training rank", "rollout "))]


def other_versions_are_refused(scene: Scene) -> list[str]:
    """A plugin has another version on the second machine."""
    run = scene.first.start(scene.words("versions"), PYTHONPATH=scene.path(scene.folder / "site"))
    assert run.wait(LIMIT_S) == 1, run.text
    assert "hostpack is 1.0 there and 2.0 here" in run.text, run.text
    assert re.search(r"in the training rank \d \(process \d+ on 10.77.0.2\)", run.text), run.text
    return [line for _, line in run.lines if "hostpack" in line or "in the training" in line]


def pulled_cable(scene: Scene) -> list[str]:
    """The cable is pulled in mid-step: named within 5 s, ended within 60 s, and the resumed run is the unbroken one, bit for bit."""
    if not (scene.folder / "whole-hf").exists():
        scene.train("whole")
    told = lost_machine_is_named(scene)
    left = scene.second.wait_for_end("WorkerActor", ALONE_S)
    told.append(f"the rank on the machine that stayed cut off had ended by itself {left:.1f} s after the run")
    scene.second.plug(True)
    scene.second.end_all()
    scene.join_second()
    resumed = scene.train("broken", *_SFT, "--load", str(scene.folder / "broken-save"))
    assert scene.weights("broken") == scene.weights("whole")
    resumes = [line for _, line in resumed.lines if line.startswith("resumed from")]
    return [*told, *resumes, f"weights {scene.weights('broken')[:16]}, as those of the unbroken run"]


def lost_machine_is_named(scene: Scene) -> list[str]:
    """The first half of `pulled_cable`, which leaves the cable pulled."""
    run = scene.first.start(scene.words("broken"), PYTHONPATH=scene.path())
    run.wait_for("rollout 3/6", LIMIT_S)
    assert scene.second.running("WorkerActor")
    scene.second.plug(False)
    pulled = time.monotonic() - run.started
    named = run.wait_for("does not answer at port", GONE_S) - pulled
    assert run.wait(LIMIT_S) == 1, run.text
    ended = time.monotonic() - run.started - pulled
    assert named < NAMED_S, f"it took {named:.1f} s to name the machine:\n{run.text}"
    assert ended < GONE_S, f"it took {ended:.1f} s to end:\n{run.text}"
    assert re.search(r"The training rank \d \(process \d+ on 10.77.0.2\) is lost with its machine", run.text), run.text
    assert "start the same command again with --load" in run.text, run.text
    told = [line for _, line in run.lines if "does not answer" in line or "slime train:" in line]
    return [*told, f"named after {named:.1f} s, ended after {ended:.1f} s"]


def ended_raylet_is_named(scene: Scene) -> list[str]:
    """Ray's process on the second machine is killed: named within 5 s with machine, process and port, and the run ends."""
    told = _killed(scene, scene.second, "raylet/raylet", "raylet")
    scene.second.end_all()
    scene.join_second()
    return told


def ended_head_is_named(scene: Scene) -> list[str]:
    """The head's process is killed, of which Ray says nothing for a minute: named within 5 s, and the run ends with an error of its
    own."""
    told = _killed(scene, scene.first, "gcs/gcs_server", "gcs_server")
    scene.start_ray()
    return told


def _killed(scene: Scene, host: Host, words: str, name: str) -> list[str]:
    run = scene.first.start(scene.words(f"without-{name}", rollouts=60), PYTHONPATH=scene.path())
    run.wait_for("rollout 3/60", LIMIT_S)
    host.kill(words)
    killed = time.monotonic() - run.started
    named = run.wait_for(f"process {name} ", GONE_S) - killed
    assert run.wait(GONE_S) == 1, run.text
    ended = time.monotonic() - run.started - killed
    assert re.search(
        rf"Ray's process {name} on {host.address}, the machine of .*\(process \d+ on {host.address}\).*, has ended: nothing "
        r"listens at its port \d+ any more \(Connection refused\)",
        run.text,
    ), run.text
    assert named < NAMED_S, f"it took {named:.1f} s to name it:\n{run.text}"
    assert "start the same command again with --load" in run.text, run.text
    told = [line for _, line in run.lines if f"process {name} " in line]
    return [*told, f"named after {named:.1f} s, ended after {ended:.1f} s"]


def slow_link(scene: Scene) -> list[str]:
    """A cable of 1 Mbit/s makes the run slower and changes nothing."""
    if not (scene.folder / "whole-hf").exists():
        scene.train("whole")
    for host in (scene.first, scene.second):
        host.slow("1mbit")
    try:
        run = scene.train("slow")
    finally:
        for host in (scene.first, scene.second):
            host.fast()
    assert "does not answer" not in run.text, run.text
    assert scene.weights("slow") == scene.weights("whole")
    return [line for _, line in run.lines if line.startswith("rollout ")]


def grpo(scene: Scene) -> list[str]:
    """GRPO with the embedded engine, in the rollout worker on one machine, and a rank on each; resumed bit for bit."""
    (scene.folder / "host_reward.py").write_text(_REWARD)
    options = """--apply-chat-template --rollout-engine local --custom-rm-path host_reward.even --n-samples-per-prompt 3
        --rollout-max-response-len 6"""
    whole = _resumed_is_whole(scene, "grpo", options.split(), rollouts=3)
    return [line for _, line in whole.lines if line.startswith(("training rank", "rollout "))]


def _resumed_is_whole(scene: Scene, name: str, options: list[str], rollouts: int) -> Command:
    path = scene.path(scene.folder)
    runs = []
    for more in ([], ["--load", str(scene.folder / f"{name}-save")]):
        run = scene.first.start(scene.words(name, *options, *more, rollouts=rollouts), PYTHONPATH=path)
        assert run.wait(LIMIT_S) == 0, run.text
        runs.append(scene.weights(name))
        if not more:
            whole = run
            shutil.rmtree(scene.folder / f"{name}-save" / f"iter_{rollouts - 1:07d}")
            shutil.rmtree(scene.folder / f"{name}-hf")
    assert runs[0] == runs[1]
    return whole


def submitted_job(scene: Scene) -> list[str]:
    """`ray job submit` from the second machine: the run joins the cluster that it was submitted to."""
    words = scene.words("job", rollouts=2)
    del words[words.index("--ray-address") : words.index("--ray-address") + 2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = json.dumps({"env_vars": {"PYTHONPATH": scene.path(), "HF_HUB_OFFLINE": "1", "PATH": path}})
    submit = [
        "ray",
        "job",
        "submit",
        "--address",
        f"http://{scene.first.address}:8265",
        "--runtime-env-json",
        environment,
    ]
    run = scene.second.start([*submit, "--", *words])
    assert run.wait(LIMIT_S) == 0, run.text
    on = set(re.findall(r"training rank \d: process \d+ on (\S+)", run.text))
    assert on == {scene.first.address, scene.second.address}, run.text
    return [line for _, line in run.lines if "rollout 2/2" in line or "succeeded" in line]


def servers(scene: Scene) -> list[str]:
    """GRPO with a server of SGLang on the second machine, which gets the weights from the first in each of the three ways; rank 0
    has the first machine for itself."""
    scene.start_ray(first=1, second=3)
    (scene.folder / "host_reward.py").write_text(_REWARD)
    options = """--apply-chat-template --rollout-engine sglang --rollout-num-gpus 1 --custom-rm-path host_reward.even
        --n-samples-per-prompt 3 --rollout-max-response-len 6 --check-weight-update-equal"""
    told = []
    for transport in ("nccl", "tensor", "disk"):  # without a GPU the first is a group of gloo
        words = scene.words(transport, *options.split(), "--update-weight-transport", transport, rollouts=3)
        run = scene.first.start(words, PYTHONPATH=scene.path(scene.folder))
        assert run.wait(2 * LIMIT_S) == 0, f"{transport}: {run.text}"
        assert re.search(rf"training rank 0: process \d+ on {scene.first.address}", run.text), run.text
        began = (scene.folder / transport / "sglang" / "server-0.log").read_text()
        assert f"--host {scene.second.address}" in began, began[:2000]
        lines = read_metrics(scene.folder / transport / "metrics.jsonl")
        apart = [line["train/train_rollout_logprob_abs_diff"] for line in lines]
        assert len(apart) == 3, run.text
        assert max(apart) < 1e-4, run.text
        took = [line["perf/update_weights_time"] for line in lines if "perf/update_weights_time" in line]
        told.append(f"{transport}: log-probs of trainer and server differ by {max(apart):.1e}; updates took {took} s")
        told += [line for _, line in run.lines if line.startswith(("training rank", "rollout "))]
    return told


WITHOUT_RAY: tuple[Callable[[Scene], list[str]], ...] = (
    *(ranks_meet, unreachable_rank_is_named, missing_ranks_are_named),
    weights_reach_a_server,
)
WITH_RAY: tuple[Callable[[Scene], list[str]], ...] = (
    *(sft, other_versions_are_refused, slow_link, grpo),
    *(ended_raylet_is_named, ended_head_is_named, pulled_cable),
)
FURTHER: dict[Callable[[Scene], list[str]], str] = {submitted_job: "ray.dashboard.optional_deps", servers: "sglang"}
"""Scenarios, each with the module that it needs."""


@contextmanager
def scene() -> Iterator[Scene]:
    """Two machines with a small random model and rows; without Ray still."""
    folder = Path(tempfile.mkdtemp(prefix="two-", dir="/tmp"))  # short, because Ray's sockets lie below it
    try:
        (folder / "model").mkdir()
        rows = [_row(number) for number in range(64)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with two_hosts(folder) as (first, second):
            yield Scene(first, second, folder, tiny_checkpoint(folder / "model"), folder / "rows.jsonl")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _row(number: int) -> dict[str, object]:
    asked, answer = f"What is {number} plus 1?", f"It is {number + 1}."
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def main() -> int:
    """Run the scenarios and return the exit status."""
    chosen, failed = sys.argv[1:], 0
    if reason := why_not():
        raise SystemExit(f"python -m benchmarks.two_hosts {reason}")
    known = [*WITHOUT_RAY, *WITH_RAY, *FURTHER]
    if unknown := set(chosen) - {scenario.__name__ for scenario in known}:
        raise SystemExit(
            f"There is no scenario {', '.join(unknown)}; there are {', '.join(s.__name__ for s in known)}."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # takes the machines away
    with scene() as stage:
        started = False
        for scenario in known:
            if chosen and scenario.__name__ not in chosen:
                continue
            if (module := FURTHER.get(scenario)) and not _importable(module):
                print(f"skipped  {scenario.__name__}: needs {module}", flush=True)
                continue
            if scenario not in (*WITHOUT_RAY, servers) and not started:
                stage.start_ray(dashboard=_importable(FURTHER[submitted_job]))
                started = True
            begun = time.monotonic()
            try:
                seen, verdict = scenario(stage), "ok      "
            except (AssertionError, OSError) as error:
                seen, verdict, failed = str(error).splitlines(), "FAILED  ", failed + 1
            print(f"{verdict} {scenario.__name__} ({time.monotonic() - begun:.0f} s): {scenario.__doc__}", flush=True)
            for line in seen:
                print(f"           {line}", flush=True)
    return int(bool(failed))


def _importable(module: str) -> bool:
    try:
        import_module(module)
    except Exception:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
