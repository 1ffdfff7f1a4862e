"""What this distribution provides to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_engine_sglang.arguments import SGLangArguments

    return [SGLangArguments]


@hookimpl
def slime_engines() -> dict[str, Lazy]:
    return {
        "sglang": Lazy(
            "slime_engine_sglang.engine:SGLangEngine",
            "SGLang servers, started or external, behind SGLang's router",
            reads_options=("SGLangArguments", "SglangOptions", "RouterOptions"),
            check="slime_engine_sglang.checks:check",
        )
    }
