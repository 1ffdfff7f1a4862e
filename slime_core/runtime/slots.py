"""Where an engine with servers (`layout` says what makes it one) may put them in a cluster.

Such an engine is made in the rollout worker. There, `engine_slots()` gives one slot for each of its servers; what it
starts through Ray takes a slot's resources in the slot's place, and uses its devices:

    ray.remote(Server).options(**slot.options()).remote(slot.gpus, …)      # slot.gpus or ray.get_gpu_ids()
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.runtime.layout import Resources
from slime_core.tensors.freed_memory import ONE_HEAP

_slots: list[Slot] = []


@dataclass(frozen=True)
class Slot:
    """The place of one server of an engine: resources that are reserved in a Ray placement group.

    Attributes:
        group, bundle: a bundle of a Ray placement group.
        resources: what the process takes, as {"CPU": …, "GPU": …}; less than a GPU where it is shared with training.
        gpus: those that it may use, where Ray does not give it all of them: the ranks' beside a colocated server.
    """

    group: Any
    bundle: int
    resources: Resources
    gpus: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Options of the Ray actor that takes this slot."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return {
            "runtime_env": {"env_vars": self.environment()},
            "num_cpus": self.resources["CPU"],
            "num_gpus": self.resources.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, self.bundle),
        }

    def environment(self) -> dict[str, str]:
        """The environment variables that its process begins with."""
        # What is importable here, by whatever path, shall be importable there.
        importable = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        return importable if self.resources.get("GPU") else importable | ONE_HEAP


def slots_beside_ranks(
    places: Sequence[tuple[Any, int]], resources: Resources, gpus: Sequence[tuple[str, ...]], size: int
) -> list[Slot]:
    """The slots of colocated servers: one for every `size` ranks, in the place of the first, with the GPUs of all.

    Args:
        places, gpus: of each rank.
    """
    return [
        Slot(*places[first], resources, tuple(gpu for own in gpus[first : first + size] for gpu in own))
        for first in range(0, len(places), size)
    ]


def engine_slots() -> list[Slot]:
    """The slots of this process's engine, one for each server. Empty without a cluster."""
    return list(_slots)


def set_engine_slots(slots: list[Slot]) -> None:
    """Set what `engine_slots` returns in this process. Called in the rollout worker before the engine is made."""
    _slots[:] = slots
