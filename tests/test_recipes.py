"""The recipes that slime brings: every one can be planned on a machine that has nothing of it, and its small twin runs."""

from __future__ import annotations

import base64
import json
import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from recipe_twins import MACHINE, REWARD, SIZES, TWO_RANKS, options_of, twin
from vision_checkpoints import picture

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import read_recipe
from slime_core.arguments.recipe_names import find_recipe, model_card, named_recipes
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics

RECIPES = {name: recipe for name, recipe in named_recipes().items() if recipe.distribution == "slime-recipes"}
H200, B200 = Hardware("NVIDIA H200", (9, 0), (12, 9)), Hardware("NVIDIA B200", (10, 0), (13, 0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small models, each made when a twin needs it."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations with a tool call, with prompts and labels; images.jsonl beside them has conversations with an image each."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    tool = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    with file.open("w") as out:
        for n in range(8):
            question = {"role": "user", "content": f"{n} + 1"}
            turns = [
                question,
                {"role": "assistant", "content": f"<tool>add {n} 1</tool>"},
                {"role": "tool", "content": str(n + 1)},
            ]
            messages = [*turns, {"role": "assistant", "content": str(n + 1)}]
            out.write(
                json.dumps({"messages": messages, "tools": [tool], "prompt": [question], "label": str(n + 1)}) + "\n"
            )
    with file.with_name("images.jsonl").open("w") as out:
        for n in range(8):
            turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": f"it is {n}"}]
            image = {"bytes": base64.b64encode(picture(30 + n, 40)).decode()}
            out.write(json.dumps({"messages": turns, "images": [image]}) + "\n")
    return file


def check(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["check", *words])
    return status, "".join(capfd.readouterr())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_planned_where_neither_its_model_nor_its_data_nor_a_gpu_is(capfd, monkeypatch, name):
    monkeypatch.setattr("slime_core.runtime.hardware.visible_hardware", lambda: Hardware("CPU"))
    status, told = check(capfd, f"@{name}", "--gpu-memory", "80")
    assert status == 0, told
    assert "is not on this machine: its tokenizer and its files were not looked at" in told
    assert "no effect" not in told
    assert "GiB at most" in told
    assert "fits: " in told
    assert RECIPES[name].summary


def test_the_rank_of_glm_holds_as_many_weights_as_megatron_counted(capfd):
    """Its log said 3,805,411,328 for the first rank of the same layout."""
    _, told = check(capfd, "@glm-4.7-flash-sft")
    assert "3.81 B weights of this rank" in told


def test_a_vision_tower_that_is_frozen_has_no_gradients(capfd):
    _, told = check(capfd, "@qwen2.5-vl-7b-sft")
    assert "8.29 B weights" in told
    assert "7.62 B trained weights" in told
    assert "not counted: what the vision tower computes of the images" in told


def test_a_recipe_s_own_paths_are_another_machine_s_and_those_that_somebody_gives_are_not(capfd, tmp_path):
    status, told = check(capfd, "@qwen3-4b-base-sft", "--hf-checkpoint", str(tmp_path / "nothing"))
    assert status == 2
    assert "nothing is not a Hugging Face checkpoint" in told
    assert main(["train", "@qwen3-4b-base-sft"]) != 0
    assert "/root/Qwen3-4B-Base is not a Hugging Face checkpoint" in "".join(capfd.readouterr())


def test_a_run_for_another_machine_can_be_checked_from_a_file_too(capfd, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(find_recipe("@qwen3-4b-base-sft").path.read_text())
    assert check(capfd, str(mine))[0] != 0
    status, told = check(capfd, str(mine), "--elsewhere", "--gpu-memory=16")
    assert status == 0
    assert "does not fit: training rank" in told
    assert "to change: --optimizer-cpu-offload" in told
    with pytest.raises(SystemExit):
        check(capfd, "--help")
    assert main(["train", str(mine), "--gpu-memory", "80"]) == 2
    assert main(["check", str(mine), "--gpu-memory", "much"]) == 2
    assert "expected the GiB of one GPU" in "".join(capfd.readouterr())


def test_recipes_are_listed_printed_and_offered_by_the_nearest_name(capfd):
    assert main(["recipes"]) == 0
    listed = capfd.readouterr().out
    assert all(f"@{name}" in listed for name in RECIPES)
    assert main(["recipes", "qwen3-4b-dapo"]) == 0
    assert yaml.safe_load(capfd.readouterr().out) == options_of(RECIPES["qwen3-4b-dapo"])
    assert main(["check", "@qwen3-4b-dapoo"]) == 2
    assert "Did you mean 'qwen3-4b-dapo'?" in capfd.readouterr().err


def test_another_distribution_offers_recipes_by_an_entry_point_and_no_code_of_it_runs(tmp_path, monkeypatch):
    package = tmp_path / "their_recipes"
    (package / "models" / "Theirs-1B").mkdir(parents=True)
    (package / "models" / "Theirs-1B" / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package / "their-run.yaml").write_text("# What they do. And more.\nlr: 1\n")
    (package / "qwen3-4b-grpo.yaml").write_text("# Theirs.\nlr: 2\n")
    info = tmp_path / "their_recipes-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-recipes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[slime.recipes]\nx = their_recipes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = named_recipes()
    assert found["their-run"].summary == "What they do"
    assert found["qwen3-4b-grpo"].distribution == "slime-recipes"
    assert find_recipe("@their-recipes:qwen3-4b-grpo").path == package / "qwen3-4b-grpo.yaml"
    assert model_card("/anywhere/Theirs-1B") == package / "models" / "Theirs-1B"


@pytest.mark.parametrize(
    ("name", "can", "cannot", "why"),
    [
        ("qwen3-4b-base-sft-fp8", H200, Hardware("CPU"), "CPU has no FP8 arithmetic.*--fp8-emulation"),
        ("qwen3-4b-base-sft-mxfp8", B200, H200, "NVIDIA H200 has 9.0"),
    ],
)
def test_training_in_fp8_is_accepted_on_its_gpu_and_refused_with_what_would_do_elsewhere(
    monkeypatch, name, can, cannot, why
):
    (stage,) = read_recipe(f"@{name}")
    as_if = "slime_megatron.refusals.refusal"  # Transformer Engine were here
    monkeypatch.setattr(as_if, lambda implementation: None)
    monkeypatch.setattr("slime_fp8.arguments.visible_hardware", lambda: can)
    args = resolve(Namespace(Plugins()), [], recipe=stage, env={}).args
    assert (args.fp8_format, args.fp8_param_gather, args.transformer_impl) == ("e4m3", True, "transformer_engine")
    monkeypatch.setattr("slime_fp8.arguments.visible_hardware", lambda: cannot)
    with pytest.raises(ArgumentError, match=why):
        resolve(Namespace(Plugins()), [], recipe=stage, env={})


def write(options: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "twin.yaml").write_text(yaml.safe_dump(options))
    return folder / "twin.yaml"


def trained(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps, all of whose losses are numbers."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
    assert all(math.isfinite(line["train/loss"]) for line in lines)
    assert any(line["train/grad_norm"] > 0 for line in lines)
    return lines


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of torch, transformers, megatron-core
@pytest.mark.parametrize("name", RECIPES)
def test_the_twin_of_a_recipe_runs(models, rows, tmp_path, capfd, name):
    recipe = RECIPES[name]
    options = twin(recipe, models, rows, tmp_path)
    command = "train-async" if "async" in name else "train"
    status = main([command, str(write(options, tmp_path))])
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert len(trained(tmp_path / "run")) == SIZES["num_rollout"]
    assert (tmp_path / "save" / "latest_checkpointed_iteration.txt").exists()
    if "FP8" in options_of(recipe)["hf_checkpoint"]:
        assert "Weights go to the engine as --hf-checkpoint has them" in told or "fp8" in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-4b-grpo", "qwen3-4b-grpo-separate"])
def test_two_ranks_of_a_twin_train_on_ray_beside_the_engine_and_on_its_devices(
    cluster, models, rows, tmp_path, capfd, name
):
    options = twin(RECIPES[name], models, rows, tmp_path, TWO_RANKS)
    status = main(["train", str(write(options, tmp_path))])
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert "training rank 1: process" in told
    assert len(trained(tmp_path / "run")) == SIZES["num_rollout"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_differs_from_its_recipe_in_sizes_paths_and_what_a_cpu_lacks_alone(models, rows, tmp_path, name):
    options, small = options_of(RECIPES[name]), twin(RECIPES[name], models, rows, tmp_path)
    differ = {option for option in options.keys() | small.keys() if options.get(option) != small.get(option)}
    paths = {"hf_checkpoint", "ref_load", "load", "save", "save_hf", "prompt_data", "eval_prompt_data", "run_dir"}
    assert differ <= {*SIZES, *MACHINE, *REWARD, *paths, "fp8_emulation"}


def test_the_table_of_the_documents_is_that_of_the_recipes():
    script = Path(__file__).parent.parent / "scripts" / "generate_recipe_table.py"
    made = runpy.run_path(str(script))
    assert made["page"]() == made["FILE"].read_text(encoding="utf-8"), f"run python scripts/{script.name}"
