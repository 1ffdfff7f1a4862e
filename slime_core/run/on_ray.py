"""Starts the workers of a run on a Ray cluster: checks that there is room, reserves places, starts the processes.

Called by `slime_core.run.launch`. Training ranks are actors in placement groups, one group for each `--actor-num-nodes`,
whose devices are on one machine. The rollout worker is one actor: with an engine in it, it takes devices or, colocated,
sees those of the ranks on its machine; else it takes a CPU anywhere. An engine with servers gets a slot for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from slime_core.errors import ClusterError
from slime_core.rollout.worker import RolloutWorker
from slime_core.run.blueprint import Blueprint, RolloutMaker, TrainMaker
from slime_core.run.console import Console
from slime_core.run.plan import Plan
from slime_core.run.workers import Workers
from slime_core.runtime.actor import Maker, WorkerActor
from slime_core.runtime.actor_handles import ActorHandle, Member, Watch, machine_is_gone
from slime_core.runtime.connect import Connection, Machine, connect
from slime_core.runtime.handles import wait, wait_all
from slime_core.runtime.layout import Layout, Placement, Resources, place
from slime_core.runtime.slots import Slot, slots_beside_ranks
from slime_core.tensors.interfaces import variables_with_servers
from slime_core.training.worker import TrainWorker

_ROOM_S, _CHOSEN_S, _START_S = 300.0, 20.0, 600.0
"""How long other users of the cluster may keep us waiting for places, for those on the machines that were chosen, and an actor
for its process."""
_ON_IT = 0.001
"""Of the resource that Ray gives each machine under its own address: who asks for a little of it is placed there."""


@dataclass
class ClusterWorkers(Workers):
    """The handles of the workers, with everything that must be undone on the cluster when the run ends."""

    foundation: ExitStack
    watch: Watch
    connection: Connection

    def close(self) -> None:
        """End the workers, give back their places, leave the cluster. One without its head can only be left: whatever else is asked of
        it waits, until Ray ends this process."""
        if self.watch.head_is_lost():
            self.watch.close()
            self.foundation.pop_all()
            self.connection.close()
        self.foundation.close()


def on_cluster(
    plan: Plan, layout: Layout, run_dir: Path, data_state: dict[str, Any] | None, console: Console
) -> Workers:
    """Start the rollout worker and the training ranks on the cluster, and return their handles.

    Args:
        data_state: where the data source goes on, from a checkpoint.

    Raises:
        ClusterError: there is no such cluster, it is too small, or too busy.
        PluginError: a worker's plugins differ from the driver's.
    """
    with ExitStack() as stack:
        connection = connect(layout.address)
        stack.callback(connection.close)
        machines = connection.machines()
        placement = place(layout, [machine.resources for machine in machines])
        for note in placement.notes:
            console.say(f"note: {note}")
        train, engine = _reserve(layout, placement, machines, console.say, stack)
        options = {f"training rank {n}": Slot(*own, placement.rank).options() for n, own in enumerate(train)}
        if layout.engine == "worker":
            worker = Slot(*engine[0], placement.worker).options()
        else:
            worker = {"num_cpus": placement.worker["CPU"]}
        members = _start_processes(options | {"rollout worker": worker}, stack)
        for member in members:
            console.say(f"{member.name}: process {member.where.pid} on {member.where.node}")
        watch = Watch(members, machines)
        rollouts: ActorHandle[RolloutWorker] = ActorHandle(members[-1:], watch)
        stack.callback(rollouts.close)
        trainer: ActorHandle[TrainWorker] | None = ActorHandle(members[:-1], watch) if train else None
        if trainer is not None:
            stack.callback(trainer.close)
        blueprint = Blueprint.of(plan, run_dir)
        slots = _slots(layout, placement, engine, members)
        starting = [rollouts.start([RolloutMaker(blueprint, data_state, slots)], [_shown_gpus(layout, members)])]
        if trainer is not None:
            environments = _environments(layout, placement, members)
            starting.append(trainer.start([TrainMaker(blueprint)] * len(environments), environments))
        wait_all(starting, "the workers to start")
        return ClusterWorkers(rollouts, trainer, stack.pop_all(), watch, connection)


@contextmanager
def ranks_on_cluster(layout: Layout, maker: Maker, say: Callable[[str], None]) -> Iterator[ActorHandle[Any]]:
    """Start the training ranks of a layout alone, without rollout worker and engine, and give their handle. They are ended
    with the context.

    Args:
        maker: makes the worker of each.
        say: is told where they run.
    """
    layout = replace(layout, engine="none", engine_devices=0)
    with ExitStack() as stack:
        connection = connect(layout.address)
        stack.callback(connection.close)
        machines = connection.machines()
        placement = place(layout, [machine.resources for machine in machines])
        train, _ = _reserve(layout, placement, machines, say, stack)
        options = {f"training rank {n}": Slot(*own, placement.rank).options() for n, own in enumerate(train)}
        members = _start_processes(options, stack)
        for text in (*placement.notes, *(f"{m.name}: process {m.where.pid} on {m.where.node}" for m in members)):
            say(text)
        handle: ActorHandle[Any] = ActorHandle(members, Watch(members, machines))
        stack.callback(handle.close)
        environments = _environments(layout, placement, members)
        wait(handle.start([maker] * len(environments), environments), "the training ranks to start")
        yield handle


Place = tuple[PlacementGroup, int]  # a bundle


def _reserve(
    layout: Layout, placement: Placement, machines: Sequence[Machine], say: Callable[[str], None], stack: ExitStack
) -> tuple[list[Place], list[Place]]:
    """Reserve bundles of Ray placement groups until `stack` ends, and return (one for each training rank, those of the engine).
    Training nodes get the machines that were chosen for them, unless others use these."""
    engine = [(placement.engine, "PACK")] if placement.engine else []
    anywhere = [*((bundles, "STRICT_PACK") for bundles in placement.nodes), *engine]
    deadline = time.monotonic() + _ROOM_S
    groups: list[PlacementGroup] = []
    busy: list[Resources] | None = None
    if placement.machines is not None:
        chosen = [machines[number].address for number in placement.machines]
        pinned = [
            ([{**bundles[0], f"node:{address}": _ON_IT}, *bundles[1:]], "STRICT_PACK")
            for bundles, address in zip(placement.nodes, chosen, strict=True)
        ]
        groups, busy = _reserve_groups([*pinned, *engine], time.monotonic() + _CHOSEN_S)
        if busy is not None:
            say(
                f"note: after {_CHOSEN_S:.0f} s there is no room for a training node on each of {', '.join(chosen)} "
                "(--actor-num-nodes), because others use them; they go where there is room, maybe on one machine"
            )
    if placement.machines is None or busy is not None:
        groups, busy = _reserve_groups(anywhere, deadline)
    for group in groups:
        stack.callback(remove_placement_group, group)
    if busy is not None:
        resources = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray leaves it without types
        free = {name: amount for name, amount in resources.items() if name in ("CPU", "GPU")}
        raise ClusterError(
            f"The cluster is large enough, but busy: after {_ROOM_S:.0f} s there is no room for {busy}. "
            f"Free are {free or 'no CPU and no GPU'}. End what else runs there, or try again later."
        )
    train = [(group, bundle) for group in groups[: layout.nodes] for bundle in range(layout.ranks_per_node)]
    own = [(group, bundle) for group in groups[layout.nodes :] for bundle in range(len(placement.engine))]
    return train, own or train


def _reserve_groups(
    asked: list[tuple[list[Resources], str]], deadline: float
) -> tuple[list[PlacementGroup], list[Resources] | None]:
    """Make placement groups and wait for them. Return (all, None), or (none, the bundles for which there was no room until the
    deadline)."""
    groups: list[PlacementGroup] = []
    with ExitStack() as stack:
        for bundles, strategy in asked:
            groups.append(group := placement_group(bundles, strategy=strategy))
            stack.callback(remove_placement_group, group)
        for group, (bundles, _) in zip(groups, asked, strict=True):
            if not group.wait(max(1.0, deadline - time.monotonic())):
                return [], bundles
        stack.pop_all()
    return groups, None


def _start_processes(options: dict[str, dict[str, Any]], stack: ExitStack) -> list[Member]:
    """Start an actor for each entry of `options` ({name: options of the Ray actor}), and wait until all of them answer."""
    remote: Any = ray.remote(concurrency_groups={"beside": 3})(WorkerActor)  # type: ignore[call-overload]
    actors = {name: remote.options(**own).remote(name) for name, own in options.items()}
    for actor in actors.values():
        stack.callback(ray.kill, actor)
    members = []
    for name, actor in actors.items():
        try:
            members.append(Member(name, actor, ray.get(actor.where.remote(), timeout=_START_S)))
        except RayError as error:
            text = " ".join(str(error).split())
            advice = "The same slime must be installed on every machine."
            if machine_is_gone(error):
                advice = "Ray has only now noticed that this machine is gone. If it was started again meanwhile, start the run again too."
            elif isinstance(error, OutOfMemoryError) or "low on memory" in text:
                text = text.partition(" OOM kill reason")[0].rstrip(".") + "."
                advice = (
                    "Ray kills what started last then: free memory on that machine, or start fewer processes there."
                )
            raise ClusterError(f"The process of the {name} did not start: {text} {advice}") from None
    return members


def _environments(layout: Layout, placement: Placement, members: list[Member]) -> list[dict[str, str]]:
    """The environment variables of each training rank, by which the ranks find each other, and NCCL the engine's servers. Ray
    shows a rank its own GPU alone, so that GPU has the local number 0."""
    first = members[0].where
    shared = variables_with_servers() if layout.engine in ("servers", "elsewhere") else {}
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(layout.ranks),
            "LOCAL_RANK": "0" if placement.device == "GPU" else str(rank % layout.ranks_per_node),
            "MASTER_ADDR": first.node,
            "MASTER_PORT": str(first.port),
            **shared,
        }
        for rank in range(layout.ranks)
    ]


def _slots(layout: Layout, placement: Placement, places: list[Place], members: list[Member]) -> list[Slot]:
    """The places of the engine's servers; none for an engine without servers on this cluster."""
    if layout.engine != "servers":
        return []
    if not layout.colocated:
        return [Slot(*place, placement.slot) for place in places]
    gpus = [member.where.gpus for member in members[: layout.ranks]]
    return slots_beside_ranks(places, placement.slot, gpus, layout.devices_per_server)


def _shown_gpus(layout: Layout, members: list[Member]) -> dict[str, str]:
    """The environment variables of the rollout worker: a colocated engine inside of it runs on the machine of the first ranks
    and is shown their GPUs."""
    gpus = [gpu for member in members[: layout.ranks_per_node] for gpu in member.where.gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if layout.engine == "worker" and layout.colocated and gpus else {}
