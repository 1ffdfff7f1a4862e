"""Where a run writes, and what happens when a hook function fails."""

from __future__ import annotations

from slime_core.contracts.options import ArgumentGroup, option


class OutputArguments(ArgumentGroup):
    """Output"""

    read_by_core = True

    run_dir: str | None = option(
        None,
        "Folder for metrics, configuration and evaluation samples. Default: --save, or runs/<time>.",
        env="SLIME_RUN_DIR",
        affects_result=False,
    )
    failure_policy: list[str] = option(
        [],
        "What to do when a hook function fails, as KIND:field=value,… with the fields timeout, retries, backoff, "
        "on_failure (raise or drop) and abort_after; for example reward:timeout=30,retries=0.",
        affects_result=False,
    )
    tracker: list[str] = option([], "Further trackers by name or import path.", affects_result=False)
