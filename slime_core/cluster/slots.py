"""Where an engine that starts processes of its own (its class has `needs_ray = True`) may put them.

Such an engine is made in the rollout worker. There, `engine_slots()` gives one slot for each of its devices; whatever it
starts through Ray takes a slot's resources in the slot's place:

    ray.remote(Server).options(**slot.options()).remote(…)
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from slime_core.cluster.layout import Resources

_slots: list[Slot] = []


@dataclass(frozen=True)
class Slot:
    """One device of the engine's.

    Attributes:
        group, bundle: the place: a bundle of a Ray placement group.
        resources: what a process in it takes, as {"CPU": …, "GPU": …}; less than a GPU where it is shared with training.
    """

    group: Any
    bundle: int
    resources: Resources

    def options(self, devices: int = 1) -> dict[str, Any]:
        """Options of the Ray actor that takes this slot; with several devices it must find room in the whole group."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        bundle = self.bundle if devices == 1 else -1
        # What is importable here, by whatever path, shall be importable there.
        environment = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        return {
            "runtime_env": {"env_vars": environment},
            "num_cpus": self.resources["CPU"] * devices,
            "num_gpus": self.resources.get("GPU", 0) * devices,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self.group, bundle),
        }


def engine_slots() -> list[Slot]:
    """The slots of this process's engine, in the order of their machines. Empty without a cluster."""
    return list(_slots)


def set_engine_slots(slots: list[Slot]) -> None:
    """Called in the rollout worker before the engine is made."""
    _slots[:] = slots
