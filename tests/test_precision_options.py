"""A precision recipe is chosen by Megatron's flags, and only where the train backend computes by it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.run.plan import make_plan
from slime_core.run.tracking import read_metrics

BACKEND = """
@hookimpl
def slime_train_backends():
    from slime_torch.backend import TorchBackend

    class Backend(TorchBackend):
        "Says that it computes by a precision recipe."

    Backend.reads_options = ("fp8_recipe?fp8_format", "fp8_emulation?fp8_format")
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
    words = [*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-recipe", name, "--fp8-emulation"]
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
    plan = planned([*sft, "--train-backend", "low", "--fp8-format", "hybrid", "--fp8-emulation"])
    assert plan.components.training.further["precision_recipe"].name == "delayed"


def test_a_backend_that_does_not_compute_in_fp8_refuses_the_format(install_plugin, sft):
    install_plugin(BACKEND.replace('("fp8_recipe?fp8_format", ', '("lr", '))
    with pytest.raises(ArgumentError, match=r"--fp8-format e4m3: the train_backend 'low' .* does not compute in FP8"):
        planned([*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-emulation"])


A100, H200, B200 = (
    Hardware("NVIDIA A100", (8, 0), (12, 9)),
    Hardware("NVIDIA H200", (9, 0), (12, 9)),
    Hardware("NVIDIA B200", (10, 0), (13, 0)),
)


@pytest.mark.parametrize(
    ("hardware", "recipe", "why"),
    [
        (
            Hardware("CPU"),
            "tensorwise",
            r"CPU has no FP8 arithmetic\. Give --fp8-emulation, .*; or leave --fp8-format out",
        ),
        (Hardware("CPU"), "mxfp8", "CPU has no FP8 arithmetic"),
        (A100, "delayed", r"NVIDIA A100 has 8\.0\. Give --fp8-emulation, .*no FP8; or leave"),
        (
            H200,
            "mxfp8",
            r"NVIDIA H200 has 9\.0\. .*or --fp8-recipe tensorwise or delayed or blockwise, which NVIDIA H200 can",
        ),
        (
            Hardware("NVIDIA H200", (9, 0), (12, 6)),
            "blockwise",
            r"CUDA 12\.9 or newer; torch was built with 12\.6\. .*tensorwise",
        ),
        (H200, "blockwise", None),
        (B200, "mxfp8", None),
    ],
)
def test_a_recipe_that_the_gpu_here_cannot_compute_is_refused_when_options_are_read(
    sft, monkeypatch, hardware, recipe, why
):
    monkeypatch.setattr("slime_fp8.arguments.visible_hardware", lambda: hardware)
    words = [*sft, "--fp8-format", "e4m3", "--fp8-recipe", recipe]
    if why is None:
        assert planned(words).args.fp8_recipe == recipe
        return
    with pytest.raises(ArgumentError, match=f"--fp8-recipe {recipe}: .*{why}"):
        resolve(Namespace(Plugins()), words, env={})
    assert not [note for note in planned([*words, "--fp8-emulation"]).notes if "fp8" in note]


@pytest.mark.parametrize("elsewhere", [["--ray-address", "10.0.0.7:6379"], ["--actor-num-nodes", "2"]])
def test_what_machines_of_a_cluster_can_compute_is_left_to_them(sft, elsewhere):
    words = [*sft, "--fp8-format", "e4m3", "--fp8-recipe", "blockwise", *elsewhere]
    assert resolve(Namespace(Plugins()), words, env={}).args.fp8_recipe == "blockwise"


def test_the_refusal_comes_before_torch_is_imported(sft):
    """So that it takes no longer than reading the command line."""
    words = [*sft, "--fp8-format", "e4m3", "--fp8-recipe", "blockwise"]
    code = (
        "import sys\nfrom slime_core.cli import main\nassert main(sys.argv[1:]) != 0\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train", *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert "has no FP8 arithmetic" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_emulation_is_said_to_have_no_effect_without_a_format(sft):
    assert not [note for note in planned([*sft, "--fp8-format", "e4m3", "--fp8-emulation"]).notes if "fp8" in note]
    assert "--fp8-emulation has no effect without --fp8-format." in planned([*sft, "--fp8-emulation"]).notes


@pytest.mark.parametrize(
    "flag",
    [
        "--fp8-param-gather",
        "--reuse-grad-buf-for-mxfp8-param-ag",
        "--activation-func-fp8-input-store",
        "--no-fp8-wgrad",
    ],
)
def test_flags_of_megatron_that_no_backend_acts_on_are_refused_with_the_reason(sft, flag):
    with pytest.raises(ArgumentError, match=f"{flag}: .*Leave the option out"):
        planned([*sft, "--fp8-format", "e4m3", "--fp8-emulation", flag])


@pytest.mark.parametrize("name", ["blockwise", "delayed"])
def test_a_run_trains_in_fp8_and_a_resumed_one_equals_it(sft, tmp_path, name):
    """With numbers that are not those of a run without FP8."""
    words = [*sft, "--rollout-shuffle", "--lr", "1e-3", "--lr-decay-style", "constant", "--save-interval", "1"]
    low = ["--fp8-format", "e4m3", "--fp8-recipe", name, "--fp8-emulation"]

    def losses(folder: str, *further: str) -> list[float]:
        own = ["--run-dir", str(tmp_path / folder), "--save", str(tmp_path / folder)]
        assert main(["train", *words, *own, *further]) == 0
        return [line["train/loss"] for line in read_metrics(tmp_path / folder / "metrics.jsonl")]

    whole = losses("whole", *low, "--num-rollout", "3")
    assert len(whole) == 3
    on = ["--num-rollout", "3", "--load", str(tmp_path / "parts"), "--on-resume-change", "warn"]
    first = losses("parts", *low, "--num-rollout", "2")
    assert [*first, *losses("parts", *low, *on)[2:]] == whole
    assert losses("high", "--num-rollout", "1")[0] != whole[0]


def test_options_of_other_recipes_have_no_effect_and_those_of_the_chosen_one_have(install_plugin, sft):
    install_plugin(BACKEND)
    words = [*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-emulation", "--fp8-margin", "2"]
    assert not [note for note in planned(words).notes if "fp8" in note]
    (note,) = [note for note in planned([*words, "--fp8-recipe", "blockwise"]).notes if "fp8" in note]
    assert note.startswith("--fp8-margin has no effect: it is read by the precision_recipe 'delayed'")


def test_an_unknown_recipe_offers_the_nearest_one(install_plugin, sft):
    install_plugin(BACKEND)
    with pytest.raises(PluginError, match="blockwise"):
        planned([*sft, "--train-backend", "low", "--fp8-format", "e4m3", "--fp8-recipe", "blockwide"])


def test_gradients_in_e5m2_under_mxfp8_are_refused_when_options_are_read(sft):
    with pytest.raises(ArgumentError, match="gradients in e5m2 are known to diverge under MXFP8"):
        planned([*sft, "--fp8-format", "hybrid", "--fp8-recipe", "mxfp8", "--fp8-emulation"])
