"""What each process of a run will hold in memory, before it starts: `slime check` prints it. The train backend and the engine say
what a rank and a server hold (`slime_core.contracts.memory`); here it is summed by process, by device and by phase.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.contracts.loss import what_reads
from slime_core.contracts.memory import ALWAYS, EstimatesMemory, Holding, MemoryUse, ModelShape, Part, Phase
from slime_core.run.components import Components
from slime_core.runtime.layout import Layout
from slime_core.training.initial_weights import begins_as_reference

GIB = 2**30
PHASES: tuple[Phase, ...] = ("generate", "hand over", "train", "step")
IN_WORDS: dict[Phase, str] = {
    "generate": "while samples are generated",
    "hand over": "while weights are handed over",
    "train": "in the forward and backward pass",
    "step": "in the optimizer's step",
}
CONTEXT = 1.0
"""GiB of a GPU that CUDA, its libraries and the gaps between blocks take in each process; not measured by slime."""


@dataclass(frozen=True)
class ProcessMemory:
    """What one process holds on its device.

    Attributes:
        name: for a person.
        count: how many there are.
        parts: what it holds.
    """

    name: str
    count: int
    parts: tuple[Part, ...]

    def at(self, phase: Phase) -> float:
        """Bytes in a phase."""
        return sum(part.size for part in self.parts if phase in part.when)

    def peak(self) -> tuple[Phase, float]:
        """The phase in which it holds most, and how much."""
        return max(((phase, self.at(phase)) for phase in PHASES), key=lambda pair: pair[1])


@dataclass(frozen=True)
class Estimate:
    """The memory of a run.

    Attributes:
        processes: those that hold a model.
        shared: a trainer and an engine on the same device, where they are processes of their own; else the process alone.
        unknown: sentences about what could not be counted.
        on_gpu: the run is for GPUs.
    """

    processes: tuple[ProcessMemory, ...]
    shared: bool
    unknown: tuple[str, ...] = ()
    on_gpu: bool = True

    def devices(self) -> Iterator[tuple[str, Phase, float, tuple[Part, ...]]]:
        """(who is on it, the phase of its peak, bytes at the peak, what there is then) of each kind of device."""
        groups = [self.processes] if self.shared else [(process,) for process in self.processes]
        for group in groups:
            together = ProcessMemory("", 1, tuple(part for process in group for part in process.parts))
            phase, size = together.peak()
            there = tuple(part for part in together.parts if phase in part.when)
            yield " and ".join(process.name for process in group), phase, size, there

    def lines(self, limit: float | None = None) -> list[str]:
        """The estimate for a person.

        Args:
            limit: GiB of a GPU, or of the machine where there is none.
        """
        lines = []
        for process in (process for process in self.processes if process.parts):
            phase, size = process.peak()
            many = f"{process.count} × " if process.count > 1 else ""
            lines.append(f"{many}{process.name}: {size / GIB:.2f} GiB at most, {IN_WORDS[phase]}")
            width = max(len(part.name) for part in process.parts)
            for part in process.parts:
                when = "" if phase in part.when else f" ({', '.join(IN_WORDS[p] for p in PHASES if p in part.when)})"
                lines.append(f"  {part.name:<{width}} {part.size / GIB:8.2f}  {part.of}{when}")
        if limit is not None:
            lines += [line for device in self.devices() for line in self._verdict(device, limit)]
        lines += [f"not counted: {text}" for text in dict.fromkeys(self.unknown)]
        return lines

    def fits(self, limit: float) -> bool:
        """Whether everything that was counted has room in so many GiB."""
        return all(self._needed(who, size) <= limit for who, _, size, _ in self.devices())

    def _needed(self, who: str, size: float) -> float:
        return size / GIB + (CONTEXT * (1 + who.count(" and ")) if self.on_gpu else 0.0)

    def _verdict(self, device: tuple[str, Phase, float, tuple[Part, ...]], limit: float) -> list[str]:
        who, phase, size, parts = device
        needed = self._needed(who, size)
        context = f", {needed - size / GIB:.0f} of them for CUDA itself" if self.on_gpu else ""
        what = f"{who}: {needed:.1f} of {round(limit, 1):g} GiB {IN_WORDS[phase]}{context}"
        if needed <= limit:
            return [f"fits: {what}"]
        largest = sorted((part for part in parts if part.less), key=lambda part: -part.size)[:3]
        less = [f"  to change: {part.less} ({part.name}, {part.size / GIB:.2f} GiB)" for part in largest]
        return [f"does not fit: {what}", *less, "  or: more GPUs, or a smaller model"]


def estimate(
    args: RunArguments,
    components: Components,
    layout: Layout | None,
    model: ModelShape,
    *,
    on_gpu: bool,
    limit: float | None = None,
) -> Estimate:
    """Sum up what all processes of a run hold.

    Args:
        limit: GiB of a GPU, where they are known.
    """
    training, rollouts = components.training, components.rollouts
    ranks = layout.ranks if layout is not None else int(not args.debug_rollout_only)
    read = what_reads(training.loss, args) | what_reads(training.advantage, args)
    use = MemoryUse(ranks=max(1, ranks), entropy="entropy" in what_reads(training.loss, args), on_gpu=on_gpu)
    use = replace(use, takes_turns=args.update_weights_interval == 1 and not rollouts.works_in_background)
    use = use if limit is None else replace(use, device=limit * GIB)
    unknown: list[str] = []
    trainer: list[Part] = []
    weight_bytes = 4
    if ranks:
        actor = _asked(training.train_backend, args, model, use, unknown)
        weight_bytes = actor.weight_bytes
        trainer += actor.parts
        within_actor = getattr(args, "lora_rank", 0) and begins_as_reference(args)
        if "ref_log_probs" in read and not within_actor:
            reference = _asked(training.train_backend, args, model, replace(use, role="reference"), [])
            trainer += [replace(part, name=f"reference: {part.name}") for part in reference.parts]
        if training.critic_loss is not None:
            critic = _asked(training.train_backend, args, model, replace(use, role="critic"), [])
            trainer += [replace(part, name=f"critic: {part.name}") for part in critic.parts]
        if layout is not None and rollouts.engine is not None:
            size = float(args.update_weight_buffer_size)
            when: frozenset[Phase] = frozenset({"hand over"})
            trainer.append(Part("weights on their way", size, "one bucket", when, "--update-weight-buffer-size"))
    engine: list[Part] = []
    if rollouts.engine is not None and (layout is None or layout.engine != "elsewhere"):
        own = replace(use, weight_bytes=weight_bytes, own_process=layout is not None)
        engine += _asked(rollouts.engine, args, model, own, unknown).parts
    if args.offload and args.colocate:
        trainer = [replace(part, when=part.when - {"generate"}) for part in trainer]
        engine = [replace(part, when=part.when - {"train", "step"}) for part in engine]
    return Estimate(_processes(trainer, engine, layout), bool(layout and layout.colocated), tuple(unknown), on_gpu)


def _processes(trainer: list[Part], engine: list[Part], layout: Layout | None) -> tuple[ProcessMemory, ...]:
    if layout is None:
        return (ProcessMemory("the process", 1, (*trainer, *engine)),)
    name = "server of the engine" if layout.engine == "servers" else "rollout worker with the engine"
    found = (
        ProcessMemory("training rank", layout.ranks, tuple(trainer)),
        ProcessMemory(name, layout.slots or 1, tuple(engine)),
    )
    return tuple(process for process in found if process.parts)


def _asked(component: Any, args: RunArguments, model: ModelShape, use: MemoryUse, unknown: list[str]) -> Holding:
    """What a component says that it holds.

    Args:
        unknown: sentences are added here.
    """
    target = component.target
    if not issubclass(target, EstimatesMemory):
        unknown.append(f"what the {component.label} holds, which it does not say (it has no method memory)")
        return Holding([Part(f"{component.kind.replace('_', ' ')}: unknown", 0.0, "", ALWAYS)])
    found: Holding = target.memory(args, model, use)
    unknown += found.unknown
    return found
