"""Where the engine's weights come from; that they are copies; and the faster forms of layers that they are kept in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE, ask, ask_at_once, engine_args, reference_log_probs, weights_of
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from slime_core.contracts.engine import Generation
from slime_engine_local.engine import LocalEngine
from slime_engine_local.errors import EngineError
from slime_engine_local.model import LanguageModel
from slime_engine_local.packed import PackedLinear, packing_works

Start = Callable[..., LocalEngine]
PROMPT = list(range(5, 30))
GREEDY = {"max_new_tokens": 10, "temperature": 0, "ignore_eos": True}


def from_threads(engine: LocalEngine, count: int) -> list[Generation]:
    """Answers to requests from several threads, each with an event loop of its own."""
    answers: list[Generation] = []
    threads = [
        threading.Thread(target=lambda seed=seed: answers.extend(ask(engine, [(PROMPT, {**GREEDY, "seed": seed})] * 3)))
        for seed in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_without_weights_the_checkpoints_are_loaded_once_as_version_0(
    tiny_model: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    original = LanguageModel.from_checkpoint

    def counted(checkpoint: str, quantised: None) -> LanguageModel:
        loads.append(checkpoint)
        return original(checkpoint, quantised)

    monkeypatch.setattr(LanguageModel, "from_checkpoint", counted)
    engine = start(tiny_model)
    answers = from_threads(engine, 5)
    assert len(loads) == 1
    assert len(answers) == 15
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    expected = reference_log_probs(model, PROMPT, answers[0].tokens)
    for answer in answers:
        assert answer.weight_versions == [0] * 10
        assert answer.tokens == answers[0].tokens
        assert answer.log_probs == pytest.approx(expected, abs=1e-5)
    engine.update_weights(weights_of(model), 4)
    assert ask(engine, [(PROMPT, GREEDY)])[0].weight_versions == [4] * 10
    assert len(loads) == 1


def test_weights_of_another_format_than_the_checkpoints_take_their_place(tiny_model: Path, start: Start) -> None:
    engine = start(tiny_model)
    ask(engine, [(PROMPT, GREEDY)])
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()

    async def scenario() -> Generation:
        running = asyncio.create_task(engine.generate(PROMPT, {**GREEDY, "max_new_tokens": 300}))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.update_weights, weights_of(model), 1)
        return await running

    assert len(asyncio.run(scenario()).tokens) == 300
    (answer,) = ask(engine, [(PROMPT, GREEDY)])
    expected = reference_log_probs(model, PROMPT, answer.tokens)
    assert answer.log_probs == pytest.approx(expected, rel=0, abs=1e-10)


def test_a_checkpoint_without_weights_is_an_error_that_says_so(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder)
    with pytest.raises(EngineError, match=r"handed no weights, and those of .* cannot be loaded"):
        ask(engine, [(PROMPT, GREEDY)])
    engine.update_weights(weights_of(model), 1)
    assert ask(engine, [(PROMPT, GREEDY)])[0].tokens == ask(engine, [(PROMPT, GREEDY)])[0].tokens


def test_the_trainer_may_change_its_weights_while_the_engine_generates(tiny_model: Path, start: Start) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    engine = start(tiny_model, model)
    cases = [(PROMPT, {**GREEDY, "max_new_tokens": 200})] * 4
    expected = ask_at_once(engine, cases)
    stop = threading.Event()

    def train() -> None:
        while not stop.is_set():
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)

    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        answers = ask_at_once(engine, cases)
    finally:
        stop.set()
        trainer.join()
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]


SHAPES = {**SHAPE, "num_key_value_heads": 2, "eos_token_id": 2}
FUSED = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPES, tie_word_embeddings=True)),
    "llama, biases": (LlamaForCausalLM, LlamaConfig(**SHAPES, attention_bias=True, mlp_bias=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPES, head_dim=16)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPES, sliding_window=12)),
}
NOT_FUSED = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SHAPES, residual_multiplier=0.3, embedding_multiplier=2.0)),
    "smollm3": (SmolLM3ForCausalLM, SmolLM3Config(**SHAPES, no_rope_layers=[1, 0])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", [*FUSED, *NOT_FUSED])
def test_layers_are_fused_where_that_changes_nothing_and_take_new_weights(
    name: str, dtype: torch.dtype, random_model: Any, start: Start
) -> None:
    folder, model = random_model(*{**FUSED, **NOT_FUSED}[name])
    model.to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.2)
    engine = start(folder, model)
    own = engine._scheduler.model
    assert (own._decoder is not None) == (name in FUSED)
    if dtype == torch.float32 and packing_works():
        assert not [m for m in own._module.modules() if type(m) is torch.nn.Linear and m.weight is not None]
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    for version in (1, 2):
        (answer,) = ask(engine, [(PROMPT, GREEDY)])
        assert answer.weight_versions == [version] * 10
        expected = reference_log_probs(model, PROMPT, answer.tokens)
        assert answer.log_probs == pytest.approx(expected, rel=0, abs=tolerance)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=dtype))
        assert reference_log_probs(model, PROMPT, answer.tokens) != pytest.approx(expected, rel=0, abs=1e-2)
        engine.update_weights(weights_of(model), version + 1)


@pytest.mark.skipif(not packing_works(), reason="PyTorch here has no packed products")
def test_a_model_that_reads_the_weights_of_its_layers_is_left_as_it_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.down_proj(torch.nn.functional.silu(x @ self.gate_proj.weight.t()) * self.up_proj(x))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    model = LanguageModel.from_checkpoint(str(tiny_model))
    assert model._decoder is None
    assert not [module for module in model._module.modules() if isinstance(module, PackedLinear)]


def test_an_engine_is_made_without_reading_weights(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LanguageModel, "from_checkpoint", lambda *given: pytest.fail("read"))
    LocalEngine(engine_args(tiny_model)).close()
