"""The options of the embedded engine. Imports nothing heavy."""

from __future__ import annotations

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class LocalEngineArguments(ArgumentGroup):
    """Embedded inference engine (--rollout-engine local)"""

    local_max_running_requests: int = option(
        64, "How many requests are decoded together; the others wait.", ge=1, affects_result=False
    )
    local_max_total_tokens: int = option(
        65536,
        "Keep the keys and values of so many tokens. When the running requests need more, the youngest wait, and their "
        "tokens are computed anew later; their responses do not change. Bounds prompt and response of one request.",
        ge=1,
        affects_result=False,
    )


class LocalRunArguments(RunArguments, LocalEngineArguments):
    """The options of a run together with those of this package, for annotations."""
