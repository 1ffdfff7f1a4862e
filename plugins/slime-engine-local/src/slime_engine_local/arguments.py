"""Options of the embedded engine. Imports nothing heavy."""

from __future__ import annotations

from slime_core.arguments import ArgumentGroup
from slime_core.arguments.option import option


class LocalEngineArguments(ArgumentGroup):
    """Embedded inference engine (--rollout-engine local)"""

    read_by = "engine:local"

    local_max_running_requests: int = option(
        64,
        "How many requests are decoded together; the others wait. Memory for keys and values grows with this number "
        "times the longest running sequence.",
        ge=1,
        affects_result=False,
    )
