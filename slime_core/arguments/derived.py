"""`derived`: options that are None until the arguments are resolved, and never afterwards."""

from __future__ import annotations

from typing import TypeVar

from slime_core.errors import ArgumentError

Value = TypeVar("Value")


def derived(value: Value | None) -> Value:
    """The value of an option that `slime_core.arguments.resolve` fills in: `num_rollout`, `global_batch_size`,
    `num_steps_per_rollout`, `eval_function_path`, `run_dir`.

    Raises:
        ArgumentError: it is None, so the arguments have not been resolved.
    """
    if value is None:
        raise ArgumentError("These arguments are not complete: make them with slime_core.arguments.resolve.resolve.")
    return value
