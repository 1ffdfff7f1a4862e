"""What a run asks of a cluster, and whether a cluster has it. Pure: `slime check` prints it, and `slime_core.run.on_ray` places the workers by it.

A *device* is a GPU or, on a cluster without any, (a share of) a CPU. A training rank takes one device. An engine in the
rollout worker takes devices with it; one that has servers takes a *slot* for each of them, on any machine. Colocated,
the engine is on the devices that train.

An engine that has servers says so as `slime_core.contracts.engine.HasServers` describes; `slots.engine_slots` gives it its
slots.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from slime_core.arguments import RunArguments
from slime_core.contracts.engine import InferenceEngine
from slime_core.errors import ArgumentError, ClusterError, NotInstalled
from slime_core.plugins import Selected
from slime_core.runtime.placement_picture import picture

Resources = dict[str, float]
Engine = Literal["none", "worker", "servers", "elsewhere"]

RANK_SHARE, ENGINE_SHARE = 0.5, 0.4
"""Of a GPU that a rank and a slot share. Ray only counts with them: both see the whole GPU."""
_MOST_ON_A_CPU = 32
"""Processes, where there are fewer CPUs than processes."""


@dataclass(frozen=True)
class Layout:
    """The ranks, engine and devices that a run asks a cluster for.

    Attributes:
        nodes, ranks_per_node: training ranks; none without a trainer.
        engine: "none"; "worker": it is in the rollout worker; "servers": it starts servers through Ray; "elsewhere": it
            uses servers that run already.
        engine_devices: devices of the engine's own; 0 if it has none, or shares those of the training ranks.
        address: see `--ray-address`.
        devices_per_server: of an engine that starts servers.
    """

    nodes: int
    ranks_per_node: int
    engine: Engine
    engine_devices: int
    address: str
    devices_per_server: int = 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def colocated(self) -> bool:
        return self.engine in ("worker", "servers") and self.engine_devices == 0

    @property
    def slots(self) -> int:
        """Servers that the engine starts, on devices of its own or on those of the ranks."""
        return (self.engine_devices or self.ranks) // self.devices_per_server if self.engine == "servers" else 0

    def describe(self) -> list[str]:
        """Describe the layout to a person, in a few lines."""
        train = f"{self.nodes} × {self.ranks_per_node} training ranks, each with a GPU" if self.ranks else "no training"
        where = "on the GPUs that train" if self.colocated else f"on {_count(self.engine_devices, 'GPU')} of its own"
        engine = {
            "none": "no engine",
            "worker": f"engine with the rollout worker, {where}",
            "servers": f"engine in {_count(self.slots, 'server')}, {where}",
            "elsewhere": "engine in servers that run elsewhere",
        }[self.engine]
        return [
            f"Ray ({self.address}): {train}; 1 rollout worker",
            engine,
            *picture(self.nodes, self.ranks_per_node, self.engine, self.engine_devices, self.devices_per_server),
            "on a cluster without GPUs a CPU, or a share of one, takes the place of each GPU",
        ]


@dataclass(frozen=True)
class Placement:
    """The resources that Ray is asked for, to place a layout on a cluster.

    Attributes:
        device: what ranks and engines run on.
        nodes: what is reserved for the training ranks, device by device, one list for each training node. Colocated, the
            engine is in there: each of its slots beside a rank, or the rollout worker beside the first of all.
        engine: what is reserved for an engine with devices of its own.
        rank, slot, worker: what a training rank, a slot of the engine and the rollout worker take.
        machines: the machine for each training node, as its place in the list of machines: another one for each. None where
            that cannot be, or there is one training node alone, which may be on any machine.
        notes: what a person should know.
    """

    device: Literal["GPU", "CPU"]
    nodes: list[list[Resources]]
    engine: list[Resources]
    rank: Resources
    slot: Resources
    worker: Resources
    machines: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def make_layout(args: RunArguments, engine: Selected[InferenceEngine] | None) -> tuple[Layout | None, list[str]]:
    """Find out what a run asks a cluster for, and return (the layout, or None if the run is one process; notes for a person).

    Raises:
        ArgumentError: the options contradict each other.
    """
    if not needs_ray(args, engine):
        return None, []
    kind, size = _engine_kind(args, engine)
    nodes = 0 if args.debug_rollout_only else args.actor_num_nodes
    ranks = nodes * args.actor_num_gpus_per_node
    notes, devices = [], 0
    if kind in ("worker", "servers") and args.colocate and ranks:
        _require_whole("--actor-num-gpus-per-node", args.actor_num_gpus_per_node, size)
        if args.rollout_num_gpus not in (None, ranks):
            notes.append(
                "--rollout-num-gpus reserves nothing with --colocate: the engine is on the devices that train."
            )
    elif kind == "worker":
        devices = args.rollout_num_gpus or 1
    elif kind == "servers":
        devices = args.rollout_num_gpus or (ranks if args.colocate else 0)
        if not devices:
            raise ArgumentError(
                f"The engine {engine.name!r} needs devices: give --rollout-num-gpus N, or --colocate to share those that "  # type: ignore[union-attr]
                "train."
            )
        _require_whole("--rollout-num-gpus", devices, size)
    return Layout(nodes, args.actor_num_gpus_per_node, kind, devices, args.ray_address or "local", size), notes


def needs_ray(args: RunArguments, engine: Selected[InferenceEngine] | None) -> str:
    """What of a run needs a Ray cluster, in words; "" if it is one process."""
    ranks = 0 if args.debug_rollout_only else args.actor_num_nodes * args.actor_num_gpus_per_node
    if ranks > 1:
        return f"{ranks} training ranks"
    if engine is not None and getattr(engine.target, "needs_ray", False):
        return f"the engine {engine.name!r}"
    return "--ray-address" if args.ray_address else ""


def require_ray(args: RunArguments, engine: Selected[InferenceEngine] | None) -> None:
    """Check that Ray is installed, if the run needs it.

    Raises:
        NotInstalled: it is not.
    """
    if (reason := needs_ray(args, engine)) and importlib.util.find_spec("ray") is None:
        raise NotInstalled(f"This run needs Ray ({reason}), which is not installed: pip install 'slime-core[ray]'.")


def _engine_kind(args: RunArguments, engine: Selected[InferenceEngine] | None) -> tuple[Engine, int]:
    """Where the engine runs, and how many devices one of its servers has; see `slime_core.contracts.engine.HasServers`."""
    if engine is None:
        return "none", 1
    if (says := getattr(engine.target, "devices_per_server", None)) is not None:
        size = says(args)
        return ("servers", size) if size else ("elsewhere", 1)
    return ("servers", 1) if getattr(engine.target, "needs_ray", False) else ("worker", 1)


def _require_whole(flag: str, devices: int, size: int) -> None:
    if devices % size:
        raise ArgumentError(f"{flag} {devices} cannot be divided into servers of the engine with {size} devices each.")


def place(layout: Layout, nodes: Sequence[Resources]) -> Placement:
    """Choose GPUs or CPUs, and how much of them everybody takes.

    Args:
        nodes: what each machine of the cluster has, as {"CPU": …, "GPU": …}.

    Raises:
        ClusterError: the cluster is too small; says what it has and what the run needs.
    """
    gpus, cpus = (sum(node.get(name, 0) for node in nodes) for name in ("GPU", "CPU"))
    whole = _ask(layout, bool(gpus), share=1)
    processes = sum(bundle["CPU"] for bundles in [*whole.nodes, _others(layout, whole)] for bundle in bundles)
    most = min(1.0, math.floor(100 * cpus / processes) / 100)
    # Machines have whole CPUs, so the largest share that there is room for may be one of an even cut.
    shares = [most, *(cut for n in range(2, _MOST_ON_A_CPU + 1) if (cut := math.floor(100 / n) / 100) < most)]
    asked = ((share, _ask(layout, bool(gpus), share)) for share in shares if share > 0)
    share, found = next(((s, a) for s, a in asked if _machines(layout, a, nodes) is not None), (0, whole))
    if not share:
        raise ClusterError(_too_small(layout, whole.device, nodes))
    notes = []
    if share < 1:
        notes.append(f"the cluster has {cpus:g} CPUs for {processes:g} processes, so each counts as {share:g} of one")
    if layout.nodes < 2:
        return replace(found, notes=tuple(notes))
    spread = _machines(layout, found, nodes, spread=True)
    if spread is None:
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in _sum(found.nodes[0]).items())
        notes.append(
            f"--actor-num-nodes {layout.nodes}: training nodes share machines, because there are no {layout.nodes} machines "
            f"with {wanted} each, beside what else the run needs. The machines of the cluster have: {_has(nodes)}"
        )
    return replace(found, machines=spread, notes=tuple(notes))


def _ask(layout: Layout, on_gpus: bool, share: float) -> Placement:
    """What the layout takes, if a process takes `share` of a CPU."""
    apart = layout.engine_devices if layout.engine == "worker" else 0  # devices that the rollout worker takes
    shared = layout.colocated and layout.engine == "servers"
    slot_cpus = 1 if on_gpus or shared else layout.devices_per_server

    def takes(part: float, cpus: float = 1) -> Resources:
        return {"CPU": cpus * share} | ({"GPU": part} if on_gpus and part else {})

    slot = takes(ENGINE_SHARE if shared else layout.devices_per_server, slot_cpus)
    worker = takes(apart, 1 if on_gpus else max(1, apart))
    # Ranks with a process of the engine beside them: every one that is the first of a server's, or the first of all.
    beside = range(0, layout.ranks, layout.devices_per_server) if shared else range(int(layout.colocated))
    # A bundle is one device, so that Ray cannot put two ranks on one.
    bundles = [takes(1, 2 if number in beside else 1) for number in range(layout.ranks)]
    width = layout.ranks_per_node
    return Placement(
        device="GPU" if on_gpus else "CPU",
        nodes=[bundles[n * width : (n + 1) * width] for n in range(layout.nodes)],
        engine=[worker] if apart else [] if shared else [slot] * layout.slots,
        rank=takes(RANK_SHARE if shared else 1),
        slot=slot,
        worker=worker,
    )


def _others(layout: Layout, placement: Placement) -> list[Resources]:
    """What is taken beside the training nodes; a rollout worker with an engine in it is among the engine's or theirs."""
    return [*placement.engine, *[placement.worker] * (layout.engine != "worker")]


def _machines(
    layout: Layout, placement: Placement, nodes: Sequence[Resources], spread: bool = False
) -> tuple[int, ...] | None:
    """The machine for the ranks of each training node, so that there is room for the rest on any machine; None if there is
    no such choice.

    Args:
        spread: no two training nodes on one machine.
    """
    training = [_sum(bundles) for bundles in placement.nodes]
    free = [dict(resources) for resources in nodes]
    chosen: list[int] = []
    for number, wanted in enumerate([*training, *_others(layout, placement)]):
        fitting = [
            n
            for n, room in enumerate(free)
            if all(room.get(name, 0) + 1e-6 >= amount for name, amount in wanted.items())
            and not (spread and number < len(training) and n in chosen)
        ]
        if not fitting:
            return None
        # The fullest machine that has room, so that room for whole training nodes is kept.
        best = min(fitting, key=lambda n: free[n].get(placement.device, 0))
        chosen.append(best)
        for name, amount in wanted.items():
            free[best][name] -= amount
    return tuple(chosen[: len(training)])


def _sum(bundles: list[Resources]) -> Resources:
    return {name: sum(bundle[name] for bundle in bundles) for name in bundles[0]}


def _too_small(layout: Layout, device: str, nodes: Sequence[Resources]) -> str:
    train = (
        f"{_count(layout.ranks, device)} for training ({layout.nodes} × {layout.ranks_per_node} on one machine each)"
    )
    engines = (
        " which the engine shares"
        if layout.colocated
        else f" and {_count(layout.engine_devices, device)} for the engine"
    )
    return (
        f"The cluster is too small. The run needs {train}{engines}, and a CPU for each process. The machines of the "
        f"cluster have: {_has(nodes)}. Start more Ray nodes, or lower --actor-num-nodes, --actor-num-gpus-per-node or "
        "--rollout-num-gpus; --colocate lets training and engine share devices."
    )


def _has(nodes: Sequence[Resources]) -> str:
    return "; ".join(f"{n.get('GPU', 0):g} GPUs and {n.get('CPU', 0):g} CPUs" for n in nodes) or "no machine"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
