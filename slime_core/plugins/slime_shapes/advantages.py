"""Estimators of slime: `(args, rollout_data) -> None`, which set `rollout_data["advantages"]` and `["returns"]`, a list of one
tensor for each sample.

`RolloutData` is what they are given: the inputs of the contract, which also answer to slime's keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from slime_core.contracts.advantage import AdvantageInputs, AdvantageOutputs
from slime_core.contracts.loss import reads
from slime_core.errors import PluginError
from slime_core.plugins.slime_shapes.parameters import in_place_of, parameters, positional, required

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments

_GROUPED = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")
_STANDARDISED = ("grpo", "gspo", "cispo")


def made_to_fit(component: Any) -> Any:
    """Return the estimator with the contract `slime_core.contracts.advantage.advantages` for one of slime's shape, which is one
    whose second parameter has another name than `inputs`, that needs no third, and that does not say what it reads."""
    taken = parameters(component)
    second = positional(taken)[1:2]
    if second in ([], ["inputs"]) or len(required(taken)) > 2 or hasattr(component, "slime_reads"):
        return component

    @reads(lambda args: {"old_log_probs", "ref_log_probs"} if getattr(args, "kl_coef", 0.0) else {"old_log_probs"})
    @in_place_of(component)
    def estimate(args: RunArguments, inputs: AdvantageInputs) -> AdvantageOutputs:
        data = RolloutData.of(args, inputs)
        result: Any = component(args, data)
        return data.outputs() if result is None else result

    return estimate


class RolloutData(AdvantageInputs):
    """`AdvantageInputs` that can also be read and written under slime's keys, as lists of one entry for each sample.

    The keys are "rewards" (normalised within their groups as slime does, unless they are final), "raw_reward", "loss_masks",
    "response_lengths", and where they were computed "log_probs" (under --use-rollout-logprobs "rollout_log_probs"), "ref_log_probs" and
    "values"; "kl" is zeros without --kl-coef.
    """

    @classmethod
    def of(cls, args: RunArguments, inputs: AdvantageInputs) -> RolloutData:
        """Make it of the inputs of the contract."""
        data = cls(**{field.name: getattr(inputs, field.name) for field in fields(inputs)})
        found: dict[str, Any] = {
            **rewards_of(args, inputs),
            "response_lengths": inputs.lengths.tolist(),
            "loss_masks": data._by_sample(inputs.loss_mask),
        }
        old = "rollout_log_probs" if getattr(args, "use_rollout_logprobs", False) else "log_probs"
        for key, name in ((old, "log_probs"), ("ref_log_probs",) * 2, ("values",) * 2):
            if (values := getattr(inputs, name)) is not None:
                found[key] = data._by_sample(values)
        if not getattr(args, "kl_coef", 0.0):
            found["kl"] = data._by_sample(inputs.loss_mask * 0)
        object.__setattr__(data, "_found", found)
        return data

    def __getitem__(self, key: str) -> Any:
        if key not in self._data:
            raise PluginError(
                f"The rollout data has no {key!r} for an advantage estimator; it has {', '.join(self._data)}. Write the estimator "
                "as (args, inputs), and name with @reads what else is to be computed."
            )
        return self._data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def get(self, key: str, default: Any = None) -> Any:
        """What stands under a key, or the default."""
        return self._data.get(key, default)

    def keys(self) -> list[str]:
        """The keys, those that were set included."""
        return list(self._data)

    def outputs(self) -> AdvantageOutputs:
        """What the estimator has set.

        Raises:
            PluginError: it has set no advantages, or not one tensor for each sample.
        """
        if "advantages" not in self._data:
            raise PluginError('It returned None and set no rollout_data["advantages"]; expected an AdvantageOutputs.')
        returns = self._data.get("returns")
        return AdvantageOutputs(
            self._joined("advantages", self._data["advantages"]),
            None if returns is None else self._joined("returns", returns),
        )

    @property
    def _data(self) -> dict[str, Any]:
        found: dict[str, Any] = self.__dict__["_found"]
        return found

    def _by_sample(self, values: Tensor) -> list[Tensor]:
        import torch

        return list(torch.split(values, self.lengths.tolist()))

    def _joined(self, name: str, values: Any) -> Tensor:
        import torch

        rows = [torch.as_tensor(row, dtype=torch.float64).detach().cpu() for row in values]
        wanted = self.lengths.tolist()
        if [tuple(row.shape) for row in rows] != [(length,) for length in wanted]:
            raise PluginError(
                f"It set {name} of the shapes {[tuple(row.shape) for row in rows][:5]}; expected for each sample a tensor with one "
                f"number for each response token, {wanted[:5]}, …"
            )
        return torch.cat(rows)


def rewards_of(args: RunArguments, inputs: AdvantageInputs) -> dict[str, list[float]]:
    """What slime calls "rewards" and "raw_reward": one number for each sample."""
    raw = inputs.rewards if inputs.raw_rewards is None else inputs.raw_rewards
    return {"rewards": _normalised(args, inputs).tolist(), "raw_reward": raw.tolist()}


def _normalised(args: RunArguments, inputs: AdvantageInputs) -> Tensor:
    """The rewards as slime hands them to an estimator: minus the mean of their group, and for some estimators divided by its
    standard deviation. A trajectory counts once, however many segments it has."""
    import torch

    rewards, estimator = inputs.rewards, getattr(args, "advantage_estimator", "")
    if inputs.rewards_are_final or estimator not in _GROUPED or getattr(args, "disable_rewards_normalization", False):
        return rewards
    trajectories = torch.arange(len(rewards)) if inputs.trajectory_index is None else inputs.trajectory_index
    share = 1.0 / torch.bincount(trajectories)[trajectories].to(rewards)  # of a segment in its trajectory
    made = rewards.clone()
    for group in set(inputs.group_index.tolist()):
        own = inputs.group_index == group
        above = rewards[own] - rewards[own].min()  # so that equal rewards give exactly 0
        count = share[own].sum()
        made[own] = above - (above * share[own]).sum() / count
        if estimator in _STANDARDISED and not getattr(args, "disable_grpo_std_normalization", False):
            variance = (made[own].square() * share[own]).sum() / (count - 1).clamp(min=1)
            made[own] /= variance.sqrt() + 1e-6
    return made
