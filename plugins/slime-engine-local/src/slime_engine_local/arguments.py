"""The options of the embedded engine. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option

Decoding = Literal["auto", "rows", "pages"]


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
    local_decoding: Decoding = option(
        "auto",
        "How running requests are decoded. rows: with shapes that follow the requests, which is faster on a CPU. pages: with "
        "fixed shapes and tokens chosen on the device, which a GPU replays as a CUDA graph (no GPU has run it yet). auto: pages on "
        "a GPU, if the model is found to compute the same so, else rows.",
        affects_result=False,
    )


class LocalRunArguments(RunArguments, LocalEngineArguments):
    """The options of a run together with those of this package, for annotations."""
