"""Components of slime's own shapes, made to fit the contracts here, or told what to change. Called when one is selected.

Most hooks of slime have its shape here too. These differ:

importance_weights.py  functions for `--custom-tis-function-path`, which scale the loss of each token in place of giving weights
advantages.py          functions for `--custom-advantage-function-path`, which write into the data of a rollout
data_sources.py        data sources that keep their state in files of their own (`save` and `load`)
losses.py              losses over logits, which cannot be made to fit
parameters.py          looks at the parameters of functions

`slime_core.contracts.rollout_outputs` reads what slime's rollout functions return.
"""

from __future__ import annotations

from typing import Any

from slime_core.plugins.slime_shapes import advantages, data_sources, importance_weights, losses

_MADE_TO_FIT = {
    "importance_weight": importance_weights.made_to_fit,
    "advantage": advantages.made_to_fit,
    "data_source": data_sources.made_to_fit,
}
_TO_CHANGE = {"loss": losses.what_to_change}


def made_to_fit(kind: str, component: Any) -> Any:
    """Return a component that keeps the contract of its kind for one of slime's shape; any other as it is."""
    return _MADE_TO_FIT[kind](component) if kind in _MADE_TO_FIT else component


def what_to_change(kind: str, component: Any) -> str:
    """A sentence, with a space in front, on what to change in a component of slime's shape that cannot be made to fit; "" for any
    other."""
    return _TO_CHANGE[kind](component) if kind in _TO_CHANGE else ""
