"""New weights are taken over whole, between two steps; weights that do not fit change nothing."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from local_engine_cases import Passes, ask, endless_greedy, until, weights_of
from torch import Tensor
from transformers import LlamaForCausalLM

from slime_engine_local.engine import LocalEngine
from slime_engine_local.errors import EngineError

Start = Callable[..., LocalEngine]
PROMPT = [5, 6, 7]
ENDLESS = {"max_new_tokens": 120, "seed": 0, "ignore_eos": True}


def test_weights_are_copied_and_versions_tell_which_made_a_token(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder)
    other = LlamaForCausalLM(model.config).double().eval()
    other.load_state_dict(model.state_dict())
    engine.update_weights(weights_of(other), version=7)
    greedy = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(-1.5)
    (old,) = ask(engine, [(PROMPT, greedy)])
    assert old.tokens == endless_greedy(model, PROMPT, 8)
    assert old.weight_versions == [7] * 8
    engine.update_weights(weights_of(other), version=8)
    (new,) = ask(engine, [(PROMPT, greedy)])
    assert new.tokens == endless_greedy(other, PROMPT, 8) != old.tokens
    assert new.weight_versions == [8] * 8


def test_an_update_while_requests_run_is_taken_between_two_steps(llama: Any, start: Start) -> None:
    engine = start(*llama)
    running = threading.Event()

    def hold(number: int) -> None:
        if number == 10:
            running.set()
            until(lambda: bool(engine._scheduler._calls))

    Passes(engine, hold)

    async def scenario() -> Any:
        request = asyncio.create_task(engine.generate(PROMPT, ENDLESS))
        await asyncio.to_thread(running.wait)
        await asyncio.to_thread(engine.update_weights, weights_of(llama[1]), 2)
        return await request

    versions = asyncio.run(scenario()).weight_versions
    assert versions == [1] * 10 + [2] * 110


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], "model.norm.weight is missing"),
        (lambda w: [*w, ("model.surplus", w[0][1])], "model.surplus is unknown"),
        (lambda w: [(w[0][0], w[0][1][:-1]), *w[1:]], "shape (299, 32), expected (300, 32)"),
        (lambda w: w[3:], "3 such problems"),
        (lambda w: [], "no weights"),
    ],
    ids=["missing", "unknown", "shape", "several", "none"],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(
    change: Any, message: str, llama: Any, start: Start
) -> None:
    folder, model = llama
    engine = start(folder)
    wrong = [(name, tensor + 1) for name, tensor in change(weights_of(model))]
    with pytest.raises(EngineError) as refusal:
        engine.update_weights(wrong, 1)
    assert message in str(refusal.value)
    with pytest.raises(EngineError, match="handed no weights"):
        ask(engine, [(PROMPT, {"max_new_tokens": 4})])
    engine.update_weights(weights_of(model), 2)
    with pytest.raises(EngineError):
        engine.update_weights(wrong, 3)
    (answer,) = ask(engine, [(PROMPT, {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True})])
    assert (answer.tokens, answer.weight_versions) == (endless_greedy(model, PROMPT, 4), [2] * 4)


def test_weights_that_come_one_by_one_are_taken_between_two_steps_as_well(llama: Any, start: Start) -> None:
    engine, (_, model) = start(*llama), llama
    running, later = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 10:
            running.set()
            until(lambda: bool(engine._scheduler._calls))

    passes = Passes(engine, hold)
    made: list[int] = []

    def slowly() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights_of(model):
            later.wait(0.02)
            made.append(len(passes.tokens))
            yield name, tensor * 1.1

    async def scenario() -> Any:
        request = asyncio.create_task(engine.generate(PROMPT, ENDLESS))
        await asyncio.to_thread(running.wait)
        await asyncio.to_thread(engine.update_weights, slowly(), 2)
        return await request

    answer = asyncio.run(scenario())
    assert answer.weight_versions == [1] * 10 + [2] * 110
    assert len(set(made)) == 1, "a step was made while weights came"
    other = LlamaForCausalLM(model.config).double().eval()
    other.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()})
    greedy = {"max_new_tokens": 8, "temperature": 0, "ignore_eos": True}
    (new,) = ask(engine, [(PROMPT, greedy)])
    assert new.tokens == endless_greedy(other, PROMPT, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:-1], "model.norm.weight is missing"),
        (lambda w: [*w, ("model.surplus", w[0][1])], "model.surplus is unknown"),
        (lambda w: [*w[:3], (w[3][0], w[3][1][:-1])], "has shape"),
        (lambda w: [*w[:2], ("fails", None)], "the trainer is gone"),
    ],
    ids=["missing", "unknown", "shape", "trainer"],
)
def test_an_update_that_fails_half_way_lets_no_request_see_half_a_model(
    change: Any, message: str, llama: Any, start: Start
) -> None:
    engine, (_, model) = start(*llama), llama

    def given() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in change(weights_of(model)):
            if name == "fails":
                raise RuntimeError("the trainer is gone.")
            yield name, tensor

    greedy = {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True}
    with pytest.raises(EngineError, match=message):
        engine.update_weights(given(), 2)
    for _ in range(2):
        with pytest.raises(
            EngineError, match=rf"update to weights of version 2 failed: .*{message}.* had been replaced"
        ):
            ask(engine, [(PROMPT, greedy)])
    engine.update_weights(iter(weights_of(model)), 3)
    (answer,) = ask(engine, [(PROMPT, greedy)])
    assert (answer.tokens, answer.weight_versions) == (endless_greedy(model, PROMPT, 4), [3] * 4)


def test_a_first_weight_that_does_not_fit_changes_nothing(llama: Any, start: Start) -> None:
    engine, (_, model) = start(*llama), llama
    with pytest.raises(EngineError, match="surplus is unknown"):
        engine.update_weights(iter([("surplus", weights_of(model)[0][1])]), 2)
    (answer,) = ask(engine, [(PROMPT, {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True})])
    assert (answer.tokens, answer.weight_versions) == (endless_greedy(model, PROMPT, 4), [1] * 4)


def test_weights_that_come_one_by_one_are_not_kept(llama: Any, start: Start) -> None:
    engine, (_, model) = start(*llama), llama
    living: set[str] = set()
    most = 0

    def given() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name, tensor in weights_of(model):
            own = tensor.clone()
            living.add(name)
            weakref.finalize(own, living.discard, name)
            most = max(most, len(living))
            yield name, own
            del own

    engine.update_weights(given(), 2)
    assert most <= 2


def test_tied_weights_may_come_under_either_name(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder)
    engine.update_weights([(n.replace("model.embed_tokens", "lm_head"), w) for n, w in weights_of(model)], 1)
    (answer,) = ask(engine, [(PROMPT, {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True})])
    assert answer.tokens == endless_greedy(model, PROMPT, 4)


def test_weights_that_give_nan_are_an_error_and_good_ones_heal_it(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    engine.update_weights([(name, tensor * float("nan")) for name, tensor in weights_of(model)], 2)
    with pytest.raises(EngineError, match="version 2"):
        ask(engine, [(PROMPT, {"max_new_tokens": 4})])
    engine.update_weights(weights_of(model), 3)
    (answer,) = ask(engine, [(PROMPT, {"max_new_tokens": 4, "temperature": 0, "ignore_eos": True})])
    assert answer.tokens == endless_greedy(model, PROMPT, 4)
