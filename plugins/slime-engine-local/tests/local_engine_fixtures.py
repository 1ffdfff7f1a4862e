"""Engines on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_engine_cases import SHAPE, engine_args, weights_of
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel

from slime_engine_local.engine import LocalEngine


@pytest.fixture
def start() -> Iterator[Callable[..., LocalEngine]]:
    """`start(folder, model, max_running, max_tokens, option=…)`: an engine with the model's weights, closed at the end."""
    engines: list[LocalEngine] = []

    def make(
        folder: Path, model: Any = None, max_running: int = 64, max_tokens: int = 65536, **more: Any
    ) -> LocalEngine:
        engine = LocalEngine(engine_args(folder, max_running, max_tokens, **more))
        engines.append(engine)
        if model is not None:
            engine.update_weights(weights_of(model), version=1)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def random_model(
    assets: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, PreTrainedModel]]:
    """`random_model(ModelClass, config)`: a folder with configuration and tokenizer but no weights, and the model in
    float64. Weights are large, so that greedy decoding does not end in a loop of one token."""
    tokenizer = AutoTokenizer.from_pretrained(assets("tokenizers") / "smollm2")

    def make(model_class: type[PreTrainedModel], config: PretrainedConfig) -> tuple[Path, PreTrainedModel]:
        folder = tmp_path_factory.mktemp("random")
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        model = model_class(config).double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        return folder, model

    return make


@pytest.fixture(scope="session")
def llama(random_model: Callable[..., tuple[Path, PreTrainedModel]]) -> tuple[Path, PreTrainedModel]:
    """A tied Llama with shared key heads. Nothing in its configuration ends a response but tokens 1 and 2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{**SHAPE, "max_position_embeddings": 128},
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=[1, 2],
    )
    return random_model(LlamaForCausalLM, config)
