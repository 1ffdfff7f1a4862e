"""Blocks of slime's own launch scripts run as they stand; only paths and the model are ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from slime_core.cli import main
from slime_core.run.tracking import read_metrics

SFT_ARGS = """
   --rollout-function-path slime.rollout.sft_rollout.generate_rollout
   --prompt-data {data}
   --input-key messages
   --rollout-shuffle
   --num-epoch 3
   --rollout-batch-size 128
   --global-batch-size 128

   --loss-type sft_loss
   --calculate-per-token-loss
   --disable-compute-advantages-and-returns
   --debug-train-only
"""
OPTIMIZER_ARGS = """
   --optimizer adam
   --lr 1e-6
   --lr-decay-style constant
   --weight-decay 0.1
   --adam-beta1 0.9
   --adam-beta2 0.98
"""
PACKING_ARGS = """
   --use-dynamic-batch-size
   --max-tokens-per-gpu 9216
"""
CKPT_ARGS = """
   --load {save}
   --save {save}
   --save-interval 20
"""
WANDB_ARGS = """
   --use-wandb
   --wandb-mode offline
   --wandb-project slime-dev
   --wandb-group qwen3-4B-base-sft
   --wandb-dir {save}/fp8
"""
TENSORBOARD_ARGS = """
   --use-pytorch-profiler
   --profile-step-start 1
   --profile-step-end 2
   --tensorboard-dir {save}/tensorboard/
"""


@pytest.fixture(scope="module")
def parquet(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openhermes")
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"What comes after {n}?"},
                {"from": "gpt", "value": f"{n + 1}."},
            ]
        }
        for n in range(128)
    ]
    (folder / "openhermes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "data",
        "convert",
        "--from",
        "openhermes",
        str(folder / "openhermes.jsonl"),
        str(folder / "openhermes2_5.parquet"),
    ]
    assert main(words) == 0
    return folder / "openhermes2_5.parquet"


def words(model: Path, *blocks: str, **paths: Path) -> list[str]:
    return ["--hf-checkpoint", str(model), *"".join(blocks).format(**paths).split()]


def test_the_sft_and_optimizer_blocks_train_and_every_option_has_an_effect(tiny_model, parquet, tmp_path, capsys):
    blocks = words(tiny_model, SFT_ARGS, OPTIMIZER_ARGS, PACKING_ARGS, CKPT_ARGS, data=parquet, save=tmp_path)
    assert main(["check", *blocks]) == 0
    assert "no effect" not in capsys.readouterr().out
    assert main(["train-async", *blocks]) == 0
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["rollout_id"] for line in lines] == [0, 1, 2]
    assert {line["train/lr"] for line in lines} == {1e-6}
    # Shuffled epochs of one batch hold the same rows, so the same number of tokens.
    assert len({line["train/num_tokens"] for line in lines}) == 1
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["components"]["rollout"].startswith("sft of rollout-sft")
    assert config["arguments"]["adam_beta2"] == 0.98
    assert config["provenance"]["num_rollout"].startswith("derived: --num-epoch 3")
    assert config["plugins"]["slime-core"]


def test_the_tracking_blocks_write_what_they_say(tiny_model, parquet, tmp_path):
    blocks = words(tiny_model, SFT_ARGS, WANDB_ARGS, TENSORBOARD_ARGS, data=parquet, save=tmp_path)
    assert main(["train-async", *blocks, "--use-tensorboard", "--run-dir", str(tmp_path / "run")]) == 0
    assert list((tmp_path / "fp8").rglob("*.wandb"))
    assert list((tmp_path / "tensorboard").glob("*.pt.trace.json*"))
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
