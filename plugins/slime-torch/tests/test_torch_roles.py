"""Reference models are never trained; critics predict values from what precedes a token."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import slime_torch.predictor as predictor_module
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.train_backend import TrainBatch
from slime_core.testing import chat_tokenizer
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.backend import TorchBackend


def squared_error(args: Any, inputs: LossInputs) -> LossOutputs:
    assert inputs.values is inputs.log_probs
    return LossOutputs(inputs.reduce((inputs.values - inputs.returns).square()))


def make_batch(tiny: SimpleNamespace, **options: Any) -> TrainBatch:
    """The returns of a sample's tokens fall from 1 by its number."""
    samples = tiny.groups(tiny.grouped)
    returns = [[1.0 - 0.1 * s.index - 0.05 * j for j in range(s.response_length)] for s in samples]
    return make_train_batch(samples, mean="token", columns={"returns": returns}, **options)


@pytest.fixture
def checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> Callable[[str], Path]:
    def write(architecture: str) -> Path:
        folder = tmp_path / architecture
        tiny.model(architecture, dtype=torch.float32).save_pretrained(folder)
        chat_tokenizer().save_pretrained(folder)
        return folder

    return write


def set_up(tiny: SimpleNamespace, folder: Path, role: str, loss: Any = squared_error, **options: Any) -> TorchBackend:
    backend = TorchBackend(tiny.args(hf_checkpoint=str(folder), **options))
    backend.setup(loss, 10, role)
    return backend


def test_a_reference_model_has_the_actors_log_probs_and_no_gradients_or_optimizer(
    tiny: SimpleNamespace, checkpoint: Callable[[str], Path]
) -> None:
    folder, batch = checkpoint("qwen3"), make_batch(tiny, micro_batch_size=4, temperature=0.9)
    reference = set_up(tiny, folder, "reference", gradient_checkpointing=True)
    actor = set_up(tiny, folder, "actor", sft_loss, lr=0.1)
    batch.columns.clear()
    assert reference.log_probs(batch) == actor.log_probs(batch)
    before = reference.log_probs(batch)
    actor.train_step(batch)
    assert reference.log_probs(batch) == before != actor.log_probs(batch)
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert not reference.model.training
    assert reference.optimizer is None


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "gemma2", "gpt2"])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_a_critics_loss_and_gradients_equal_the_models_own_hidden_states_times_its_head(
    tiny: SimpleNamespace, architecture: str, share_prompts: bool
) -> None:
    model = tiny.model(architecture)
    plain = copy.deepcopy(model)
    batch = make_batch(tiny, micro_batch_size=20, share_prompts=share_prompts)
    with tiny.float64():
        critic = tiny.backend(model, squared_error, role="critic", lr=0.0)
        with torch.no_grad():
            critic.model.value_head.weight.normal_()
        vector = critic.model.value_head.weight.detach().clone().requires_grad_()
        total, expected = 0.0, []
        for sample, returns in zip(batch.samples, batch.columns["returns"], strict=True):
            hidden = plain.base_model(input_ids=torch.tensor([sample.tokens]), use_cache=False).last_hidden_state[0]
            values = (hidden @ vector[0])[-sample.response_length - 1 : -1]
            mask = torch.tensor(sample.trained_mask)
            expected.append((values * mask).tolist())
            error = (values - torch.tensor(returns, dtype=torch.float64)).square() * mask
            total = total + error.sum() / batch.num_trained_tokens
        total.backward()
        found = critic.values(batch)
        loss = critic.train_step(batch)["loss"]
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-12)
    # The critic has no use for an output embedding of its own, so that gets no gradient.
    wanted = {name: p.grad for name, p in plain.named_parameters()} | {"value_head.weight": vector.grad}
    assert ("lm_head.weight" in wanted) == (model.lm_head.weight.grad is None) == (architecture == "llama_untied")
    tiny.assert_equal_training(loss, model, total.item(), wanted)


def test_a_new_critic_predicts_0_and_learns_without_taking_logits(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = tiny.backend(
        tiny.model("llama_untied", dtype=torch.float32),
        squared_error,
        role="critic",
        lr=0.02,
        lr_decay_style="constant",
    )
    monkeypatch.setattr(predictor_module, "token_log_probs", None)
    batch = make_batch(tiny, micro_batch_size=5)
    assert {value for row in critic.values(batch) for value in row} == {0.0}
    losses = [critic.train_step(batch)["loss"] for _ in range(12)]
    assert losses[-1] < 0.1 * losses[0]
    assert critic.evaluate(batch)["loss"] < losses[-1]


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_values_equal_those_of_the_training_forward_pass_bit_for_bit(
    tiny: SimpleNamespace, options: dict[str, bool]
) -> None:
    seen: list[torch.Tensor] = []

    def capture(args: Any, inputs: LossInputs) -> LossOutputs:
        seen.append(inputs.values.detach())
        return squared_error(args, inputs)

    critic = tiny.backend(tiny.model("qwen3", dtype=torch.float32), capture, role="critic", lr=0.1, **options)
    batch = make_batch(tiny, micro_batch_size=20, share_prompts=True)
    critic.train_step(batch)
    found = critic.values(batch)
    critic.train_step(batch)
    pairs = [zip(f, s.trained_mask, strict=True) for f, s in zip(found, batch.samples, strict=True)]
    assert torch.equal(torch.tensor([value for pair in pairs for value, flag in pair if flag]), seen[1])
    assert seen[1].any()


@pytest.mark.parametrize("architecture", ["llama", "llama_untied"])
def test_a_critic_is_resumed_bit_for_bit_and_exported_with_its_head(
    tiny: SimpleNamespace, checkpoint: Callable[[str], Path], tmp_path: Path, architecture: str
) -> None:
    folder, batch = checkpoint(architecture), make_batch(tiny, micro_batch_size=20)
    critic = set_up(tiny, folder, "critic", lr=0.02)
    critic.train_step(batch)
    state, exported = tmp_path / "state", tmp_path / "exported"
    state.mkdir()
    critic.save_state(state)
    critic.export_hf(exported)
    values = critic.values(batch)
    assert any(value for row in values for value in row)
    assert load_file(exported / "model.safetensors")["value_head.weight"].shape == (1, 32)
    assert set_up(tiny, exported, "critic").values(batch) == values

    resumed = set_up(tiny, folder, "critic", lr=0.02)
    resumed.load_state(state)
    assert resumed.values(batch) == values
    assert resumed.train_step(batch) == critic.train_step(batch)
    assert resumed.values(batch) == critic.values(batch) != values
