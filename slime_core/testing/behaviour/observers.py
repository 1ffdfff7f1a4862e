"""Observers: what each is told, as a small run would tell it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slime_core.testing.inputs import groups
from slime_core.testing.small_run import SmallRun
from slime_core.training.token_numbers import TokenNumbers

STEP = {"loss": 1.5, "grad_norm": 0.5, "lr": 1e-6, "num_tokens": 28, "num_trained_tokens": 12}


def _checkpoint(run: SmallRun) -> Path:
    folder = run.folder / "save" / "iter_0000001"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run_dir(run: SmallRun) -> Path:
    folder = run.folder / "run"
    folder.mkdir(exist_ok=True)
    return folder


def _trained() -> TokenNumbers:
    samples = [sample for group in groups(2) for sample in group]
    return TokenNumbers(samples, {"advantages": [[0.5] * sample.response_length for sample in samples]})


TOLD: dict[str, Callable[[SmallRun], dict[str, Any]]] = {
    "slime_run_started": lambda run: {"run_dir": _run_dir(run)},
    "slime_rollout_finished": lambda run: {"rollout_id": 0, "groups": groups(2), "metrics": {"tokens": 17.0}},
    "slime_before_log_probs": lambda run: {"rollout_id": 0},
    "slime_before_train_step": lambda run: {"rollout_id": 0, "step": 0},
    "slime_train_step_finished": lambda run: {"rollout_id": 0, "step": 0, "metrics": dict(STEP)},
    "slime_rollout_trained": lambda run: {"rollout_id": 0, "tokens": _trained()},
    "slime_weights_updated": lambda run: {"version": 1, "seconds": 0.25},
    "slime_eval_finished": lambda run: {"rollout_id": 0, "metrics": {"eval/heldout/loss": 1.5}},
    "slime_checkpoint_saved": lambda run: {"rollout_id": 0, "path": _checkpoint(run)},
    "slime_run_finished": lambda run: {"error": None},
}
"""By hook, in the order in which a run calls them; `args` comes on top."""
