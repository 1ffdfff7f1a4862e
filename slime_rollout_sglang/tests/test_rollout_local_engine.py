"""The rollout on the embedded engine with a real, tiny model: what training reads is what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_cases import rollout
from transformers import AutoModelForCausalLM

from slime_core.data import GlobalDataSource
from slime_core.plugins import Plugins
from slime_core.sample import Sample, Status

# Prompts of 40, 37, … tokens: with a limit for prompt and response together, the first ones are finished first.
ROWS = [{"input": "the " * (40 - 3 * n)} for n in range(12)]


@pytest.fixture
def run(arguments, plugins, tiny_model: Path) -> Iterator[Callable[..., Any]]:
    """`run(**changes)`: what `rollout` takes: arguments, plugins, an engine with the tiny model's own weights, which is
    closed at the end, and a data source."""
    engines: list[Any] = []

    def make(**changes: Any) -> tuple[Any, Plugins, Any, GlobalDataSource]:
        options = {
            "hf_checkpoint": str(tiny_model),
            "custom_rm_path": "rollout_cases.length_reward",
            "rollout_max_context_len": 48,
            "local_max_running_requests": 64,
            "local_max_total_tokens": 65536,
            "local_decoding": "auto",
            **changes,
        }
        args = arguments(ROWS, **options)
        engines.append(plugins.select("engine", "local")(args))
        return args, plugins, engines[-1], GlobalDataSource(args)

    yield make
    for engine in engines:
        engine.close()


@torch.no_grad()
def log_probs(model: Any, sample: Sample) -> torch.Tensor:
    logits = model(torch.tensor([sample.tokens])).logits[0, :-1]
    every = torch.log_softmax(logits, -1).gather(-1, torch.tensor(sample.tokens[1:])[:, None])[:, 0]
    return every[len(every) - sample.response_length :]


def test_the_log_probs_are_the_models_own_and_two_runs_are_the_same(run, tiny_model) -> None:
    outputs = [rollout(*run()) for _ in range(2)]
    first, second = ([s.to_dict() for s in output.samples] for output in outputs)
    for a, b in zip(first, second, strict=True):
        assert a.pop("rollout_log_probs") == pytest.approx(b.pop("rollout_log_probs"), abs=1e-5)
        assert a == b
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for sample in outputs[0].samples:
        assert sample.rollout_log_probs == pytest.approx(log_probs(model, sample).tolist(), abs=1e-4)
    other = rollout(*run(rollout_seed=1))
    assert [s.tokens for s in other.samples] != [s.tokens for s in outputs[0].samples]


def test_a_partial_rollout_goes_on_with_new_weights_and_keeps_what_the_old_ones_gave(run, tiny_model: Path) -> None:
    args, plugins, engine, source = run(partial_rollout=True, over_sampling_batch_size=8, rollout_batch_size=2)
    old_model = AutoModelForCausalLM.from_pretrained(tiny_model)
    new_model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in new_model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))

    engine.update_weights([(n, p.detach()) for n, p in old_model.named_parameters()], 1)
    first = rollout(args, plugins, engine, source)
    waiting = {s.index: s for group in source.buffer for s in group}
    assert any(s.status is Status.ABORTED and s.response_length for s in waiting.values())

    engine.update_weights([(n, p.detach()) for n, p in new_model.named_parameters()], 2)
    args = args.model_copy(update={"rollout_batch_size": 6, "over_sampling_batch_size": None})
    second = rollout(args, plugins, engine, source, rollout_id=1)
    assert {s.group_index for s in [*first.samples, *second.samples]} == set(range(8))
    assert second.metrics["sampling/samples_continued"] > 0
    for sample in second.samples:
        before = waiting[sample.index]
        n = before.response_length
        assert sample.tokens[: len(before.tokens)] == before.tokens
        assert sample.weight_versions == [1] * n + [2] * (sample.response_length - n)
        assert len(sample.tokens) == 48 or sample.status is Status.COMPLETED
        expected = [*log_probs(old_model, sample).tolist()[:n], *log_probs(new_model, sample).tolist()[n:]]
        assert sample.rollout_log_probs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("partial", [True, False])
def test_tokens_are_conserved_on_a_real_engine(run, partial) -> None:
    args, plugins, engine, source = run(partial_rollout=partial, over_sampling_batch_size=7, rollout_batch_size=3)
    handed_out = 0
    generate = engine.generate

    async def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal handed_out
        generation = await generate(*args, **kwargs)
        handed_out += len(generation.tokens)
        return generation

    engine.generate = counting
    returned = discarded = 0.0
    for rollout_id in range(3):
        output = rollout(args, plugins, engine, source, rollout_id)
        returned += sum(s.response_length for s in output.samples)
        discarded += output.metrics["discarded_tokens"]
    in_buffer = sum(s.response_length for group in source.buffer for s in group)
    assert handed_out == returned + discarded + in_buffer
    assert (discarded == 0) == partial


def test_in_the_order_of_prompts_a_filtered_rollout_is_the_same_every_time(run) -> None:
    outcomes = []
    for _ in range(2):
        args, plugins, engine, source = run(
            over_sampling_batch_size=6,
            custom_rm_path="rollout_cases.by_group",
            dynamic_sampling_filter_path="check_reward_nonzero_std",
            dynamic_sampling_order="prompt",
        )
        output = rollout(args, plugins, engine, source)
        outcomes.append(([(s.index, s.tokens) for s in output.samples], source.state_dict()))
    assert outcomes[0] == outcomes[1]


def test_greedy_evaluation_gives_the_models_likeliest_tokens(run, tiny_model, tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text('{"input": "the quick brown"}\n{"input": "one two"}\n')
    output = rollout(*run(eval_prompt_data=[str(path)], eval_temperature=0.0, eval_max_response_len=6), evaluation=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    for sample in output.generations:
        prompt = torch.tensor([sample.tokens[: -sample.response_length]])
        greedy = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        assert sample.tokens == greedy[0].tolist()
