"""`slime check --parity`: a train backend is compared with transformers before a run. With the torch backend here; the Megatron
backend's own tests plant more mistakes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from slime_core.cli import main
from slime_core.cli.parity import read_parity
from slime_core.errors import ArgumentError


@pytest.fixture
def sft(sft: list[str]) -> list[str]:
    return [*sft, "--debug-train-only"]


def comparisons(out: str) -> dict[str, str]:
    """The result of every comparison that was printed, by its name."""
    lines = [line.split() for line in out.splitlines()]
    return {
        " ".join(words[:n]): words[n] for words in lines for n in (1, 2) if words[n : n + 1] in (["ok"], ["FAILED"])
    }


def test_a_right_backend_passes_every_comparison(sft, capsys):
    assert main(["check", *sft, "--parity", "--gradients"]) == 0
    out = capsys.readouterr().out
    assert comparisons(out) == dict.fromkeys(["checkpoint", "weights", "log-probs", "gradients"], "ok")
    assert "20 tensors" in out  # of a tied model of two layers
    assert not Path("runs").exists()


def test_a_run_in_fp8_is_compared_without_it(sft, capsys):
    words = ["--fp8-format", "e4m3", "--fp8-recipe", "delayed", "--fp8-emulation"]
    assert main(["check", *sft, *words, "--parity", "--parity-rows", "2", "--parity-tokens", "16"]) == 0
    assert "Compared without FP8" in capsys.readouterr().out


def test_gradients_are_compared_where_they_are_asked_for_alone(sft, capsys):
    assert main(["check", *sft, "--parity", "--parity-rows", "2", "--parity-tokens", "16"]) == 0
    out = capsys.readouterr().out
    assert "gradients" not in comparisons(out)
    assert main(["check", *sft, "--parity", "--gradients", "few"]) == 0
    assert comparisons(capsys.readouterr().out)["gradients"] == "ok"


def test_prompts_of_reinforcement_learning_are_compared_without_an_engine(tiny_model, chat_rows, capsys):
    words = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    words += ["--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "cluster_hooks.even_tokens"]
    words += ["--rollout-batch-size", "2", "--n-samples-per-prompt", "3", "--num-rollout", "1"]
    assert main(["check", *words, "--parity"]) == 0
    assert comparisons(capsys.readouterr().out)["log-probs"] == "ok"


def test_a_tensor_that_the_checkpoint_lacks_is_named_before_anything_is_computed(sft, tiny_model, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert main(["check", *sft, "--hf-checkpoint", str(broken), "--parity"]) == 1
    told = capsys.readouterr()
    assert comparisons(told.out) == {"checkpoint": "FAILED"}
    assert "model.layers.1.mlp.up_proj.weight (layer 1)" in told.err


def loaded(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let the torch backend change every model that it has loaded."""
    from slime_torch import backend

    right = backend.load_model

    def load_model(*args: Any) -> Any:
        model = right(*args)
        change(model)
        return model

    monkeypatch.setattr(backend, "load_model", load_model)


def test_a_wrong_epsilon_is_found_and_its_norms_are_named(sft, monkeypatch, capsys):
    def change(model: Any) -> None:
        for layer in model.model.layers:
            layer.post_attention_layernorm.variance_epsilon = 1e-3

    loaded(monkeypatch, change)
    assert main(["check", *sft, "--parity"]) == 1
    told = capsys.readouterr()
    assert "post_attention_layernorm add 0.001 in place of 1e-06" in told.err
    assert "model.layers.0.post_attention_layernorm.weight (layer 0)" in told.err
    assert comparisons(told.out) == {
        **dict.fromkeys(["checkpoint", "weights"], "ok"),
        **dict.fromkeys(["log-probs", "rows alone", "token pairs", "gradients"], "FAILED"),
    }


def test_a_mistake_in_one_layer_is_found_there(sft, monkeypatch, capsys):
    def change(model: Any) -> None:
        model.model.layers[1].mlp.act_fn = __import__("torch").nn.GELU()

    loaded(monkeypatch, change)
    assert main(["check", *sft, "--parity"]) == 1
    told = capsys.readouterr().err
    assert "if the activation is GELU in layer 1 alone: model.layers.1.mlp." in told


def test_weights_in_another_place_are_found_and_said_to_be_those_of_another_tensor(sft, monkeypatch, capsys):
    def change(model: Any) -> None:
        mlp = model.model.layers[1].mlp
        mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj

    loaded(monkeypatch, change)
    assert main(["check", *sft, "--parity"]) == 1
    told = capsys.readouterr()
    assert comparisons(told.out) == {"checkpoint": "ok", "weights": "FAILED"}
    assert "model.layers.1.mlp.gate_proj.weight (layer 1): " in told.err
    assert "They are those of model.layers.1.mlp.up_proj.weight." in told.err


def test_rows_that_reach_into_each_other_are_told_from_a_wrong_tensor(sft, monkeypatch, capsys):
    from slime_core.tensors.packed_rows import Segments
    from slime_torch.predictor import Predictor

    right = Predictor.pack

    def pack(self: Any, *args: Any) -> Any:
        row = right(self, *args)
        return replace(row, segments=Segments.of([(sum(row.segments.lengths),)]))

    monkeypatch.setattr(Predictor, "pack", pack)
    assert main(["check", *sft, "--parity"]) == 1
    told = capsys.readouterr()
    assert comparisons(told.out)["rows alone"] == "ok"
    assert "no tensor is wrong: packed rows reach into each other" in told.err


def test_a_gradient_that_is_wrong_though_log_probs_are_right_is_named(sft, monkeypatch, capsys):
    from slime_torch.backend import TorchBackend

    right = TorchBackend.gradients

    def gradients(self: Any, batch: Any) -> Any:
        return ((name, g / 2 if "layers.1" in name and "v_proj" in name else g) for name, g in right(self, batch))

    monkeypatch.setattr(TorchBackend, "gradients", gradients)
    assert main(["check", *sft, "--parity"]) == 0
    assert main(["check", *sft, "--parity", "--gradients"]) == 1
    told = capsys.readouterr().err
    assert "gradient of model.layers.1.self_attn.v_proj.weight (layer 1): off by 5.0e-01" in told
    assert told.count("gradient of") == 1


def test_adapters_are_compared_but_for_gradients_which_no_tensor_of_the_checkpoint_has(sft, capsys):
    assert main(["check", *sft, "--parity", "--lora-rank", "4"]) == 0
    assert main(["check", *sft, "--parity", "--lora-rank", "4", "--gradients"]) == 2
    assert "gives the gradient of no tensor of the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "train-async"])
def test_a_run_refuses_the_options_of_the_check(sft, command, capsys):
    assert main([command, *sft, "--parity"]) == 2
    assert "--parity belongs to `slime check`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gradients"], "--gradients goes with --parity"),
        (["--parity", "--gradients=some"], "expected all, few or nothing"),
        (["--parity", "--parity-rows", "none"], "--parity-rows is 'none'; expected a whole number of at least 1"),
        (["--parity", "--parity-tokens", "1"], "expected a whole number of at least 2"),
        (["--parity=yes"], "--parity takes no value"),
    ],
    ids=str,
)
def test_options_of_the_check_that_make_no_sense_are_refused(words, why):
    with pytest.raises(ArgumentError, match=why):
        read_parity(words)


def test_the_options_of_the_check_may_stand_anywhere():
    options, rest = read_parity(
        ["recipe.yaml", "--parity", "--lr", "1", "--gradients", "--parity-rows=3", "--seed", "2"]
    )
    assert rest == ["recipe.yaml", "--lr", "1", "--seed", "2"]
    assert options is not None
    assert (options.gradients, options.rows, options.tokens) == ("all", 3, 512)


def test_a_run_that_trains_nothing_has_nothing_to_compare(sft, capsys):
    words = [word for word in sft if word != "--debug-train-only"]
    assert main(["check", *words, "--debug-rollout-only", "--parity"]) == 2
    assert "--debug-rollout-only trains nothing" in capsys.readouterr().err


def test_a_padding_token_that_does_not_learn_where_it_is_read_is_found(sft, monkeypatch, capsys):
    """As torch leaves it, so as a backend has it that takes transformers' model as it is."""
    from slime_torch import backend

    right = backend.prepare

    def prepare(model: Any, *others: Any) -> Any:
        head = right(model, *others)
        model.get_input_embeddings().padding_idx = model.config.pad_token_id
        return head

    monkeypatch.setattr(backend, "prepare", prepare)
    assert main(["check", *sft, "--parity", "--gradients"]) == 1
    assert "embed_tokens" in capsys.readouterr().err
