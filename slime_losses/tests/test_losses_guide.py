"""docs/losses.md names every component and option there is, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from policy_cases import arguments, loss_inputs, rows, weights_of

from slime_core.contracts.advantage import AdvantageInputs
from slime_core.contracts.loss import what_reads
from slime_core.plugins.registry import contract_problems
from slime_losses import plugin

GUIDE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def test_every_component_and_option_is_in_the_guide() -> None:
    hooks = (
        plugin.slime_losses,
        plugin.slime_advantages,
        plugin.slime_importance_weights,
        plugin.slime_reward_post_processes,
    )
    names = [f"`{name}`" for hook in hooks for name in hook() if name != "dapo_overlong"]
    flags = ["--" + name.replace("_", "-") for group in plugin.slime_argument_groups() for name in group.model_fields]
    assert [word for word in [*names, *flags, "dapo_overlong"] if word not in GUIDE] == []


def test_options_in_the_guide_exist(tmp_path: Path) -> None:
    from slime_core.arguments.namespace import Namespace
    from slime_core.plugins import Plugins

    known = {option.flag for option in Namespace(Plugins()).options.values()} | {"--components"}
    assert sorted(set(re.findall(r"--[a-z][a-z-]*", GUIDE)) - known) == []


def test_the_example_keeps_its_contracts_and_does_what_it_says() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    made: dict[str, Any] = {}
    exec(block, made)
    assert contract_problems("loss", made["my_loss"]) == contract_problems("advantage", made["my_advantages"]) == []
    assert what_reads(made["my_loss"], arguments()) == {"advantages"}
    batch = rows(0)
    inputs = loss_inputs(batch, weights_of(batch, "sample"))
    assert torch.equal(made["my_loss"](None, inputs).loss, inputs.reduce(-inputs.advantages * inputs.log_probs))
    signals = AdvantageInputs(
        rewards=torch.tensor([1.0, 0.0]).double(),
        group_index=torch.tensor([0, 0]),
        lengths=torch.tensor([1, 2]),
        loss_mask=torch.tensor([1.0, 1.0, 0.0]).double(),
        sample_index=torch.tensor([0, 1, 1]),
    )
    assert made["my_advantages"](None, signals).advantages.tolist() == [0.5, -0.5, 0.0]
