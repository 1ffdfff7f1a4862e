"""LoRA: only adapters train, they train as in plain transformers with peft, and out come plain models."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, inject_adapter_in_model
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

import slime_torch.lora as lora_module
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.training.batches import make_train_batch
from slime_torch.backend import TorchBackend

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:.*is_gradient_checkpointing")
LORA = {"lora_rank": 4, "lora_alpha": 6.0}
EXPERTS = ("qwen3_moe", "glm4_moe")
ARCHITECTURES = ["llama", "llama_untied", "qwen3", "gemma2", "gpt2", *EXPERTS]


def make_backend(tiny: SimpleNamespace, model: PreTrainedModel, **options: Any) -> TorchBackend:
    """With adapters that are not 0, as they are at first."""
    backend = tiny.backend(model, **{**LORA, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2, generator=generator)
    return backend


def with_peft(plain: PreTrainedModel, adapted: PreTrainedModel) -> PreTrainedModel:
    """`plain` with the adapters of `adapted`, made by peft alone from an explicit list of layers."""
    head = plain.get_output_embeddings()
    layers = [n for n, m in plain.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    transposed = any(isinstance(module, Conv1D) for module in plain.modules())
    config = LoraConfig(r=4, lora_alpha=6.0, target_modules=layers, fan_in_fan_out=transposed)
    model = copy.deepcopy(plain)
    inject_adapter_in_model(
        config, nn.ModuleDict({"whole": model})
    )  # without a configuration, by which peft knows experts
    values = dict(adapted.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(values.pop(name))
    assert not [name for name in values if ".lora_" in name]
    return model


def is_adapter(name: str) -> bool:
    return ".lora_" in name


@pytest.mark.parametrize(
    ("architecture", "checkpointing"),
    # What is computed again in the backward pass escapes `float64`, and routers compute in float32.
    [(name, flag) for name in ARCHITECTURES for flag in (False, True) if not (flag and name in EXPERTS)],
)
def test_loss_and_gradients_equal_transformers_with_peft(
    tiny: SimpleNamespace, architecture: str, checkpointing: bool
) -> None:
    check(tiny, architecture, tiny.samples(tiny.mixed), checkpointing, micro_batch_size=4)


@pytest.mark.parametrize(
    "cut", [{"micro_batch_size": 1}, {"max_tokens": 25, "share_prompts": True}, {"micro_batch_size": 99}], ids=str
)
def test_neither_micro_batches_nor_shared_prompts_change_the_gradient(
    tiny: SimpleNamespace, cut: dict[str, Any]
) -> None:
    check(tiny, "qwen3", tiny.groups(tiny.grouped), True, **cut)


def check(tiny: SimpleNamespace, architecture: str, samples: Any, checkpointing: bool, **cut: Any) -> None:
    """Two training passes, the chunks of the cross-entropy being small, against sequences one by one."""
    plain = tiny.model(architecture)
    trained = copy.deepcopy(plain)
    with tiny.float64():
        backend = make_backend(tiny, trained, lr=0.0, gradient_checkpointing=checkpointing, log_probs_chunk_size=5)
        expected = tiny.one_by_one(with_peft(plain, trained), samples, True)
        metrics = backend.train_step(make_train_batch(samples, mean="token", **cut))
    tiny.assert_equal_training(metrics["loss"], trained, *expected)
    found = {name for name, p in trained.named_parameters() if p.grad is not None and p.grad.any()}
    assert found
    assert all(is_adapter(name) for name in found)


def test_the_check_sees_a_wrong_scaling(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lora_module.add_adapters

    def wrong(model: Any, args: Any) -> None:
        right(model, SimpleNamespace(**{**vars(args), "lora_alpha": 6.1}))

    monkeypatch.setattr(lora_module, "add_adapters", wrong)
    with pytest.raises(AssertionError):
        check(tiny, "llama", tiny.samples(tiny.mixed), False, micro_batch_size=4)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_only_adapters_change_and_have_optimizer_state(tiny: SimpleNamespace, optimizer: str) -> None:
    model = tiny.model("llama", dtype=torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    backend = make_backend(tiny, model, lr=0.05, lr_decay_style="constant", weight_decay=0.1, optimizer=optimizer)
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=4)
    losses = [backend.train_step(batch)["loss"] for _ in range(8)]
    assert losses[-1] < losses[0]
    base = {name.replace(".base_layer", ""): p for name, p in model.named_parameters() if not is_adapter(name)}
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], wanted) for name, wanted in before.items())
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in backend.optimizer.state} == {n for n in names.values() if is_adapter(n)}


def test_a_new_adapter_changes_nothing(tiny: SimpleNamespace) -> None:
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)
    found = [tiny.backend(tiny.model("qwen3", torch.float32), **o).log_probs(batch) for o in ({}, LORA)]
    assert found[0] == found[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engine_gets_merged_weights_under_plain_names(tiny: SimpleNamespace, architecture: str) -> None:
    plain = tiny.model(architecture)
    model = copy.deepcopy(plain)
    backend = make_backend(tiny, model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = dict(backend.weights())
    stored = [name for name, _ in plain.named_buffers() if name in plain.state_dict()]
    assert list(weights) == [name for name, _ in plain.named_parameters()] + stored
    changed = [name for name, p in plain.named_parameters() if not torch.equal(p, weights[name])]
    assert len(changed) == sum(".lora_A." in name for name in before) > 0
    ids = torch.arange(12)[None]
    merged = copy.deepcopy(plain)
    merged.load_state_dict(weights, strict=False)
    merged.tie_weights()
    with tiny.float64(), torch.no_grad():
        wanted = with_peft(plain, model).eval()(input_ids=ids).logits
        found = merged.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "gpt2", *EXPERTS])
def test_an_export_is_a_plain_model_with_its_adapter_beside_it(
    tiny: SimpleNamespace, tmp_path: Path, architecture: str
) -> None:
    plain = tiny.model(architecture)
    model = copy.deepcopy(plain)
    make_backend(tiny, model).export_hf(tmp_path / "exported")
    plain.save_pretrained(tmp_path / "plain")
    assert names_in(tmp_path / "exported") == names_in(tmp_path / "plain")

    def load(name: str) -> PreTrainedModel:
        options = {"experts_implementation": "eager"} if architecture in EXPERTS else {}
        return AutoModelForCausalLM.from_pretrained(
            tmp_path / name, dtype=torch.float64, attn_implementation="eager", **options
        )

    ids = torch.arange(12)[None]
    base, exported = load("plain"), load("exported")
    read_by_peft = PeftModel.from_pretrained(load("plain"), tmp_path / "exported" / "adapter")
    with tiny.float64(), torch.no_grad():
        wanted = with_peft(base, model).eval()(input_ids=ids).logits
        for found in (exported, read_by_peft):
            torch.testing.assert_close(found.eval()(input_ids=ids).logits, wanted, rtol=1e-11, atol=1e-11)


def test_an_adapter_names_the_weights_that_it_lies_on(tiny: SimpleNamespace, tmp_path: Path) -> None:
    base, other = tiny.model("llama", dtype=torch.float32), tiny.model("llama", dtype=torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    base.save_pretrained(tmp_path / "base")
    other.save_pretrained(tmp_path / "other")
    folders = {"hf_checkpoint": str(tmp_path / "base"), "ref_load": str(tmp_path / "other")}
    make_backend(tiny, other, **folders).export_hf(tmp_path / "exported")
    ids = torch.arange(12)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "exported" / "adapter", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_resumed_run_equals_the_unbroken_one_and_its_checkpoint_holds_adapters_only(
    tiny: SimpleNamespace, tmp_path: Path, optimizer: str
) -> None:
    def backend() -> TorchBackend:
        model = tiny.model("llama", dtype=torch.float32)
        return make_backend(tiny, model, lr=0.02, lora_dropout=0.3, optimizer=optimizer)

    batches = [make_train_batch(tiny.samples(tiny.mixed, seed=n), micro_batch_size=3) for n in range(4)]
    first = backend()
    for batch in batches[:2]:
        first.train_step(batch)
    first.save_state(tmp_path)
    expected = [first.train_step(batch) for batch in batches[2:]]
    second = backend()
    second.load_state(tmp_path)
    assert [second.train_step(batch) for batch in batches[2:]] == expected
    for (name, wanted), (_, found) in zip(first.weights(), second.weights(), strict=True):
        assert torch.equal(wanted, found), name
    stored = torch.distributed.checkpoint.FileSystemReader(tmp_path).read_metadata().state_dict_metadata
    assert {name for name in stored if name.startswith("model.")} == {
        f"model.{name}" for name, _ in first.model.named_parameters() if is_adapter(name)
    }


def test_a_checkpoint_of_another_adapter_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    make_backend(tiny, tiny.model()).save_state(tmp_path)
    for options in ({"lora_rank": 8}, {"lora_rank": 0}, {"target_modules": ["q_proj"]}):
        with pytest.raises(CheckpointError, match="--lora-rank"):
            tiny.backend(tiny.model(), **{**LORA, **options}).load_state(tmp_path)


def test_the_reference_is_the_model_with_its_adapters_off_bit_for_bit(tiny: SimpleNamespace) -> None:
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)
    expected = tiny.backend(tiny.model("qwen3", torch.float32), role="reference").log_probs(batch)
    actor = make_backend(tiny, tiny.model("qwen3", torch.float32), lr=0.1, lr_decay_style="constant")
    reference = actor.reference()
    assert reference.log_probs(batch) == expected != actor.log_probs(batch)
    trained = actor.train_step(batch)
    assert trained["grad_norm"] > 0
    assert reference.log_probs(batch) == expected
    assert actor.train_step(batch)["loss"] < trained["loss"]
    assert tiny.backend(tiny.model(), lora_rank=0).reference() is None


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_log_probs_equal_those_of_the_training_forward_pass_bit_for_bit(
    tiny: SimpleNamespace, options: dict[str, bool]
) -> None:
    seen: list[torch.Tensor] = []

    def capture(args: Any, inputs: LossInputs) -> LossOutputs:
        seen.append(inputs.log_probs.detach())
        return LossOutputs(inputs.reduce(-inputs.log_probs))

    backend = tiny.backend(tiny.model("qwen3", dtype=torch.float32), capture, lr=0.1, **LORA, **options)
    batch = make_train_batch(tiny.groups(tiny.grouped), micro_batch_size=20, share_prompts=True)
    before = backend.log_probs(batch)
    assert backend.train_step(batch)["grad_norm"] > 0
    found = backend.log_probs(batch)
    assert found != before
    backend.train_step(batch)
    pairs = [zip(f, s.trained_mask, strict=True) for f, s in zip(found, batch.samples, strict=True)]
    assert torch.equal(torch.tensor([value for pair in pairs for value, flag in pair if flag]), seen[1])


def test_a_critic_trains_its_head_whole_and_the_rest_by_adapters(tiny: SimpleNamespace, tmp_path: Path) -> None:
    def squared_error(args: Any, inputs: LossInputs) -> LossOutputs:
        return LossOutputs(inputs.reduce((inputs.values - 1.0).square()))

    critic = tiny.backend(
        tiny.model("llama", torch.float32), squared_error, role="critic", lr=0.02, lr_decay_style="constant", **LORA
    )
    trained = [name for name, p in critic.model.named_parameters() if p.requires_grad]
    assert [name for name in trained if not is_adapter(name)] == ["value_head.weight"]
    batch = make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3)
    losses = [critic.train_step(batch)["loss"] for _ in range(12)]
    assert losses[-1] < 0.5 * losses[0]
    critic.export_hf(tmp_path)
    assert "value_head.weight" in names_in(tmp_path)


def test_named_layers_alone_get_an_adapter(tiny: SimpleNamespace) -> None:
    backend = tiny.backend(tiny.model(), **LORA, target_modules=["q_proj", "down_proj"])
    adapted = {name.split(".")[-4] for name, _ in backend.model.named_parameters() if ".lora_A." in name}
    assert adapted == {"q_proj", "down_proj"}


@pytest.mark.parametrize("unknown", ["c_attn", "lm_head", "embed_tokens"])
def test_an_unknown_layer_is_an_error_that_names_those_there_are(tiny: SimpleNamespace, unknown: str) -> None:
    with pytest.raises(ArgumentError, match=rf"--target-modules {unknown} .*down_proj, gate_proj, k_proj, o_proj"):
        tiny.backend(tiny.model(), **LORA, target_modules=["q_proj", unknown])
