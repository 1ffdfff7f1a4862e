"""Loading and exporting checkpoints, and refusing models that would be trained wrongly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import slime_torch.model as model_module
from slime_core.errors import ArgumentError, PluginError
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import Segments
from slime_core.testing import chat_tokenizer
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.attention import PACKED, packed_attention
from slime_torch.backend import TorchBackend


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "gemma2"])
def test_an_exported_checkpoint_reloads_with_equal_logits(
    tiny: SimpleNamespace, tmp_path: Path, architecture: str
) -> None:
    source = tmp_path / "source"
    model = tiny.model(architecture, dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], temperature=0.6, do_sample=True)
    model.save_pretrained(source)
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(source)

    backend = TorchBackend(tiny.args(hf_checkpoint=str(source), lr=0.01))
    backend.setup(sft_loss, total_steps=4)
    backend.train_step(make_train_batch(tiny.samples(tiny.mixed), micro_batch_size=3))
    backend.export_hf(tmp_path / "exported")

    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", attn_implementation="eager").eval()
    trained = backend.model.eval()
    trained.set_attn_implementation("eager")
    ids = torch.arange(1, 12)[None]
    with torch.no_grad():
        assert torch.allclose(reloaded(ids).logits, trained(ids).logits, atol=1e-5)
        assert not torch.allclose(reloaded(ids).logits, model(ids).logits, atol=1e-2)
    for name, value in backend.weights():
        assert torch.equal(value, dict(reloaded.named_parameters())[name]), name
    saved = load_file(tmp_path / "exported" / "model.safetensors")
    assert ("lm_head.weight" in saved) == (architecture == "llama_untied")
    assert PACKED not in (tmp_path / "exported" / "config.json").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").chat_template == tokenizer.chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "exported").eos_token_id == [2, 5]


def test_the_padding_token_of_a_checkpoint_learns_where_it_is_text(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Rows are not filled up, and in many checkpoints the token ends turns."""
    sample = Sample(tokens=[5, 0, 7, 0, 9], response_length=1, loss_mask=[1])  # 0 is read only
    before = tiny.model("llama_untied", dtype=torch.float32)
    learned = []
    for number in (0, None):
        before.config.pad_token_id = number
        folder = tmp_path / str(number)
        before.save_pretrained(folder)
        chat_tokenizer().save_pretrained(folder)
        backend = TorchBackend(tiny.args(hf_checkpoint=str(folder), lr=0.01))
        backend.setup(sft_loss, total_steps=4)
        backend.train_step(make_train_batch([sample]))
        learned.append(dict(backend.weights())["model.embed_tokens.weight"].clone())
    assert torch.equal(*learned)
    moved = (learned[0] - before.get_input_embeddings().weight).abs().amax(1)
    assert moved[0] > 5e-3 > moved[1], "a step of Adam; what is not there decays only"


def test_a_folder_without_a_checkpoint_is_named(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--hf-checkpoint .*nothing-here is not a Hugging Face checkpoint"):
        TorchBackend(tiny.args(hf_checkpoint=str(tmp_path / "nothing-here"))).setup(sft_loss, 1)


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("t5", d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="does not hold a causal language model"):
        model_module.load_model(str(tmp_path), torch.device("cpu"))


def test_weights_lie_in_memory_alike_wherever_the_header_of_their_file_ends(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    tiny.model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    weights, ends = load_file(tmp_path / "model.safetensors"), set()
    for note in ("", "x" * 8, "x" * 16):
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt", "note": note})
        ends.add(int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") % 64)
        model = model_module.load_model(str(tmp_path), torch.device("cpu"))
        assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, weights[name]), name
    assert len(ends) > 1


def test_a_checkpoint_with_missing_weights_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArgumentError, match=r"lacks 1 of the weights .*model\.layers\.1\.mlp\.up_proj\.weight"):
        model_module.load_model(str(tmp_path), torch.device("cpu"))


def test_a_checkpoint_without_tokenizer_is_refused(tiny: SimpleNamespace, tmp_path: Path) -> None:
    tiny.model("llama", dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="holds no tokenizer"):
        TorchBackend(tiny.args(hf_checkpoint=str(tmp_path))).setup(sft_loss, 1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "mamba", "state_size": 4, "num_hidden_layers": 2, "hidden_size": 16}, "cannot be exchanged|by"),
        ({"model_type": "bloom", "n_layer": 2, "n_head": 2, "hidden_size": 16}, "cannot|differ"),
        ({"model_type": "gpt_oss", "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
        ({"model_type": "phimoe", "num_local_experts": 2, "sliding_window": 2047}, "how long its sliding window is"),
        ({"model_type": "lfm2", "num_hidden_layers": 2, "full_attn_idxs": [1]}, "differ|conv"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_models_that_packing_would_train_wrongly_are_refused(settings: dict[str, Any], reason: str) -> None:
    shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    torch.manual_seed(0)
    settings = {**shape, **heads, **settings}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    with pytest.raises(PluginError, match=rf"The torch backend cannot train .*({reason})"):
        model_module.prepare(model)


def test_a_window_that_the_model_reads_nowhere_is_no_window(tiny: SimpleNamespace) -> None:
    model_module.prepare(tiny.model("llama", sliding_window=3))


def test_the_self_check_sees_attention_across_sequences(tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    right = model_module.packed_hidden

    def wrong(model: Any, row: Any) -> Any:
        return right(model, replace(row, segments=Segments.of([(row.input_ids.shape[1],)])))

    model_module.prepare(tiny.model("llama"))
    monkeypatch.setattr(model_module, "packed_hidden", wrong)
    with pytest.raises(PluginError, match="its log-probabilities differ"):
        model_module.prepare(tiny.model("llama"))


@pytest.mark.parametrize("key", ["final_logit_softcapping", "logits_scaling", "logit_scale"])
def test_the_self_check_sees_logits_that_differ_from_the_models_own(tiny: SimpleNamespace, key: str) -> None:
    model = tiny.model("llama")
    setattr(model.config, key, 7.0)  # Llama's own forward knows nothing of it
    with pytest.raises(PluginError, match="its log-probabilities differ"):
        model_module.prepare(model)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "is given a mask of its own"),
        ({"segments": None}, "does not hand on"),
        ({"is_causal": False}, "is not causal"),
        ({"position_bias": torch.zeros(1)}, "uses position_bias"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_attention_refuses_what_it_would_ignore(changes: dict[str, Any], problem: str) -> None:
    q = torch.randn(1, 2, 4, 8)
    given = {"attention_mask": None, "segments": Segments.of([(4,)]), **changes}
    with pytest.raises(PluginError, match=problem):
        packed_attention(torch.nn.Module(), q, q, q, **given)


def test_chunked_attention_layers_are_refused() -> None:
    module = torch.nn.Module()
    module.config, module.layer_idx = SimpleNamespace(layer_types=["chunked_attention"]), 0
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(PluginError, match="'chunked_attention'"):
        packed_attention(module, q, q, q, None, segments=Segments.of([(4,)]))


def test_checkpointing_that_the_model_has_not_is_refused(tiny: SimpleNamespace) -> None:
    def model() -> PreTrainedModel:
        return tiny.model("llama", dtype=torch.float32, model_type="jetmoe")

    with pytest.raises(ArgumentError, match="--gradient-checkpointing: JetMoeForCausalLM does not support it"):
        tiny.backend(model(), gradient_checkpointing=True)
    tiny.backend(model(), gradient_checkpointing=True, role="reference")
