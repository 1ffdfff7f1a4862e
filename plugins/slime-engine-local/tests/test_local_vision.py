"""The embedded engine shows images to the model: what it answers is what transformers computes for each prompt alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from local_engine_cases import Passes, engine_args, held, until, weights_of
from vision_checkpoints import FAMILIES, make_model, picture, write_checkpoint

from slime_core.contracts.engine import Generation
from slime_core.data.vision import load_processor
from slime_core.errors import ArgumentError
from slime_core.sample import Sample
from slime_engine_local.engine import LocalEngine

A, B, C = picture(60, 40), picture(40, 90), picture(30, 30)
NEAR = {family: 1e-6 if family == "gemma3" else 1e-9 for family in FAMILIES}  # parts of Gemma 3 are computed in float32
Asked = tuple[list[int], list[bytes]]


@pytest.fixture(scope="module", params=FAMILIES)
def vision(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A checkpoint of a family, its processor, its model in float64, and an engine with these weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("vision") / request.param, request.param)
    model = make_model(request.param).double().eval()
    engine = LocalEngine(engine_args(folder))
    engine.update_weights(weights_of(model), version=1)
    yield SimpleNamespace(
        folder=folder, processor=load_processor(str(folder)), model=model, engine=engine, family=request.param
    )
    engine.close()


def prompt(vision: Any, *parts: Any, seed: int = 0) -> Asked:
    """Random text (given as numbers of tokens) and images: the ids, and the images."""
    random = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    images: list[bytes] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 250, (part,), generator=random).tolist()
        else:
            ids += [258, *[vision.processor.token] * vision.processor.counts([part])[0], 259]
            images.append(part)
    return ids, images


def prompts(vision: Any) -> list[Asked]:
    """None, one and several images, one at the very end, and two that differ in nothing but the pixels of an image."""
    return [
        prompt(vision, 7, seed=1),
        prompt(vision, 3, A, 5, seed=2),
        prompt(vision, 20, B, 1, C, 6, seed=3),
        prompt(vision, 4, A, seed=4),
        prompt(vision, 18, A, 5, seed=5),
        prompt(vision, 18, picture(60, 40, seed=9), 5, seed=5),
    ]


def ask(engine: LocalEngine, asked: Sequence[Asked], **params: Any) -> list[Generation]:
    """Answers to prompts that are there before the first begins."""
    chosen = {"max_new_tokens": 6, "seed": 3, "ignore_eos": True, **params}

    async def together() -> list[Generation]:
        with held(engine):
            tasks = [asyncio.create_task(engine.generate(ids, chosen, images=images)) for ids, images in asked]
            scheduler = engine._scheduler
            await asyncio.to_thread(until, lambda: len(scheduler._arrived) + len(scheduler._waiting) >= len(asked))
        return await asyncio.gather(*tasks)

    return asyncio.run(together())


@torch.no_grad()
def reference(vision: Any, asked: Asked, tokens: Sequence[int], model: Any = None) -> torch.Tensor:
    """The log-probs at the places of some answer's tokens, (R, V), from one forward pass of transformers."""
    ids = torch.tensor([[*asked[0], *tokens]])
    sample = Sample(tokens=ids[0].tolist(), images=asked[1])
    model = model or vision.model
    given = {
        n: x.to(model.dtype) if x.is_floating_point() else x for n, x in vision.processor.alone(sample, ids).items()
    }
    logits = model(input_ids=ids, use_cache=False, **given).logits[0, len(asked[0]) - 1 : -1]
    return torch.log_softmax(logits, -1)


@contextmanager
def tower_calls(engine: LocalEngine) -> Iterator[list[int]]:
    """Counts how often the vision tower is asked."""
    model: Any = engine._scheduler.model
    body, calls = model._module.model, list[int]()
    own = body.get_image_features

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    body.get_image_features = counted
    try:
        yield calls
    finally:
        del body.get_image_features


def test_log_probs_are_those_of_transformers_alone(vision: Any) -> None:
    asked = prompts(vision)
    for one, answer in zip(asked, ask(vision.engine, asked), strict=True):
        expected = reference(vision, one, answer.tokens)[range(6), answer.tokens].tolist()
        assert answer.log_probs == pytest.approx(expected, abs=NEAR[vision.family])
    for one in asked:
        scored = asyncio.run(vision.engine.score(one[0], images=one[1]))
        expected = reference(vision, (one[0][:1], one[1]), one[0][1:])[range(len(one[0]) - 1), one[0][1:]].tolist()
        assert [token.log_prob for token in scored] == pytest.approx(expected, abs=NEAR[vision.family])


def test_greedy_answers_are_those_of_transformers_generate(vision: Any) -> None:
    special = [[t] for t in (vision.processor.token, vision.processor.config.to_dict().get("video_token_id")) if t]
    for one in prompts(vision)[1:4]:
        answer = ask(vision.engine, [one], temperature=0)[0]
        ids = torch.tensor([one[0]])
        given = {
            n: x.double() if x.is_floating_point() else x
            for n, x in vision.processor.alone(Sample(tokens=one[0], images=one[1]), ids).items()
        }
        limits = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        expected = vision.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), bad_words_ids=special, **given, **limits
        )
        assert answer.tokens == expected[0, len(one[0]) :].tolist()


def test_float32_log_probs_are_near_those_of_transformers(vision: Any) -> None:
    model = make_model(vision.family)
    engine = LocalEngine(engine_args(vision.folder))
    try:
        engine.update_weights(weights_of(model), version=1)
        for one, answer in zip(asked := prompts(vision), ask(engine, asked), strict=True):
            expected = reference(vision, one, answer.tokens, model)[range(6), answer.tokens].tolist()
            assert answer.log_probs == pytest.approx(expected, abs=1e-5)
    finally:
        engine.close()


def test_a_group_computes_its_images_once_and_other_images_share_nothing(vision: Any) -> None:
    one, other = prompts(vision)[4:]
    assert one[0] == other[0]
    alone = [ask(vision.engine, [asked], max_new_tokens=4, seed=5)[0] for asked in (one, other)]
    assert alone[0].log_probs != alone[1].log_probs
    until(lambda: not len(vision.engine._gallery._pictures))  # nothing of them is kept
    with tower_calls(vision.engine) as calls:
        passes = Passes(vision.engine)
        together = ask(vision.engine, [one, one, other, one, other], max_new_tokens=4, seed=5)
    assert len(calls) == 2
    assert passes.tokens[0] < 3 * len(one[0])  # prompts are computed once each
    for answer, expected in zip(together, [alone[n] for n in (0, 0, 1, 0, 1)], strict=True):
        assert answer.tokens == expected.tokens
        assert answer.log_probs == pytest.approx(expected.log_probs, abs=1e-9)
    until(lambda: not len(vision.engine._gallery._pictures))
    vision.engine.update_weights(weights_of(vision.model), version=2)
    with tower_calls(vision.engine) as calls:
        assert ask(vision.engine, [one], max_new_tokens=4, seed=5)[0].tokens == alone[0].tokens
    assert len(calls) == 1


def test_an_aborted_answer_goes_on_as_if_nothing_had_happened(vision: Any) -> None:
    for one in prompts(vision)[1:4]:
        whole = ask(vision.engine, [one], max_new_tokens=8)[0]
        for cut in (1, 5):
            rest = ask(vision.engine, [([*one[0], *whole.tokens[:cut]], one[1])], max_new_tokens=8 - cut)[0]
            assert rest.tokens == whole.tokens[cut:]


def test_preempted_answers_are_the_same(vision: Any) -> None:
    asked = prompts(vision)[1:5]
    expected = ask(vision.engine, asked, max_new_tokens=16)
    engine = LocalEngine(engine_args(vision.folder, max_tokens=100))
    try:
        engine.update_weights(weights_of(vision.model), version=1)
        passes = Passes(engine)
        assert [a.tokens for a in ask(engine, asked, max_new_tokens=16)] == [a.tokens for a in expected]
        assert len(passes.sizes) > 16  # not all ran together
        assert max(passes.stored) <= 100
    finally:
        engine.close()


def test_tokens_of_images_are_never_chosen(vision: Any) -> None:
    special = sorted(vision.engine._special)
    assert vision.processor.token in special
    model = make_model(vision.family).double()
    with torch.no_grad():
        model.lm_head.weight[special] = model.lm_head.weight[special] * 50 + 50
    engine = LocalEngine(engine_args(vision.folder))
    try:
        engine.update_weights(weights_of(model), version=1)
        for params in ({"temperature": 0}, {"temperature": 1.0}, {"top_k": 3}):
            for answer in ask(engine, prompts(vision)[:3], max_new_tokens=20, **params):
                assert not set(answer.tokens) & set(special)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids, images: (ids, []), r"image tokens, and its 0 images give 0 features"),
        (lambda ids, images: (ids, [*images, A]), r"2 images give"),
        (
            lambda ids, images: (ids * 2, images),
            r"image tokens behind those of its 1 images, .* later turns ask, must be text",
        ),
        (lambda ids, images: (ids[:5], images), r"image tokens, and its 1 images give"),
        (lambda ids, images: (ids, [b"no image"]), r"image 1: "),
        (lambda ids, images: (ids, [images[0][:300]]), r"image"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_others_go_on(vision: Any, spoil: Any, message: str) -> None:
    good = prompt(vision, 3, A, 1, seed=2)
    ids, images = spoil(*good)
    with pytest.raises(ArgumentError, match=message):
        asyncio.run(vision.engine.generate(ids, {"max_new_tokens": 3}, images=images))
    assert len(ask(vision.engine, [good])[0].tokens) == 6
