"""The recipes of low precision can be planned: every option in them exists and has an effect, on the machine that they are for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from served_cases import convert, small_model

from slime_core.cli.main import main

RECIPES = Path(__file__).parent.parent / "recipes"


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
def test_training_in_high_precision_and_generating_in_fp8_can_be_planned(recipe, tmp_path, capfd, name):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(name)))
    status = main(["check", str(tmp_path / "recipe.yaml")])
    told = "".join(capfd.readouterr())
    assert status == 0, told
    assert "Weights go to the engine as --hf-checkpoint has them" in told
    assert "no effect" not in told
