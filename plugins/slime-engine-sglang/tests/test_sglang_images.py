"""Real SGLang servers are shown images: their log-probs are those of transformers, also after new weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang_cases as cases
import torch

pytest.importorskip("sglang", reason="needs SGLang; scripts/test-sglang.sh makes an environment with it")
pytest.importorskip("sglang_router")
pytest.importorskip("torchvision.transforms", reason="SGLang's image processors need torchvision")

from transformers import AutoModelForImageTextToText
from vision_checkpoints import picture, write_checkpoint

from slime_core.data.vision import load_processor
from slime_core.sample import Sample
from slime_engine_sglang.engine import SGLangEngine

pytestmark = pytest.mark.timeout(1200)
IMAGES = [picture(60, 40), picture(90, 30)]


class Shown:
    """An engine with one server, and the same model in plain transformers."""

    def __init__(self, folder: Path, family: str) -> None:
        self.checkpoint = write_checkpoint(folder / family, family, max_position_embeddings=2048)
        self.processor: Any = load_processor(str(self.checkpoint))
        self.model = AutoModelForImageTextToText.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        self.engine = SGLangEngine(cases.arguments(self.checkpoint, folder / "run", "--sglang-log-level", "info"))

    def prompt(self, *images: bytes) -> list[int]:
        ids = [1, 2]
        for number, count in enumerate(self.processor.counts(images)):
            ids += [258, *[self.processor.token] * count, 259, 10 + number]
        return ids

    def ask(self, *images: bytes, count: int = 12, **params: Any) -> Any:
        params = {"max_new_tokens": count, "temperature": 1.0, "ignore_eos": True, **params}
        more = {"images": images} if images else {}
        return asyncio.run(
            asyncio.wait_for(self.engine.generate(self.prompt(*images), params, **more), cases.PATIENCE_S)
        )

    @torch.no_grad()
    def difference(self, answer: Any, *images: bytes, temperature: float = 1.0) -> float:
        """The largest one between the engine's log-probs and those of transformers."""
        prompt = self.prompt(*images)
        tokens = torch.tensor([[*prompt, *answer.tokens]])
        sample = Sample(tokens=tokens[0].tolist(), images=list(images), response_length=len(answer.tokens))
        logits = self.model(input_ids=tokens, **self.processor.alone(sample, tokens)).logits[0, len(prompt) - 1 : -1]
        found = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        return float((found - torch.tensor(answer.log_probs)).abs().max())


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def shown(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    made = Shown(tmp_path_factory.mktemp(request.param), request.param)
    yield made
    made.engine.close()


def test_log_probs_of_prompts_with_images_are_those_of_transformers(shown: Shown) -> None:
    for images in (IMAGES, IMAGES[1:], []):
        for temperature in (1.0, 0.7):
            answer = shown.ask(*images, temperature=temperature)
            assert len(answer.tokens) == 12
            assert shown.difference(answer, *images, temperature=temperature) < 1e-5
    assert shown.ask(*IMAGES, temperature=0.0).log_probs != shown.ask(*reversed(IMAGES), temperature=0.0).log_probs


def test_no_response_has_a_token_that_stands_for_images(shown: Shown) -> None:
    banned = {260, 261}
    with torch.no_grad():
        shown.model.lm_head.weight[sorted(banned)] *= 4  # so that one is drawn every few tokens
    shown.engine.update_weights(iter(list(shown.model.named_parameters())), 1)
    answers = [shown.ask(*IMAGES, count=40, temperature=temperature) for temperature in (1.0, 1.0, 0.0)]
    assert all(len(answer.tokens) == 40 and banned.isdisjoint(answer.tokens) for answer in answers)
    assert all(set(answer.weight_versions) == {1} for answer in answers)
    assert max(shown.difference(answer, *IMAGES) for answer in answers) < 1e-5


@pytest.mark.parametrize("transport", ["nccl", "tensor", "disk"])
def test_new_weights_of_text_and_vision_reach_the_servers(shown: Shown, transport: str) -> None:
    with torch.no_grad():
        for parameter in shown.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sender = shown.engine.weight_sender()
    sender.transport = transport  # type: ignore[assignment]  # one of them
    try:
        sender.send(iter(list(shown.model.named_parameters())), 2)
    finally:
        sender.close()
    answer = shown.ask(*IMAGES)
    assert set(answer.weight_versions) == {2}
    assert shown.difference(answer, *IMAGES) < 1e-5
