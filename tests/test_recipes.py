"""The recipes of low precision can be planned: every option in them exists and has an effect, on the machine that they are for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from served_cases import convert, small_model

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import read_recipe
from slime_core.arguments.resolve import resolve
from slime_core.cli.main import main
from slime_core.contracts.precision import Hardware
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

RECIPES = Path(__file__).parent.parent / "recipes"
H200, B200 = Hardware("NVIDIA H200", (9, 0), (12, 9)), Hardware("NVIDIA B200", (10, 0), (13, 0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the same one in FP8."""
    folder = tmp_path_factory.mktemp("models")
    model = small_model(folder / "plain", model_type="qwen3")
    return model, convert(model, folder / "fp8", "block")


@pytest.fixture
def recipe(models, tmp_path):
    """`recipe(name)`: a recipe of the repository with other models and data, as its options."""
    rows = tmp_path / "rows.jsonl"
    messages = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    rows.write_text(json.dumps({"messages": messages, "prompt": messages[:1], "label": "2"}) + "\n")

    def options(name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((RECIPES / name).read_text())
        model, low = (str(path) for path in models)
        found["hf_checkpoint"] = low if "FP8" in found["hf_checkpoint"] else model
        own = {
            "ref_load": model,
            "load": str(tmp_path / "save"),
            "save": str(tmp_path / "save"),
            "prompt_data": [str(rows)],
        }
        own["eval_prompt_data"] = ["set", str(rows)]
        found |= {option: value for option, value in own.items() if option in found}
        if importlib.util.find_spec("sglang") is None:  # its own options are looked up in its program
            found = {option: value for option, value in found.items() if option != "sglang_mem_fraction_static"}
        return found

    return options


@pytest.mark.parametrize("name", ["quickstart-grpo-fp8.yaml", "qwen3-4b-grpo-fp8.yaml"])
def test_training_in_high_precision_and_generating_in_fp8_can_be_planned(recipe, tmp_path, capfd, monkeypatch, name):
    monkeypatch.setattr("slime_core.runtime.hardware.visible_hardware", lambda: H200)  # on CPUs SGLang serves no FP8
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(name)))
    status = main(["check", str(tmp_path / "recipe.yaml")])
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert "Weights go to the engine as --hf-checkpoint has them" in told
    assert "no effect" not in told


@pytest.mark.parametrize(
    ("name", "can", "cannot", "why"),
    [
        ("qwen3-4b-sft-fp8-blockwise.yaml", H200, Hardware("CPU"), "CPU has no FP8 arithmetic.*--fp8-emulation"),
        ("qwen3-4b-sft-mxfp8.yaml", B200, H200, "NVIDIA H200 has 9.0"),
    ],
)
def test_training_in_fp8_is_accepted_on_its_gpu_and_refused_with_what_would_do_elsewhere(
    recipe, tmp_path, monkeypatch, name, can, cannot, why
):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(name)))
    (stage,) = read_recipe(str(path))
    monkeypatch.setattr(
        "slime_megatron.refusals.refusal", lambda implementation: None
    )  # as if Transformer Engine were here
    monkeypatch.setattr("slime_fp8.arguments.visible_hardware", lambda: can)
    args = resolve(Namespace(Plugins()), [], recipe=stage, env={}).args
    assert (args.fp8_format, args.fp8_param_gather, args.transformer_impl) == ("e4m3", True, "transformer_engine")
    monkeypatch.setattr("slime_fp8.arguments.visible_hardware", lambda: cannot)
    with pytest.raises(ArgumentError, match=why):
        resolve(Namespace(Plugins()), [], recipe=stage, env={})
