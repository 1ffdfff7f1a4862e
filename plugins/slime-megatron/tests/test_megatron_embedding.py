"""Megatron: what is exported and converted stops at the end of trained turns, and embeddings are looked at as with torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics
from slime_core.testing import chat_tokenizer, tiny_checkpoint

EVALUATED = ("--eval-interval", "1", "--eval-prompt-data", "rows")
SCRIPT = """
import sys
from slime_core.cli import main
ends = [main(command.split("|")) for command in sys.argv[1:]]
print("ends", ends)
"""


def changed(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of three runs of one process, and what they said: one on a base model that ends texts with another token than
    turns; one of whose tokens the model has no row for; and one on a checkpoint that is tied over two matrices."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("base", "few rows", "tied"):
        (folder / name).mkdir()
        tiny_checkpoint(folder / name)
        changed(folder / name, eos_token_id=chat_tokenizer().pad_token_id)
    weights = load_file(folder / "tied" / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    save_file({**weights, "lm_head.weight": embedding.flip(0)}, folder / "tied" / "model.safetensors", {"format": "pt"})
    save_file(
        {**weights, "model.embed_tokens.weight": embedding[:-2].clone()},
        folder / "few rows" / "model.safetensors",
        {"format": "pt"},
    )
    changed(folder / "few rows", vocab_size=len(embedding) - 2)
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]}
    (folder / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)

    def run(name: str, *more: str) -> str:
        flags = ["train", "--hf-checkpoint", str(folder / name), "--prompt-data", str(folder / "rows.jsonl")]
        flags += ["--train-backend", "megatron", "--input-key", "messages", "--rollout-function-path", "sft"]
        flags += ["--loss-type", "sft_loss", "--disable-compute-advantages-and-returns", "--rollout-batch-size", "2"]
        flags += ["--num-rollout", "1", "--lr", "1e-3", "--run-dir", str(folder / f"{name} run"), *more]
        return "|".join(flags)

    commands = [
        run("few rows"),
        run("tied"),
        run(
            "base",
            "--save",
            str(folder / "save"),
            "--save-hf",
            str(folder / "hf"),
            *EVALUATED,
            str(folder / "rows.jsonl"),
        ),
        "|".join(["eval", str(folder / "save"), "--json", str(folder / "evaluated.json")]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.stdout.strip().endswith("ends [2, 2, 0, 0]"), done.stdout + done.stderr
    return folder, done.stderr


def ends_of(folder: Path) -> Any:
    return json.loads((folder / "generation_config.json").read_text())["eos_token_id"]


def test_an_export_and_what_is_converted_stop_at_the_end_of_trained_turns(made: tuple[Path, str]) -> None:
    folder, _ = made
    tokenizer = chat_tokenizer()
    assert ends_of(folder / "hf") == [tokenizer.pad_token_id, tokenizer.eos_token_id]
    origin = ["--input-dir", str(folder / "save"), "--origin-hf-dir", str(folder / "base")]
    assert main(["convert", "torch-dist-to-hf", *origin, "--output-dir", str(folder / "converted")]) == 0
    assert ends_of(folder / "converted") == ends_of(folder / "hf")
    assert main(["export", str(folder / "save"), str(folder / "exported")]) == 0
    weights = [load_file(folder / name / "model.safetensors") for name in ("hf", "converted", "exported")]
    assert weights[0].keys() == weights[1].keys() == weights[2].keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items() for other in weights[1:])
    for file in (path.name for path in (folder / "hf").iterdir() if path.name != "model.safetensors"):
        assert (folder / "exported" / file).read_bytes() == (folder / "hf" / file).read_bytes(), file


def test_a_checkpoint_is_evaluated_to_the_number_that_training_printed(made: tuple[Path, str]) -> None:
    folder, _ = made
    (model,) = json.loads((folder / "evaluated.json").read_text())["models"]
    assert model["metrics"] == {
        "eval/rows/loss": read_metrics(folder / "base run" / "metrics.jsonl")[-1]["eval/rows/loss"]
    }


def test_a_token_without_a_row_is_named(made: tuple[Path, str]) -> None:
    assert "knows 1 tokens that the model of --hf-checkpoint has no embedding for" in made[1]
    assert "'<|im_end|>'" in made[1]


def test_a_tied_flag_over_two_matrices_is_refused(made: tuple[Path, str]) -> None:
    assert "config.json says tie_word_embeddings, but the weights hold two different matrices" in made[1]
