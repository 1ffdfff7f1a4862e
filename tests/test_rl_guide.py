"""The generate function that docs/rl.md shows does what the page says: several turns, with a tool between them."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from slime_core.contracts.engine import Generation
from slime_core.data.tokenizer import load_tokenizer
from slime_core.sample import Sample, Status
from slime_core.testing import check_component

PAGE = Path(__file__).parent.parent / "docs" / "rl.md"


@pytest.fixture
def calculator() -> ModuleType:
    block = re.search(r"^`calculator\.py`:\n\n```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block
    module = ModuleType("calculator")
    exec(block[1], vars(module))
    return module


def answers(tokenizer, texts: list[str], asked: list[int]):
    """An engine that gives these answers one after the other, and remembers how many tokens each might have."""

    async def generate(input_ids, sampling_params):
        asked.append(sampling_params["max_new_tokens"])
        text = texts[len(asked) - 1]
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return Generation(ids, [-0.5] * len(ids), "stop", [3] * len(ids), text)

    return SimpleNamespace(generate=generate)


def test_the_tools_turn_is_in_the_response_and_not_trained(calculator, tiny_model):
    tokenizer = load_tokenizer(str(tiny_model))
    args, asked = SimpleNamespace(hf_checkpoint=str(tiny_model)), []
    sample = Sample(index=0, prompt="3+4?", tokens=[1, 2])
    engine = answers(tokenizer, ["<calc>3+4</calc>", "It is 7."], asked)
    asyncio.run(calculator.generate(args, sample, {"max_new_tokens": 100}, engine))
    told = calculator.ASKED.format(7)
    assert sample.response == f"<calc>3+4</calc>{told}It is 7."
    assert (sample.calls, sample.status) == (1, Status.COMPLETED)
    response = sample.tokens[2:]
    untrained = [token for token, trained in zip(response, sample.loss_mask, strict=True) if not trained]
    assert tokenizer.decode(untrained) == told
    assert sample.weight_versions == [3] * len(response)
    last_answer = len(tokenizer.encode("It is 7.", add_special_tokens=False)) + 1
    assert asked == [100, 100 - (len(response) - last_answer)]
    assert len(sample.rollout_log_probs) == len(response) == sample.response_length


def test_it_keeps_the_contract(calculator):
    check_component("generator", calculator.generate)
