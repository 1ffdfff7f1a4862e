"""What ends a response: stop strings, stop tokens, the checkpoint's end tokens; and its least length."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from local_engine_cases import ask, reference_log_probs
from transformers import AutoTokenizer

from slime_engine_local.engine import LocalEngine
from slime_engine_local.sampling import SamplingParams, choose_tokens

Start = Callable[..., LocalEngine]
PROMPT = [5, 6, 7]
FREE = {"max_new_tokens": 60, "seed": 5, "ignore_eos": True}


def test_a_stop_string_ends_the_response_with_the_token_that_completes_it(llama: Any, start: Start) -> None:
    folder, _ = llama
    engine = start(*llama)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (free,) = ask(engine, [(PROMPT, FREE)])
    texts = [tokenizer.decode(free.tokens[:n]) for n in range(61)]
    for end in range(5, 55):
        stop = tokenizer.decode(free.tokens[end - 3 : end])  # crosses tokens
        if "�" in stop or not stop:
            continue
        first = next(n for n in range(61) if stop in texts[n])
        (answer,) = ask(engine, [(PROMPT, {**FREE, "stop": ["never to be seen", stop]})])
        assert (answer.tokens, answer.finish_reason) == (free.tokens[:first], "stop")
        assert answer.log_probs == pytest.approx(free.log_probs[:first], abs=1e-10)
        break
    else:
        pytest.fail("no text to stop at")
    (early,) = ask(engine, [(PROMPT, {**FREE, "stop": stop, "min_new_tokens": first + 5})])
    assert len(early.tokens) >= first + 5


def test_stop_tokens_end_answers_besides_the_end_tokens_of_the_checkpoint() -> None:
    parameters = SamplingParams.parse({"max_new_tokens": 4, "stop_token_ids": [7]}, frozenset({2}))
    assert parameters.stop_token_ids == {2, 7}


def test_answers_end_at_the_tokens_of_all_files_of_a_checkpoint(llama: Any, start: Start, tmp_path: Path) -> None:
    folder, model = llama
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    answers = ask(start(tmp_path, model), [(PROMPT, {"max_new_tokens": 120, "seed": seed}) for seed in range(30)])
    assert {answer.tokens[-1] for answer in answers if answer.finish_reason == "stop"} == {1, 2, 9}


def test_stop_tokens_are_not_chosen_before_the_least_length(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    (free,) = ask(engine, [(PROMPT, {**FREE, "temperature": 0})])
    stops = free.tokens[:3]
    params = {"max_new_tokens": 40, "min_new_tokens": 10, "stop_token_ids": stops, "temperature": 0}
    (answer,) = ask(engine, [(PROMPT, params)])
    assert len(answer.tokens) >= 10
    assert not {*stops, 1, 2} & set(answer.tokens[:10])
    # Greedy among the other tokens; the log-prob stays that of the whole softmax.
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, -1]
    logits[[*stops, 1, 2]] = -torch.inf
    assert answer.tokens[0] == int(logits.argmax())
    assert answer.log_probs == pytest.approx(reference_log_probs(model, PROMPT, answer.tokens), rel=0, abs=1e-10)


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.8}, {"top_k": 3}])
def test_banned_tokens_are_never_drawn_and_the_others_keep_their_proportions(limits: dict[str, Any]) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, 2.5]], dtype=torch.float64)
    count = 4000
    params = [SamplingParams(1, min_new_tokens=1, **limits)] * count
    draws = [(n + 0.5) / count for n in range(count)]
    tokens, log_probs = choose_tokens(logits.repeat(count, 1), params, draws, [{0}] * count)
    expected = torch.softmax(logits[0].index_fill(0, torch.tensor([0]), -torch.inf), -1)
    if limits:
        kept = {"top_p": [4, 1], "top_k": [4, 1, 2]}[next(iter(limits))]
        expected = torch.zeros_like(expected).index_copy(0, torch.tensor(kept), expected[kept])
        expected /= expected.sum()
    assert (torch.bincount(torch.tensor(tokens), minlength=5) / count).tolist() == pytest.approx(
        expected.tolist(), abs=1e-3
    )
    full = torch.log_softmax(logits[0], -1)
    assert log_probs == pytest.approx([full[token].item() for token in tokens], abs=1e-12)


@pytest.mark.parametrize("limits", [{}, {"top_p": 0.8}, {"top_k": 3}, {"temperature": 0}])
def test_where_a_banned_token_is_all_but_certain_the_likeliest_others_are_chosen(limits: dict[str, Any]) -> None:
    temperature = {"temperature": 0.05, **limits}["temperature"] or 1.0
    logits = torch.tensor([[0.0, 140.0, 20.0, 3.0, 19.99], [0.0, 1.0, 2.0, 3.0, 4.0]])
    full = torch.log_softmax(logits.double() / temperature, -1)
    seen = set()
    for n in range(20):
        params = [SamplingParams(1, min_new_tokens=1, **{"temperature": 0.05, **limits})] * 2
        tokens, log_probs = choose_tokens(logits.clone(), params, [(n + 0.5) / 20] * 2, [{0, 1}, {1}])
        seen.add(tokens[0])
        assert tokens[1] == 4
        assert log_probs == pytest.approx(
            [full[row, token].item() for row, token in enumerate(tokens)], rel=1e-6, abs=1e-6
        )
    assert seen == ({2} if limits.get("temperature") == 0 else {2, 4})


def test_end_tokens_are_tokens_like_any_other_when_ignored(llama: Any, start: Start) -> None:
    engine = start(*llama)
    cases = [(PROMPT, {"max_new_tokens": 100, "seed": seed, "ignore_eos": True}) for seed in range(20)]
    answers = ask(engine, cases)
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert any({1, 2} & set(answer.tokens[:-1]) for answer in answers)
