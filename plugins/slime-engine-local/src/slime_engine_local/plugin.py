"""What this distribution provides to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_engine_local.arguments import LocalEngineArguments

    return [LocalEngineArguments]


@hookimpl
def slime_engines() -> dict[str, Lazy]:
    return {
        "local": Lazy(
            "slime_engine_local.engine:LocalEngine",
            "continuous batching on the Hugging Face model, in this process",
            reads_options=("LocalEngineArguments", "image_min_pixels", "image_max_pixels"),
            check="slime_engine_local.checks:check",
        )
    }
