"""Tokens and log-probs are those of plain transformers, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE, ask, reference_greedy, reference_log_probs
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Glm4MoeLiteConfig,
    Glm4MoeLiteForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from slime_engine_local.engine import LocalEngine

Start = Callable[..., LocalEngine]
MODELS = {
    "llama, tied, shared key heads": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=2),
    ),
    "qwen3, untied": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE, num_key_value_heads=4, head_dim=16, tie_word_embeddings=False, eos_token_id=2),
    ),
    "mistral, sliding window": (
        MistralForCausalLM,
        MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=6, eos_token_id=2),
    ),
    "gpt2, learned positions": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    ),
}
PROMPTS = [[(7 * n + 3 * i) % 290 + 5 for i in range(length)] for n, length in enumerate([9, 1, 23, 4, 14, 2, 11])]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("max_running", [3, 64])
def test_greedy_decoding_equals_transformers_in_float64(
    name: str, max_running: int, random_model: Any, start: Start
) -> None:
    folder, model = random_model(*MODELS[name])
    engine = start(folder, model, max_running)
    limits = [12, 3, 20, 1, 9, 16, 5]  # so that requests leave and join at different steps
    answers = ask(engine, [(p, {"max_new_tokens": n, "temperature": 0}) for p, n in zip(PROMPTS, limits, strict=True)])
    for prompt, limit, answer in zip(PROMPTS, limits, answers, strict=True):
        assert answer.tokens == reference_greedy(model, prompt, limit)
        assert answer.log_probs == pytest.approx(reference_log_probs(model, prompt, answer.tokens), rel=0, abs=1e-10)
        assert answer.weight_versions == [1] * len(answer.tokens)
    assert len({token for answer in answers for token in answer.tokens}) > 10, "the model says too little to tell"


EXPERTS = {
    "qwen3, experts": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SHAPE, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    ),
    "glm 4.7 flash, experts and latent attention": (
        Glm4MoeLiteForCausalLM,
        Glm4MoeLiteConfig(
            **SHAPE,
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_nope_head_dim=12,
            qk_rope_head_dim=4,
            v_head_dim=20,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            eos_token_id=2,
        ),
    ),
}


@pytest.mark.parametrize("stored", [False, True], ids=["weights as in memory", "weights as in a checkpoint"])
@pytest.mark.parametrize("name", EXPERTS)
def test_a_mixture_of_experts_equals_transformers_in_float32(
    name: str, stored: bool, random_model: Any, start: Start, tmp_path: Path
) -> None:
    folder, model = random_model(*EXPERTS[name])
    model.float()  # transformers' grouped products know no float64
    engine = start(folder)

    def weights() -> dict[str, torch.Tensor]:
        if not stored:
            return model.state_dict()
        model.save_pretrained(tmp_path)
        return load_file(tmp_path / "model.safetensors")

    for version in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        given = weights()
        assert any(".experts.3.gate_proj." in weight for weight in given) == stored
        engine.update_weights(given.items(), version)
        answers = ask(engine, [(p, {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}) for p in PROMPTS])
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            expected = reference_log_probs(model, prompt, answer.tokens)
            assert answer.log_probs == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_greedy_decoding_of_the_real_model_equals_transformers_in_float32(
    assets: Callable[[str], Path], start: Start
) -> None:
    folder = assets("model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    questions = ["What is 2 plus 3?", "Name the capital of France.", "Hi", "List three fruits, one on each line."]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in questions
    ]
    answers = ask(start(folder, model), [(p, {"max_new_tokens": 12, "temperature": 0}) for p in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens == reference_greedy(model, prompt, 12)
        # Transformers itself is off by 1.5e-5 here, measured against float64.
        assert answer.log_probs == pytest.approx(reference_log_probs(model, prompt, answer.tokens), rel=0, abs=5e-5)
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
    assert "Paris" in answers[1].text


def test_a_request_gets_the_same_alone_and_in_a_crowd(llama: Any, start: Start) -> None:
    engine = start(*llama)
    mine = ([5, 6, 7], {"max_new_tokens": 15, "temperature": 0.9, "seed": 3, "ignore_eos": True})
    (alone,) = ask(engine, [mine])
    others = [(p, {"max_new_tokens": 4 + n, "seed": n}) for n, p in enumerate(PROMPTS)]
    crowded = ask(engine, [*others[:4], mine, *others[4:]])[4]
    assert crowded.tokens == alone.tokens
    assert crowded.log_probs == pytest.approx(alone.log_probs, rel=0, abs=1e-10)


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.5}, {"top_k": 3}])
def test_log_probs_of_sampled_tokens_are_the_trainers_at_the_temperature(limits: Any, llama: Any, start: Start) -> None:
    folder, model = llama
    params = {"max_new_tokens": 20, "temperature": 0.7, "seed": 1, "ignore_eos": True, **limits}
    (answer,) = ask(start(folder, model), [([5, 6, 7], params)])
    expected = reference_log_probs(model, [5, 6, 7], answer.tokens, temperature=0.7)
    assert answer.log_probs == pytest.approx(expected, rel=0, abs=1e-10)
    assert answer.log_probs != pytest.approx(reference_log_probs(model, [5, 6, 7], answer.tokens), abs=1e-3)
