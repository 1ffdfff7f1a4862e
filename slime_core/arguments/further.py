"""Components that the core does not call itself: rewards, filters, loss masks, and whatever kinds are added later. They are
chosen by options that other components read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_core.arguments.groups import RunArguments
from slime_core.arguments.readers import is_read, options_read
from slime_core.contracts.kinds import KINDS
from slime_core.plugins import Plugins, Selected


def choose_further(args: RunArguments, plugins: Plugins, readers: Sequence[Selected[Any]]) -> dict[str, Selected[Any]]:
    """Select components of the kinds that the core does not call itself, and return them by kind.

    Those are selected whose option one of `readers` declares to read. A reader that declares nothing may read what the
    installed components of its kind declare, and what nobody declares; of these, those are selected that somebody asked for.
    """
    silent = {reader.kind for reader in readers if reader.reads_options is None}
    fields = type(args).model_fields
    found: dict[str, Selected[Any]] = {}
    for kind in KINDS.values():
        for flag in kind.options if kind.name not in _CHOSEN_ELSEWHERE else ():
            option = flag.removeprefix("--").replace("-", "_")
            name = getattr(args, option, None)
            if not name:
                continue
            asked_for = bool(silent) and name != fields[option].default
            if is_read(option, readers, args) or (asked_for and _may_read(silent, option, args, plugins)):
                found[kind.name] = plugins.select(kind.name, name, flag)
    return found


def _may_read(kinds: set[str], option: str, args: RunArguments, plugins: Plugins) -> bool:
    """Whether components of these kinds that declare nothing may read an option."""
    declaring = {c.kind for c in plugins.all_components() if option in options_read(c.reads_options or (), type(args))}
    return not declaring or not kinds.isdisjoint(declaring)


_CHOSEN_ELSEWHERE = {
    *("command", "checkpoint_conversion", "converter"),  # by the command line
    *("tracker", "rollout_log", "eval_rollout_log"),  # by the driver
    *(
        "rollout",
        "data_source",
        "buffer_pop",
        "sample_converter",
        "reward_post_process",
        "engine",
        "sample_hook",
    ),  # by the rollout worker
    *(
        "loss",
        "advantage",
        "importance_weight",
        "pg_loss_reducer",
        "rollout_data_postprocess",
        "train_backend",
    ),  # by training
    "checkpoint_format",  # by a checkpoint
}
