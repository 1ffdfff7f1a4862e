"""What the engine of SGLang's servers sees of a run before it starts. Named by the plugin (`slime_core.contracts.checking`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from slime_core.contracts.checking import Checking

if TYPE_CHECKING:
    from slime_engine_sglang.arguments import SGLangRunArguments


def check(args: SGLangRunArguments, checking: Checking) -> None:
    """Say that SGLang is not installed here, where servers are to be started."""
    if not args.rollout_external_engine_addrs and find_spec("sglang") is None:
        checking.not_seen(
            "SGLang is not installed here: whether its servers start with this model and these options was not looked at. It must "
            "be installed on the machines that serve."
        )
