"""Data sources of slime: classes with `save(rollout_id)` and `load(rollout_id)`, which keep their state in files under `--save`, in
place of `state_dict` and `load_state_dict`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from slime_core.contracts.data import UNKNOWN_LENGTH
from slime_core.errors import CheckpointError


def made_to_fit(component: Any) -> Any:
    """Return a subclass that is a `slime_core.contracts.data.DataSource` for a class of slime's shape."""
    if not inspect.isclass(component) or hasattr(component, "state_dict"):
        return component
    if not all(callable(getattr(component, name, None)) for name in ("get_samples", "save", "load")):
        return component
    members: dict[str, Any] = {"__module__": component.__module__, "__doc__": component.__doc__}
    members["__init__"] = _remembering_arguments(component.__init__)
    return type(component.__name__, (component, _KeepsItsState), members)


def _remembering_arguments(init: Any) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, args: Any, *further: Any, **extras: Any) -> None:
        self._slime_args, self._slime_rollout_id = args, None
        init(self, args, *further, **extras)

    return __init__


class _KeepsItsState:
    """What a data source of slime lacks.

    It is asked to save itself whenever its state is needed, which is after every rollout, and only where there is a `--save` to
    save to. Its file is under the number of the rollout, as in slime, so a checkpoint names that alone.
    """

    _slime_args: Any
    _slime_rollout_id: int | None

    def __call__(self, num_samples: int) -> Any:
        """The next groups: slime hands `get_samples` itself to `--rollout-all-samples-process-path`."""
        return self.get_samples(num_samples)  # type: ignore[attr-defined]  # of the class that this is mixed into

    def rollout_started(self, rollout_id: int) -> None:
        """Note the rollout under whose number the state will be saved."""
        self._slime_rollout_id = rollout_id

    def state_dict(self) -> dict[str, Any]:
        """Have the source save itself, and return the number of the rollout and where it was saved."""
        folder = self._slime_args.save
        if folder is not None and self._slime_rollout_id is not None:
            self.save(self._slime_rollout_id)  # type: ignore[attr-defined]  # of the class that this is mixed into
        return {"rollout_id": self._slime_rollout_id, "save": folder}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the source load what it saved after that rollout. It reads `args.load`, which is where it was saved."""
        if state.get("save") is None or state.get("rollout_id") is None:
            raise CheckpointError(
                f"The data source {type(self).__name__} keeps its state in files under --save, which the run of the checkpoint "
                "did not have; start a new run from the exported weights, or continue with --save from the beginning."
            )
        object.__setattr__(self._slime_args, "load", state["save"])  # in the source's own arguments
        self.load(state["rollout_id"])  # type: ignore[attr-defined]  # of the class that this is mixed into

    def fingerprint(self) -> dict[str, str]:
        """Return {}: what the source reads is not known here."""
        return {}

    def __len__(self) -> int:
        """Not known, so that a run needs `--num-rollout`; a class that has a length of its own goes by that."""
        return UNKNOWN_LENGTH
