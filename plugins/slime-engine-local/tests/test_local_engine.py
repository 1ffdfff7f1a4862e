"""Requests join, end and leave as they should; requests and models that cannot be served are refused; the thread
ends."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from local_engine_cases import (
    SHAPE,
    Passes,
    ask,
    endless_greedy,
    engine_args,
    held,
    reference_greedy,
    reference_log_probs,
    until,
    weights_of,
)
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from slime_core.contracts.engine import Generation
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_engine_local.engine import LocalEngine, check_device
from slime_engine_local.errors import EngineError

Start = Callable[..., LocalEngine]
PROMPT = [5, 6, 7]
ENDLESS = {"max_new_tokens": 120, "seed": 0, "ignore_eos": True}


def count_passes(engine: LocalEngine, on_pass: Callable[[int], None] = lambda number: None) -> list[int]:
    """The number of requests in each forward pass from now on; `on_pass` is told the number of each, from 1."""
    return Passes(engine, on_pass).sizes


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "slime-engine-local"]


def test_the_engine_is_found_by_name_and_keeps_the_contract() -> None:
    assert Plugins().select("engine", "local").target is LocalEngine


def test_listing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, slime_engine_local.plugin as p; p.slime_argument_groups(); p.slime_engines(); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "accelerate"} & set(loaded)


def test_requests_awaited_together_are_decoded_together(llama: Any, start: Start) -> None:
    engine = start(*llama)
    scheduler = engine._scheduler

    def all_there() -> bool:
        return len(scheduler._running) + len(scheduler._arrived) == 8

    sizes = count_passes(engine, lambda number: until(all_there) if number == 1 else None)
    ask(engine, [(PROMPT, {"max_new_tokens": 10, "ignore_eos": True})] * 8)
    assert sum(sizes) == 80
    assert len(sizes) <= 11  # the first may start alone
    assert max(sizes) == 8


def test_no_more_requests_run_than_allowed_and_all_get_their_turn(llama: Any, start: Start) -> None:
    engine = start(*llama, max_running=3)
    sizes = count_passes(engine)
    answers = ask(engine, [(PROMPT, {"max_new_tokens": 5, "ignore_eos": True})] * 8)
    assert max(sizes) == 3
    assert [len(answer.tokens) for answer in answers] == [5] * 8


def test_long_prompts_join_in_portions(llama: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_engine_local.scheduler.NEW_TOKENS_PER_STEP", 50)
    folder, model = llama
    engine = start(folder, model)
    prompts = [[n + 5] * 20 for n in range(5)] + [[9] * 90]
    sizes = count_passes(engine)
    answers = ask(engine, [(prompt, {"max_new_tokens": 6, "temperature": 0}) for prompt in prompts])
    assert len(sizes) >= 9
    assert [a.tokens for a in answers] == [reference_greedy(model, prompt, 6) for prompt in prompts]


def test_a_stop_token_ends_the_response_and_belongs_to_it(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    (free,) = ask(engine, [(PROMPT, {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True})])
    assert (free.finish_reason, len(free.tokens)) == ("length", 20)
    stop = free.tokens[7]
    (stopped,) = ask(engine, [(PROMPT, {"max_new_tokens": 20, "temperature": 0, "stop_token_ids": [stop]})])
    assert stopped.finish_reason == "stop"
    assert stopped.tokens == free.tokens[: free.tokens.index(stop) + 1]


def test_the_checkpoints_end_tokens_stop_a_response_and_are_left_out_of_its_text(llama: Any, start: Start) -> None:
    folder, _ = llama
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert {1, 2} <= set(tokenizer.all_special_ids)
    answers = ask(start(*llama), [(PROMPT, {"max_new_tokens": 120, "seed": seed}) for seed in range(30)])
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    assert {answer.tokens[-1] for answer in stopped} == {1, 2}  # those of the configuration, both of them
    for answer in stopped:
        assert not {1, 2} & set(answer.tokens[:-1])
        assert answer.text == tokenizer.decode(answer.tokens[:-1], skip_special_tokens=True)


def test_the_end_of_the_context_ends_a_response(llama: Any, start: Start) -> None:
    engine = start(*llama)
    (answer,) = ask(engine, [([9] * 120, {"max_new_tokens": 50, "ignore_eos": True})])
    assert (answer.finish_reason, len(answer.tokens)) == ("length", 8)


def test_the_seed_alone_decides_what_is_sampled(llama: Any, start: Start) -> None:
    engine = start(*llama)
    params = {"max_new_tokens": 20, "ignore_eos": True}
    seeded = ask(engine, [(PROMPT, {**params, "seed": seed}) for seed in (1, 2, 1)])
    assert seeded[0].tokens == seeded[2].tokens != seeded[1].tokens
    free = ask(engine, [(PROMPT, params)] * 2)
    assert free[0].tokens != free[1].tokens


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "no tokens"),
        ([300], {}, "0 to 299"),
        ([-1], {}, "0 to 299"),
        ([9] * 128, {}, "context ends at 128"),
        (PROMPT, {"beams": 4}, "'beams'"),
        (PROMPT, {"stop_token_ids": [*range(300)], "min_new_tokens": 1}, "all 300 tokens"),
    ],
)
def test_a_bad_request_fails_alone(prompt: Any, params: Any, message: str, llama: Any, start: Start) -> None:
    engine = start(*llama)

    async def both() -> list[Any]:
        calls = [
            engine.generate(PROMPT, {"max_new_tokens": 4}),
            engine.generate(prompt, {"max_new_tokens": 4, **params}),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    good, bad = asyncio.run(both())
    assert good.tokens
    assert isinstance(bad, ArgumentError)
    assert message in str(bad)


def test_a_cancelled_request_leaves_and_the_others_go_on(llama: Any, start: Start) -> None:
    folder, model = llama
    engine = start(folder, model)
    running = threading.Event()

    def hold(number: int) -> None:
        if number == 20:
            running.set()
            until(lambda: any(request.done.cancelled() for request in engine._scheduler._running))

    sizes = count_passes(engine, hold)

    async def scenario() -> Any:
        leaving = asyncio.create_task(engine.generate(PROMPT, ENDLESS))
        staying = asyncio.create_task(engine.generate([8, 9], {**ENDLESS, "temperature": 0}))
        await asyncio.to_thread(running.wait)
        leaving.cancel()
        return await staying

    staying = asyncio.run(scenario())
    assert staying.tokens == endless_greedy(model, [8, 9], 120)
    assert sizes[19:] == [2] + [1] * (len(sizes) - 20)


def test_whoever_no_longer_waits_for_scores_or_an_abort_does_not_end_the_engine(llama: Any, start: Start) -> None:
    engine = start(*llama)

    async def scenario() -> Generation:
        with held(engine):
            leaving = [asyncio.create_task(engine.score(PROMPT)), asyncio.create_task(engine.abort(["a"]))]
            await asyncio.to_thread(until, lambda: len(engine._scheduler._calls) == 2)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
        assert all(task.cancelled() for task in leaving)
        return await asyncio.wait_for(engine.generate(PROMPT, {"max_new_tokens": 4, "ignore_eos": True}), 60)

    assert len(asyncio.run(scenario()).tokens) == 4


def test_calls_that_nobody_waits_for_any_more_do_not_keep_others_from_failing_when_the_engine_is_closed(
    llama: Any, start: Start
) -> None:
    engine = start(*llama)

    async def scenario() -> None:
        with held(engine):
            leaving, staying = (asyncio.create_task(engine.score(PROMPT)) for _ in range(2))
            await asyncio.to_thread(until, lambda: len(engine._scheduler._calls) == 2)
            leaving.cancel()
            await asyncio.wait([leaving])
            closing = asyncio.create_task(asyncio.to_thread(engine.close))
            await asyncio.to_thread(until, lambda: engine._scheduler._closed)
        with pytest.raises(EngineError, match="was closed before this was finished"):
            await asyncio.wait_for(staying, 60)
        await closing

    asyncio.run(scenario())


def test_a_failed_step_leaves_alone_what_was_asked_for_meanwhile(llama: Any, start: Start) -> None:
    engine = start(*llama, max_running=1)

    def break_first(number: int) -> None:
        if number == 1:
            raise RuntimeError("broken step")

    count_passes(engine, break_first)

    async def both() -> list[Any]:
        calls = [engine.generate(PROMPT, {"max_new_tokens": 4, "ignore_eos": True}) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(both())
    assert isinstance(first, RuntimeError)
    assert len(second.tokens) == 4


EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2}
UNKNOWN = {
    "soft caps": (Gemma2ForCausalLM, lambda: Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=8), "softcap"),
    "a window in the mask alone": (
        transformers.Qwen2MoeForCausalLM,
        lambda: transformers.Qwen2MoeConfig(
            **SHAPE,
            num_key_value_heads=2,
            num_experts=4,
            **EXPERTS,
            use_sliding_window=True,
            sliding_window=12,
            max_window_layers=1,
        ),
        "does not say how long its sliding window is",
    ),
    "the same, of all layers": (
        transformers.PhimoeForCausalLM,
        lambda: transformers.PhimoeConfig(**SHAPE, num_key_value_heads=2, num_local_experts=4, sliding_window=12),
        "does not say how long its sliding window is",
    ),
    "two attentions in a layer": (
        transformers.DiffLlamaForCausalLM,
        lambda: transformers.DiffLlamaConfig(**SHAPE, num_key_value_heads=2),
        "attends more than once",
    ),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_attention_that_the_engine_does_not_know_is_refused(random_model: Any, start: Start, kind: str) -> None:
    model_class, config, refusal = UNKNOWN[kind]
    folder, model = random_model(model_class, config())
    with pytest.raises(EngineError, match=refusal):
        ask(start(folder, model.float()), [(PROMPT, {"max_new_tokens": 4})])


def test_a_window_that_the_model_reads_nowhere_is_no_window(random_model: Any, start: Start) -> None:
    folder, model = random_model(LlamaForCausalLM, LlamaConfig(**SHAPE, num_key_value_heads=2, sliding_window=3))
    (got,) = ask(start(folder, model), [(PROMPT, {"max_new_tokens": 9, "ignore_eos": True})])
    assert got.log_probs == pytest.approx(reference_log_probs(model, PROMPT, got.tokens), abs=1e-9)


def test_what_a_layer_does_beyond_a_position_alone_is_computed(random_model: Any, start: Start) -> None:
    """Queries of Ministral 3 grow with their position, from the 32nd on here."""
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 32}
    rope |= {
        "type": "yarn",
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    config = transformers.Ministral3Config(
        **SHAPE, num_key_value_heads=2, head_dim=8, max_position_embeddings=512, rope_parameters=rope
    )
    folder, model = random_model(transformers.Ministral3ForCausalLM, config)
    prompt = [3 + n % 290 for n in range(60)]
    (got,) = ask(start(folder, model), [(prompt, {"max_new_tokens": 4, "temperature": 0.0, "ignore_eos": True})])
    assert got.log_probs == pytest.approx(reference_log_probs(model, prompt, got.tokens), abs=1e-9)


def test_positions_that_depend_on_the_batch_are_refused(random_model: Any, start: Start) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters=rope)
    with pytest.raises(EngineError, match="dynamic"):
        start(*random_model(LlamaForCausalLM, config))


def test_closing_ends_the_thread_and_fails_what_runs(llama: Any, start: Start) -> None:
    engine = start(*llama)
    count_passes(engine, lambda number: threading.Event().wait(0.05))

    async def scenario() -> None:
        request = asyncio.create_task(engine.generate(PROMPT, ENDLESS))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(engine.close)
        await request

    with pytest.raises(EngineError, match="closed before"):
        asyncio.run(scenario())
    engine.close()
    assert not threads()
    with pytest.raises(EngineError, match="was closed"):
        ask(engine, [(PROMPT, {"max_new_tokens": 4})])


def test_an_engine_that_nobody_holds_ends_its_thread(llama: Any) -> None:
    folder, model = llama
    engine = LocalEngine(engine_args(folder))
    engine.update_weights(weights_of(model), 1)
    assert threads()
    del engine
    gc.collect()
    assert not threads()


def test_an_idle_engine_holds_no_keys_and_values(llama: Any, start: Start) -> None:
    engine = start(*llama)
    ask(engine, [(PROMPT, {"max_new_tokens": 4})] * 3)
    engine._scheduler.call(lambda: None).result()  # after the step that answered
    assert not engine._scheduler._storage.cache._pools


@pytest.mark.parametrize(
    ("on_gpu", "changes", "refused"),
    [
        (True, {"rollout_num_gpus": 4}, True),
        (True, {"rollout_num_gpus": 1}, False),
        (True, {}, False),
        (True, {"rollout_num_gpus": 4, "colocate": True}, False),  # which reserves nothing
        (False, {"rollout_num_gpus": 4}, False),
    ],
)
def test_gpus_that_it_would_leave_idle_are_refused(monkeypatch, tmp_path, on_gpu, changes, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    args = engine_args(tmp_path, **changes)
    with (
        pytest.raises(ArgumentError, match="is 4, but the engine 'local' computes on one GPU")
        if refused
        else nullcontext()
    ):
        check_device(args)
