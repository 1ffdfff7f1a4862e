"""slime's own options of the engine `sglang`. Imports nothing heavy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import SecretStr, model_validator

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class SGLangArguments(ArgumentGroup):
    """SGLang servers (--rollout-engine sglang); --sglang-… are SGLang's own options, --router-… those of its router"""

    families: ClassVar[dict[str, str]] = {
        "sglang_": "slime_engine_sglang.options:server_options",
        "router_": "slime_engine_sglang.options:router_options",
    }

    rollout_num_gpus_per_engine: int = option(
        1,
        "GPUs of one SGLang server, all on one machine: its tensor-parallel size times its pipeline-parallel size.",
        ge=1,
    )
    rollout_external_engine_addrs: list[str] | None = option(
        None, "HOST:PORT of SGLang servers that run already. slime then starts none.", affects_result=False
    )
    sglang_server_concurrency: int = option(
        512, "How many requests one server is sent at a time.", ge=1, affects_result=False
    )
    sglang_server_start_timeout: float = option(
        1800, "Seconds until a server that has been started must answer.", gt=0, affects_result=False
    )
    sglang_api_key: SecretStr | None = option(
        None,
        "The key that servers demand with every request: slime starts them with it, or sends it to servers that run already. "
        "Other users of the machine can read command lines: prefer env:NAME, an environment variable that holds it.",
        affects_result=False,
        secret=True,
    )
    sglang_router_ip: str | None = option(
        None, "Address of a router that runs already. slime then starts none.", affects_result=False
    )
    sglang_router_port: int | None = option(
        None, "Port of that router, or of slime's own. Default: one that is free.", ge=1, affects_result=False
    )
    sglang_router_request_timeout_secs: int = option(
        14400, "Seconds until the router gives up on a request.", ge=1, affects_result=False
    )
    use_fault_tolerance: bool = option(
        True,
        "Start servers and the router again when they have died, and repeat their requests. Keeps the newest weights "
        "in --update-weight-disk-dir for that. Without it, the death of a server ends the run.",
        affects_result=False,
    )
    rollout_health_check_interval: float = option(
        30.0, "Seconds between two health checks of a server.", gt=0, when="use_fault_tolerance", affects_result=False
    )
    rollout_health_check_timeout: float = option(
        30.0,
        "Seconds that a server has to answer a health check.",
        gt=0,
        when="use_fault_tolerance",
        affects_result=False,
    )
    rollout_health_check_failures: int = option(
        3,
        "Health checks in a row that a server must fail to be taken for dead. One whose process has ended is dead at "
        "once.",
        ge=1,
        when="use_fault_tolerance",
        affects_result=False,
    )
    update_weight_transport: Literal["nccl", "tensor", "disk"] = option(
        "nccl",
        "How new weights reach the servers: broadcast in a process group of trainer and servers (gloo where there is "
        "no GPU, and with --colocate, since NCCL does not share GPUs), in the body of HTTP requests, or "
        "through --update-weight-disk-dir.",
        affects_result=False,
    )
    update_weight_disk_dir: str | None = option(
        None,
        "Folder for the newest weights, which trainer and servers must share. A folder in memory, such as one in "
        "/dev/shm, is fine. Default: weights, in the run directory.",
        affects_result=False,
    )
    pause_generation_mode: Literal["in_place", "retract"] = option(
        "in_place",
        "What becomes of requests that run while weights are replaced: they go on with the keys and values that the "
        "old weights made, or all of those are computed anew.",
    )
    check_weight_update_equal: bool = option(
        False,
        "Overwrite the weights of the servers with random numbers before the first update of a new run, and compare them afterwards with "
        "those that the servers had loaded. After every update, compare the checksums of all weights between the servers.",
        affects_result=False,
    )

    @model_validator(mode="after")
    def _refuse_what_cannot_be_served_here(self) -> SGLangArguments:
        from slime_engine_sglang.low_precision import refused

        if why := refused(self):
            raise ValueError(why)
        return self


class SGLangRunArguments(RunArguments, SGLangArguments):
    """The options of a run together with those of this package, for annotations. At run time there are also those of
    SGLang and of the router that somebody set; see `slime_engine_sglang.options`."""
