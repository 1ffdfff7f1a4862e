"""What hook files of slime read from `args` and nobody can set here. Imports nothing heavy."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlsplit

from slime_compat.eval_datasets import eval_datasets
from slime_core.contracts.options import ArgumentGroup

ENGINE_HOST, ENGINE_PORT = "engine.invalid", 30000
"""The address by which hooks name the run's engine where no router was named. No name service knows a host of the domain
`invalid` (RFC 2606): what is not sent by `post` fails, and reaches nobody else's server."""


class SlimeAttributes(ArgumentGroup):
    """Hook files of slime"""

    attributes: ClassVar[dict[str, Any]] = {
        "sglang_router_ip": ENGINE_HOST,
        "sglang_router_port": ENGINE_PORT,
        "sglang_model_routers": None,
        "sglang_server_concurrency": 512,
        "sglang_dp_size": 1,
        "sglang_enable_deterministic_inference": False,
        "sglang_speculative_algorithm": None,
        "router_policy": None,
        "context_parallel_size": 1,
        "use_rollout_routing_replay": False,
        "use_distributed_post": False,
        "rollout_global_dataset": True,
        "rollout_num_engines": 1,
        "ci_test": False,
        # what slime derives from other options
        "eval_max_context_len": lambda args: args.rollout_max_context_len,
        "eval_datasets": eval_datasets,
        "eval_reward_key": lambda args: args.reward_key,
        "over_sampling_batch_size": lambda args: args.rollout_batch_size,
        "rewards_normalization": lambda args: not args.disable_rewards_normalization,
        "grpo_std_normalization": lambda args: (
            not args.disable_grpo_std_normalization and args.n_samples_per_prompt > 1
        ),
        "compute_advantages_and_returns": lambda args: not args.disable_compute_advantages_and_returns,
    }


def is_the_engine(url: str, args: Any) -> bool:
    """Whether a URL names the run's engine: it is built from `args.sglang_router_ip` and `args.sglang_router_port`, or from the
    address that stands for them.

    Args:
        args: the arguments of the run, None where there is none.
    """
    own = [(ENGINE_HOST, ENGINE_PORT)]
    if args is not None:
        own.append((args.sglang_router_ip, args.sglang_router_port))
    return urlsplit(url).netloc in {f"{host}:{port}" for host, port in own}
