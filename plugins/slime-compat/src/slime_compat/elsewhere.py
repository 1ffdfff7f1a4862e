"""Names of slime that are not here: what to use instead. `import slime.x` and `from slime.x import y` say so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ROLLOUT_FUNCTION = (
    "The run calls its rollout function itself; choose it with --rollout-function-path (slime's own is `rl` here, for training "
    "that goes on meanwhile `fully_async`). What differs for one prompt goes into a generate function "
    "(--custom-generate-function-path); a rollout function of your own returns slime_core.sample.RolloutOutput and names the "
    "parameters `engine` and `components` (docs/hooks.md)."
)
_SAMPLING = (
    "The rollout function starts, stops and counts samples itself; a generate function is called for each sample."
)
_DATA_SOURCE = (
    "Subclass slime_core.data.source.GlobalDataSource, which is what --data-source-path "
    "slime.rollout.data_source.RolloutDataSourceWithBuffer chooses here (docs/hooks.md, slime_data_sources)."
)
IMAGES = (
    "The run reads images itself: sample.images has them encoded, sample.tokens with as many image tokens as the model makes features, "
    "and the engine is shown them with these (docs/images.md)."
)
_ADVICE = {
    "slime.agent": "Agents that speak to the model over HTTP have no server here; write the turns in a generate function.",
    "slime.backends.sglang_utils": "slime-engine-sglang starts and configures SGLang's servers (docs/sglang.md).",
    "slime.backends.megatron_utils.cp_utils": "Losses and corrections are given whole samples, also under context parallelism, and the mean "
    "over them as inputs.reduce (docs/losses.md).",
    "slime.backends": "slime-megatron and slime-torch train; what a backend of your own needs is in slime_core.tensors.",
    "slime.observability": "Traces are not recorded here: leave the decorators and spans out; how long hooks take is in the metrics "
    "perf/hooks/…. Metrics of your own come from the hooks of docs/hooks.md, such as slime_rollout_logs.",
    "slime.ray": "The run places its workers itself (docs/cluster.md).",
    "slime.rollout.base_types": _ROLLOUT_FUNCTION,
    "slime.rollout.data_source": _DATA_SOURCE,
    "slime.rollout.filter_hub": "See slime_core.contracts.rollout.dynamic_filter.",
    "slime.rollout.on_policy_distillation": "A teacher's log-probs are no part of training here.",
    "slime.rollout.rm_hub.ifbench": "docs/rewards.md shows how IFBench is called in a reward of your own.",
    "slime.rollout.rm_hub": "Choose a reward with --rm-type (docs/rewards.md), or grade with async_rm.",
    "slime.rollout.sample_hooks": "--rollout-sample-hook-path calls its hooks itself.",
    "slime.rollout.sft_rollout": "--rollout-function-path slime.rollout.sft_rollout.generate_rollout chooses it here, too.",
    "slime.rollout.sglang_rollout.GenerateState": _SAMPLING,
    "slime.rollout.sglang_rollout.abort": _SAMPLING,
    "slime.rollout": _ROLLOUT_FUNCTION,
    "slime.utils.arguments": "Arguments are read by slime-core; options of your own come with a plugin (docs/write-a-plugin.md).",
    "slime.utils.data": "slime_core.data reads rows (docs/data.md).",
    "slime.utils.eval_config": "Evaluation sets are named by --eval-prompt-data and --eval-config.",
    "slime.utils.external_utils": "Launch scripts call `slime train` themselves.",
    "slime.utils.mask_utils": "Loss masks of conversations are chosen by --loss-mask-type (docs/sft.md).",
    "slime.utils.ppo_utils": "Losses and estimators are in slime_losses (docs/losses.md).",
    "slime.utils.processing_utils": IMAGES,
    "slime.utils": "",
    "slime.utils.types": "",
}
"""What to do instead, by the beginning of the name; the longest one counts."""


def not_here(name: str) -> str:
    """Return the message about a name of slime, such as "slime.utils.ppo_utils", that is not here."""
    parts = name.split(".")
    known = (_ADVICE.get(".".join(parts[:count])) for count in range(len(parts), 0, -1))
    advice = next((text for text in known if text is not None), "")
    return f"slime-compat has no {name!r}; it has what hook files of slime import (docs/slime-compat.md). {advice}".rstrip()


def attributes_of(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module: it says what to use instead of a name of slime that is not here.

    `from slime.x import y` shows no other error than `ImportError`, so that is what it raises.
    """

    def missing(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise ImportError(not_here(f"{module}.{name}"), name=module)

    return missing


class _MissingModules(MetaPathFinder):
    """Asked last, for modules of `slime` that nobody has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.startswith("slime."):
            raise ModuleNotFoundError(not_here(fullname), name=fullname)
        return None


def tell_of_missing_modules() -> None:
    """Have `import slime.x` say what to use instead, where there is no such module here."""
    if not any(isinstance(finder, _MissingModules) for finder in sys.meta_path):
        sys.meta_path.append(_MissingModules())
