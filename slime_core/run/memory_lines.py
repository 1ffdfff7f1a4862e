"""The memory of a planned run in words, for `slime check`."""

from __future__ import annotations

import importlib.util
import os

from slime_core.another_machine import is_for_another_machine
from slime_core.errors import SlimeError
from slime_core.run.memory import GIB, estimate
from slime_core.run.plan import Plan
from slime_core.runtime.hardware import visible_hardware, visible_memory

NEEDED = ("torch", "transformers")


def memory_lines(plan: Plan, gpu_memory: float | None = None) -> list[str]:
    """What each process will hold, and whether it has room where that can be known.

    Args:
        gpu_memory: GiB of a GPU that the run is for; None: of the one that is here, or of this machine, if the run is for it.
    """
    if plan.configuration is None:
        return ["not estimated: there is no configuration of the model on this machine"]
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return [f"not estimated: {' and '.join(missing)} is not installed here"]
    from slime_core.training.checkpoint_check import read_configuration
    from slime_core.training.model_facts import ModelFacts, keep, kept

    elsewhere = is_for_another_machine(plan.args)
    on_gpu = elsewhere or gpu_memory is not None or visible_hardware().capability is not None
    limit = gpu_memory
    if limit is None and not elsewhere:
        limit = (visible_memory() if on_gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / GIB or None
    try:
        facts = kept(plan.configuration)
        if facts is None:
            from slime_core.tensors.model_shape import shape_of

            config = read_configuration(plan.configuration, "--hf-checkpoint")
            facts = ModelFacts.of(config, shape_of(config))
            keep(plan.configuration, facts)
        found = estimate(
            plan.args, plan.components, plan.layout, facts.shape, on_gpu=on_gpu, limit=limit if on_gpu else None
        )
    except (SlimeError, ValueError, KeyError, TypeError) as error:  # a model of a kind that the estimate does not know
        return [f"not estimated: {type(error).__name__}: {' '.join(str(error).split())}"]
    lines = found.lines(limit if on_gpu or plan.layout is None else None)
    if limit is None:
        lines.append("whether that has room: give --gpu-memory N, the GiB of one GPU")
    return lines
