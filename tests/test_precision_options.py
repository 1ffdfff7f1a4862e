"""A precision recipe is chosen by Megatron's flags, and only where the train backend computes by it."""

from __future__ import annotations

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.run.plan import make_plan

BACKEND = """
@hookimpl
def slime_train_backends():
    from slime_torch.backend import TorchBackend

    class Backend(TorchBackend):
        "Says that it computes by a precision recipe."

    Backend.reads_options = ("fp8_recipe?fp8_format",)
    return {"low": Backend}
"""


def planned(words):
    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words, env={}), plugins)
    plan.close()
    return plan


@pytest.mark.parametrize("name", ["tensorwise", "delayed", "blockwise", "mxfp8"])
def test_a_backend_that_declares_it_gets_the_recipe_of_the_flags(install_plugin, sft, name):
    install_plugin(BACKEND)
    words = [*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-recipe", name]
    plan = planned(words)
    recipe = plan.components.training.further["precision_recipe"]
    assert recipe.name == name
    assert not [note for note in plan.notes if "fp8" in note]
    made = recipe(plan.args, 4)
    assert made.quantises("model.layers.1.mlp.up_proj.weight", (64, 64))
    assert made.refusal(Hardware("CPU")).startswith(f"{name} needs compute capability")


def test_without_a_format_no_recipe_is_chosen_and_its_name_has_no_effect(install_plugin, sft):
    install_plugin(BACKEND)
    plan = planned([*sft, "--train-backend", "low", "--fp8-recipe", "blockwise"])
    assert "precision_recipe" not in plan.components.training.further
    assert "--fp8-recipe has no effect without --fp8-format." in plan.notes


def test_the_recipe_is_megatron_s_default_where_none_is_named(install_plugin, sft):
    install_plugin(BACKEND)
    plan = planned([*sft, "--train-backend", "low", "--fp8-format", "hybrid"])
    assert plan.components.training.further["precision_recipe"].name == "delayed"


def test_a_backend_that_does_not_compute_in_fp8_refuses_the_format(sft):
    with pytest.raises(ArgumentError, match=r"--fp8-format e4m3: the train_backend 'torch' .* does not compute in FP8"):
        planned([*sft, "--fp8-format", "e4m3"])


def test_options_of_other_recipes_have_no_effect_and_those_of_the_chosen_one_have(install_plugin, sft):
    install_plugin(BACKEND)
    words = [*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-margin", "2"]
    assert not [note for note in planned(words).notes if "fp8" in note]
    (note,) = [note for note in planned([*words, "--fp8-recipe", "blockwise"]).notes if "fp8" in note]
    assert note.startswith("--fp8-margin has no effect: it is read by the precision_recipe 'delayed'")


def test_an_unknown_recipe_offers_the_nearest_one(install_plugin, sft):
    install_plugin(BACKEND)
    with pytest.raises(PluginError, match="blockwise"):
        planned([*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-recipe", "blockwide"])


def test_gradients_in_e5m2_under_mxfp8_are_refused_when_options_are_read(sft):
    with pytest.raises(ArgumentError, match="gradients in e5m2 are known to diverge under MXFP8"):
        planned([*sft, "--fp8-format", "hybrid", "--fp8-recipe", "mxfp8"])
