"""Components that the core does not call itself: rewards, filters, loss masks, and whatever kinds are added later. They are
chosen by options that other components read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_core.arguments.groups import RunArguments
from slime_core.arguments.readers import is_read
from slime_core.contracts.kinds import KINDS
from slime_core.plugins import Plugins, Selected


def choose_further(args: RunArguments, plugins: Plugins, readers: Sequence[Selected[Any]]) -> dict[str, Selected[Any]]:
    """Select components of the kinds that the core does not call itself, and return them by kind.

    Those are selected whose option one of `readers` declares to read and, if a reader declares nothing, those that somebody
    asked for.
    """
    silent = any(reader.reads_options is None for reader in readers)
    fields = type(args).model_fields
    found: dict[str, Selected[Any]] = {}
    for kind in KINDS.values():
        for flag in kind.options if kind.name not in _CHOSEN_ELSEWHERE else ():
            option = flag.removeprefix("--").replace("-", "_")
            name = getattr(args, option, None)
            if name and (is_read(option, readers, args) or (silent and name != fields[option].default)):
                found[kind.name] = plugins.select(kind.name, name, flag)
    return found


_CHOSEN_ELSEWHERE = {
    *("command", "converter", "tracker", "rollout_log", "eval_rollout_log"),  # by the command line, or the driver
    *("rollout", "data_source", "buffer_pop", "sample_converter", "engine"),  # by the rollout worker
    *("loss", "advantage", "importance_weight", "reward_post_process", "train_backend"),  # by training
}
