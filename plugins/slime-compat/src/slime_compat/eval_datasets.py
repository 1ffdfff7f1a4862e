"""`args.eval_datasets`: the evaluation sets as slime's functions read them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from slime_core.arguments.eval_config import METADATA, NOT_HERE, OPTION_OF
from slime_core.arguments.groups.evaluation import eval_sets

OF_THE_SET_ALONE = {"rm_type", "custom_generate_function_path"}
"""What the run says for all sets, and slime's sets say only where they have their own."""


class EvalDataset(SimpleNamespace):
    """One evaluation set, with the fields of slime's `EvalDatasetConfig`: `name`, `path`, what the set says itself, and what the run says
    where it does not. What has no effect here is None."""

    @property
    def cache_key(self) -> tuple[Any, ...]:
        """What rows are read by."""
        return self.name, self.path, self.input_key, self.label_key, self.tool_key, self.metadata_key

    def inject_metadata(self, sample_metadata: Any) -> dict[str, Any]:
        """The metadata of a row, with what the set says of it."""
        metadata = dict(sample_metadata) if isinstance(sample_metadata, dict) else {}
        reward = {} if self.rm_type is None else {"rm_type": self.rm_type}
        return {**metadata, **reward, **self.metadata_overrides}


def eval_datasets(args: Any) -> list[EvalDataset]:
    """The evaluation sets of a run, in their order; none where it has none."""
    return [_dataset(args, name, path) for name, path in eval_sets(args)]


def _dataset(args: Any, name: str, path: str) -> EvalDataset:
    own = args.eval_set_options.get(name, {})
    values = {
        key: own[option] if option in own else None if key in OF_THE_SET_ALONE else _of_the_run(args, option)
        for key, option in OPTION_OF.items()
    }
    absent = dict.fromkeys((*NOT_HERE, "no_stop_trim"))
    return EvalDataset(name=name, path=path, **absent, **values, metadata_overrides=dict(own.get(METADATA) or {}))


def _of_the_run(args: Any, option: str) -> Any:
    """The first of `eval_NAME`, `rollout_NAME` and `NAME` that says something."""
    name = option.removeprefix("eval_")
    found = (getattr(args, each, None) for each in (option, f"rollout_{name}", name))
    return next((value for value in found if value is not None), None)
