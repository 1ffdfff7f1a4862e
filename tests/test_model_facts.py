"""What `slime check` keeps of a configuration is what transformers says of it, and is asked for the very same configuration alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from slime_core.cli import main
from slime_core.remote_code import trust_remote_code
from slime_core.tensors.model_shape import shape_of
from slime_core.testing import tiny_checkpoint
from slime_core.training import model_facts
from slime_core.training.model_facts import ModelFacts, configuration_of, keep, kept
from slime_engine_local.model import refusal

SMALL = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "tied": {**SMALL, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "head_dim": 4, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma2": {**SMALL, "head_dim": 4},
    "qwen3_moe": {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 4},
    "dynamic": {**SMALL, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 32},
    "gpt_oss": {**SMALL, "num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 4},
    "granitemoehybrid": {
        **SMALL,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 8,
        "mamba_n_heads": 2,
    },
}
TYPES = {"tied": "llama", "dynamic": "llama"}
CHECK = ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"]
CHECK += [
    "--num-rollout",
    "1",
    "--rollout-batch-size",
    "1",
    "--global-batch-size",
    "1",
    "--rollout-max-context-len",
    "64",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "cache"))


def folder_of(tmp_path: Path, name: str, **further: Any) -> str:
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    config = {"model_type": TYPES.get(name, name), **CONFIGURATIONS[name], **further}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def facts_of(folder: str) -> ModelFacts:
    config = AutoConfig.from_pretrained(folder)
    return ModelFacts.of(config, shape_of(config))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_kept_facts_answer_as_the_configuration_does(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path, name)
    config = AutoConfig.from_pretrained(folder)
    shape = shape_of(config)
    keep(folder, ModelFacts.of(config, shape))
    found = configuration_of(folder, "--hf-checkpoint")
    assert isinstance(found, ModelFacts)
    text = config.get_text_config()
    assert found.model_type == config.model_type
    assert bool(found.tie_word_embeddings) == bool(getattr(text, "tie_word_embeddings", False))
    assert refusal(found) == refusal(config)
    assert list(found.shape.parameters.items()) == list(shape.parameters.items())
    assert found.shape.config == json.loads(json.dumps(shape.config))


def test_facts_are_of_this_configuration_and_these_versions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, "llama")
    keep(folder, facts_of(folder))
    assert kept(folder) is not None
    assert kept(folder_of(tmp_path, "tied")) is None
    folder_of(tmp_path, "llama")
    monkeypatch.setattr(model_facts, "version", lambda name: "another")
    assert kept(folder) is None


def test_nothing_is_kept_where_code_of_a_checkpoint_may_answer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "llama", auto_map={"AutoConfig": "own.Config"})
    keep(folder, facts_of(folder_of(tmp_path, "llama")))
    folder_of(tmp_path, "llama", auto_map={"AutoConfig": "own.Config"})
    assert kept(folder) is None
    folder_of(tmp_path, "llama")
    try:
        trust_remote_code(True)
        assert kept(folder) is None
    finally:
        trust_remote_code(False)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"shape": 3}', '{"shape": {"parameters": {"a": 1}, "config": {}}}']
)
def test_a_damaged_file_is_as_if_it_were_not_there(tmp_path: Path, content: str) -> None:
    folder = folder_of(tmp_path, "llama")
    keep(folder, facts_of(folder))
    (file,) = (tmp_path / "cache" / "models").iterdir()
    file.write_text(content)
    assert kept(folder) is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "llama")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLIME_CACHE", str(tmp_path / "file"))
    keep(folder, facts_of(folder))
    assert kept(folder) is None


def test_a_second_check_says_the_same_without_the_classes_of_models(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_checkpoint(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        json.dumps({"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]})
    )
    words = ["check", *CHECK, "--hf-checkpoint", str(folder), "--prompt-data", str(rows), "--input-key", "messages"]
    words += ["--rollout-engine", "local", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 0
    first = capfd.readouterr().out
    assert "activations" in first
    code = (
        "import sys; from slime_core.cli import main; status = main(sys.argv[1:])\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'torch.distributed.tensor', 'torch.distributed.checkpoint', 'sympy', "
        "'transformers.configuration_utils', 'transformers.modeling_utils', 'datasets', 'ray'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    second = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    assert second.stdout == first
    assert second.stderr == "[]\n"
