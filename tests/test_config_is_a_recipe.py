"""`slime train RUN/config.yaml` repeats a run, into folders of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import read_recipe
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics


def test_a_run_from_the_configuration_of_another_has_its_metrics_and_leaves_it_alone(tiny_model, chat_rows, tmp_path):
    folder = tmp_path / "run"
    flags = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "4", "--lr", "1e-2"),
        *("--rollout-shuffle", "--num-rollout", "2", "--run-dir", str(folder), "--save-hf", str(folder / "model")),
        *("--save", str(folder / "weights"), "--load", str(folder / "weights")),
    ]
    assert main(["train", *flags]) == 0
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    assert main(["train", str(folder / "config.yaml")]) == 0
    first, second = (_numbers(tmp_path / name / "metrics.jsonl") for name in ("run", "run-2"))
    assert first == second
    assert any("train/loss" in line for line in first)
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    assert {path.name for path in (tmp_path / "run-2").iterdir()} >= {"model", "weights", "config.yaml"}


def _numbers(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in read_metrics(path)]


def read(tmp_path: Path, arguments: dict[str, Any], **provenance: str) -> dict[str, Any]:
    """The options of the recipe that a configuration with these arguments is; somebody gave them, if nothing else is said."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {"arguments": arguments, "provenance": {**dict.fromkeys(arguments, "command line"), **provenance}}
        )
    )
    (stage,) = read_recipe(str(path))
    values, errors = stage.read(Namespace(Plugins()))
    assert not errors
    return values


@pytest.mark.parametrize(
    ("given", "read_again"),
    [
        ({"run_dir": "R"}, {"run_dir": "R-2"}),
        ({"run_dir": "R", "save": "R"}, {"run_dir": "R-2", "save": "R-2"}),
        ({"save": "S", "load": "S", "ckpt_step": 3}, {"save": "S-2", "load": "S-2"}),
        ({"save": "S", "load": "OTHER"}, {"save": "S-2", "load": "OTHER"}),
        ({"run_dir": "R", "save_hf": "R/hf/{rollout_id}"}, {"run_dir": "R-2", "save_hf": "R-2/hf/{rollout_id}"}),
        ({"save": "S", "save_hf": "S/model"}, {"save": "S-2", "save_hf": "S-2/model"}),
        ({"save_hf": "M-{rollout_id}/x"}, {"save_hf": "M-{rollout_id}/x"}),
        ({"save_hf": "OUT/M-{rollout_id}"}, {"save_hf": "OUT-2/M-{rollout_id}"}),
        ({"prompt_data": ["a.jsonl"], "wandb_key": "***"}, {"prompt_data": ["a.jsonl"]}),
        ({"custom_config": {"depth": 3}, "custom_config_path": "c.yaml"}, {"custom_config": {"depth": 3}}),
    ],
)
def test_what_a_run_wrote_is_written_beside_it_and_what_it_read_is_read_again(tmp_path, monkeypatch, given, read_again):
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path, given) == read_again


def test_the_next_free_number_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "R-2").mkdir()
    assert read(tmp_path, {"run_dir": "R"}) == {"run_dir": "R-3"}


def test_what_followed_from_options_follows_again_and_a_default_of_then_stays(tmp_path):
    arguments = {"num_rollout": 7, "clip_grad": 0.125, "adam_beta1": 0.9, "of_a_plugin_that_is_gone": 1}
    provenance = {"num_rollout": "derived: --num-epoch 1", **dict.fromkeys(list(arguments)[1:], "default")}
    assert read(tmp_path, arguments, **provenance) == {"clip_grad": 0.125}
