"""Training ranks, and where they and the engine are placed."""

from __future__ import annotations

from slime_core.contracts.options import ArgumentGroup, option


class ClusterArguments(ArgumentGroup):
    """Ranks and placement"""

    read_by_core = True
    of_layout = True

    actor_num_nodes: int = option(
        1, "Machines that train; each runs --actor-num-gpus-per-node ranks.", ge=1, affects_result=False
    )
    actor_num_gpus_per_node: int = option(
        1,
        "Training ranks on each machine: one GPU each, or about one CPU each where there are no GPUs. More than one rank "
        "in all runs on Ray.",
        ge=1,
        affects_result=False,
    )
    rollout_num_gpus: int | None = option(
        None,
        "GPUs (CPUs where there are none) for the inference engine, apart from those that train. Default: 1 for an engine "
        "inside the rollout worker.",
        ge=1,
        when="rollout_engine",
        affects_result=False,
    )
    colocate: bool = option(
        False,
        "Put the inference engine on the devices that train, instead of on --rollout-num-gpus others.",
        when="rollout_engine",
        affects_result=False,
    )
    update_weight_buffer_size: int = option(
        512 * 2**20,
        "Bytes of weights that travel from the trainer to the engine in one piece; a larger weight is a piece of its own.",
        ge=1,
        when="rollout_engine",
        affects_result=False,
    )
    offload: bool = option(
        False,
        "What trains gives its GPU memory back while samples are generated, and the engine while training. Needs a train "
        "backend and an engine that can.",
        when="colocate",
        affects_result=False,
    )
    ray_address: str | None = option(
        None,
        "Run on this Ray cluster even with one rank: HOST:PORT; 'auto': the one that this machine belongs to; 'local': a "
        "new one on this machine. Default: in one process or, with more than one rank, 'local'.",
        env="RAY_ADDRESS",
        affects_result=False,
    )
