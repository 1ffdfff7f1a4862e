"""What sampling promises holds whatever interrupts it: ends of responses across an abort, the context, lost groups."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rollout_cases
import torch
from hypothesis import given
from hypothesis import strategies as st
from rollout_cases import END, ScriptedEngine, rollout
from test_rollout_local_engine import run  # noqa: F401  # a fixture

from slime_core.data import GlobalDataSource
from slime_core.data.context import context_of
from slime_core.rollout.stop_strings import completes_stop_string, first_completed
from slime_core.sample import RESERVED, Sample, Status
from slime_rollout_sglang.filters import check_reward_nonzero_std
from slime_rollout_sglang.partial import note_turn_start, turn_start
from slime_rollout_sglang.requests import Requests, Session

# ------------------------------------------------------------------------------------------------- stop strings, cut in two


def as_text(tokens: list[int]) -> str:
    return "".join("ab-"[token] for token in tokens)


def ended(tokens: list[int], stop: list[str], shortest: int) -> list[int]:
    """The tokens up to the first that completes a stop string, as an engine ends a response."""
    for count in range(1, len(tokens) + 1):
        if count >= shortest and completes_stop_string(as_text, tokens[:count], stop):
            return tokens[:count]
    return tokens


@given(
    tokens=st.lists(st.integers(0, 2), max_size=30),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=2),
    shortest=st.integers(0, 12),
    at=st.integers(0, 30),
)
def test_a_response_that_was_cut_ends_at_the_stop_string_at_which_it_would_have_ended(
    tokens: list[int], stop: list[str], shortest: int, at: int
) -> None:
    whole = ended(tokens, stop, shortest)
    earlier = whole[: min(at, max(len(whole) - 1, 0))]
    later = ended(tokens[len(earlier) :], stop, max(0, shortest - len(earlier)))  # what an engine makes of the rest
    count = first_completed(as_text, earlier, later, stop, shortest)
    assert earlier + (later if count is None else later[:count]) == whole


def test_a_real_engine_continues_a_response_as_if_it_had_not_been_aborted(run: Callable[..., Any]) -> None:  # noqa: F811
    """With a stop string of two tokens, with a least length behind a stop token, at every place of the abort."""
    args, _, engine, _ = run()

    def decode(tokens: list[int], skip_special: bool) -> str:
        from slime_core.data.tokenizer import load_tokenizer

        return str(load_tokenizer(args.hf_checkpoint).decode(tokens, skip_special_tokens=skip_special))

    async def whole_and_parts() -> None:
        prompt = [5, 6, 7, 8]
        base = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "seed": 3, "ignore_eos": True}
        free = await engine.generate(prompt, base)
        stop = decode(free.tokens[5:7], False)
        for further in (
            {"stop": [stop]},
            {"stop": stop},
            {"stop_token_ids": list(range(0, 49152, 4)), "min_new_tokens": 5, "ignore_eos": False},
            {"stop": [stop], "min_new_tokens": 7},
        ):
            params = {**base, **further}
            whole = await engine.generate(prompt, params)
            assert whole.finish_reason == "stop"
            assert 4 < len(whole.tokens) < 12
            for at in range(1, len(whole.tokens)):
                sample = Sample(
                    index=0, tokens=prompt + whole.tokens[:at], response_length=at, status=Status.ABORTED, prompt="p"
                )
                note_turn_start(sample, len(prompt))
                session = Session(Requests(args, engine, f"{further}{at}"), sample, None, decode)
                rest = await session.generate(sample.tokens, {**params, "max_new_tokens": 12 - at})
                assert whole.tokens[:at] + rest.tokens == whole.tokens, (further, at)
                assert rest.finish_reason == "stop"
                assert len(rest.log_probs) == len(rest.weight_versions) == len(rest.tokens)
                assert rest.text == decode(rest.tokens, True)

    asyncio.run(whole_and_parts())


def test_a_sample_that_goes_back_knows_where_its_cut_turn_began(arguments, plugins) -> None:
    def slow(prompt: list[int], params: dict[str, Any]) -> list[int]:
        return [10 + params["seed"] % 20] * (4 if prompt[2] < 9 else 40) + [END]

    args = arguments(partial_rollout=True, over_sampling_batch_size=8)
    source = GlobalDataSource(args)
    rollout(args, plugins, ScriptedEngine(slow), source)
    left = [sample for group in source.buffer for sample in group]
    assert left
    for sample in left:
        assert sample.status is Status.ABORTED
        assert turn_start(sample) == len(sample.tokens) - sample.response_length
        assert turn_start(Sample.from_dict(json.loads(json.dumps(sample.to_dict())))) == turn_start(sample)
    done = rollout(args, plugins, ScriptedEngine(slow), source, rollout_id=1)
    assert all(turn_start(sample) is None for sample in done.samples)


def test_of_several_turns_the_last_is_the_one_that_was_cut(arguments) -> None:
    engine = ScriptedEngine(lambda prompt, params: [10] * 5 + [END])
    requests = Requests(arguments(), engine, "r")

    async def turns() -> Sample:
        session = Session(requests, Sample(index=0, tokens=[4, 5]), None, lambda tokens, skip: "")
        first = await session.generate([4, 5], {"max_new_tokens": 9})
        tokens = [4, 5, *first.tokens, 30]  # a tool's answer
        requests.stopped.set()
        last = await session.generate(tokens, {"max_new_tokens": 9})
        made = Sample(index=0, tokens=tokens, response_length=len(tokens) - 2, status=Status.ABORTED)
        session.note_turn(made)
        assert last.finish_reason == "abort"
        return made

    made = asyncio.run(turns())
    assert turn_start(made) == len(made.tokens)
    assert made.metadata[RESERVED]


# --------------------------------------------------------------------------------------------------------------- context


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}, "max_position_embeddings": 64}, 16),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": True}, None),
        ({}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_context_of_a_checkpoint_is_read_from_its_configuration(tmp_path: Path, config: Any, context: Any) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_of(str(tmp_path)) == context


@pytest.fixture
def in_context(word_checkpoint: str, tmp_path: Path) -> str:
    """The words of the other tests, with a model of 16 positions."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(word_checkpoint).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 16}))
    return str(folder)


@pytest.mark.parametrize("given", [None, 12, 99])
def test_a_prompt_beyond_the_context_is_left_out_and_named_and_responses_end_there(
    arguments, plugins, in_context, caplog, given
) -> None:
    context = min(given or 16, 16)
    rows = [{"input": "w4 " * n} for n in (3, context - 1, context, 40, 5)]
    args = arguments(rows, hf_checkpoint=in_context, rollout_max_context_len=given)
    engine = ScriptedEngine(lambda prompt, params: [10] * 50)
    output = rollout(args, plugins, engine)
    assert output.metrics["skipped_over_long_prompt"] == 2
    what = (
        "--rollout-max-context-len" if given == 12 else "the model's context (max_position_embeddings in config.json)"
    )
    assert (
        f"prompts.jsonl:3: the prompt has {context} tokens, more than the {context - 1} that {what} allows"
        in caplog.text
    )
    assert {len(sample.tokens) for sample in output.samples} == {context}
    assert all(sample.status is Status.TRUNCATED for sample in output.samples)


async def endless(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """Turns of four tokens and a tool's answer of three, until the engine has no room for another turn."""
    mask: list[int] = []
    while True:
        generation = await engine.generate(sample.tokens, {**sampling_params, "max_new_tokens": 4})
        if not generation.tokens:
            break
        sample.tokens = [*sample.tokens, *generation.tokens, 30, 31, 32]
        mask += [1] * len(generation.tokens) + [0] * 3
    assert generation.finish_reason == "length"
    log_probs = [-0.5 * on for on in mask]
    return replace(
        sample,
        loss_mask=mask,
        response_length=len(mask),
        rollout_log_probs=log_probs,
        weight_versions=[1] * len(mask),
        response="all of it",
        status=Status.COMPLETED,
    )


rollout_cases.endless = endless  # type: ignore[attr-defined]  # where options find it


def test_several_turns_together_stay_within_the_context(arguments, plugins, in_context, caplog) -> None:
    args = arguments(4, hf_checkpoint=in_context, custom_generate_function_path="rollout_cases.endless")
    output = rollout(args, plugins, ScriptedEngine(lambda prompt, params: [10] * 50))
    for sample in output.samples:  # 3 of the prompt, 4 + 3, 4 + 2 of the 3
        assert len(sample.tokens) == 16
        assert sample.loss_mask == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0]
        assert len(sample.rollout_log_probs or []) == len(sample.weight_versions) == 13
        assert sample.response == "w10 w10 w10 w10 w30 w31 w32 w10 w10 w10 w10 w30 w31"
        assert sample.status is Status.TRUNCATED
    assert output.metrics["cut_to_context"] == 6
    assert caplog.text.count("and is cut there") == 1


# ------------------------------------------------------------------------------------------------------ groups and filters


@pytest.mark.parametrize("bad", [1, 2])
def test_a_lost_group_is_replaced_by_one_and_not_by_a_whole_round(arguments, plugins, bad) -> None:
    rollout_cases.state.answers = {n: RuntimeError("down") for n in range(bad)}
    engine = ScriptedEngine()
    output = rollout(arguments(rollout_batch_size=16), plugins, engine)
    assert [group[0].group_index for group in output.groups] == list(range(bad, 16 + bad))
    assert len(engine.requests) == (16 + bad) * 2
    assert output.metrics["sampling/groups_lost_reward"] == bad


@pytest.mark.parametrize(
    ("rewards", "differ"),
    [
        ([0.3, 0.1 + 0.2], False),
        ([1e9, 1e9 + 1], True),
        ([-300.0001, -300.0003], True),
        ([-1e6, -1e6 + 0.5], True),
        ([1000.0, 1000.0 + 1e-7], False),
        ([0.0, 0.0], False),
        ([-0.1, -0.1 - 1e-12], False),
        ([0.0, 1e-12], False),
        ([0.0, 1.4e-6], False),
        ([0.0, 1.5e-6], True),
        ([0.0, 0.0, 0.0, 1.9e-6], False),
        ([0.0, 0.0, 0.0, 2.1e-6], True),
        ([1.0, 1.0 - 1e-5], True),
        ([-1.0, 1.0], True),
        ([1e30, 1e30 * 1.001], True),
    ],
)
def test_rewards_differ_from_the_same_standard_deviation_on_as_in_slime(arguments, rewards, differ) -> None:
    samples = [Sample(index=n, reward=reward) for n, reward in enumerate(rewards)]
    assert bool(torch.tensor(rewards, dtype=torch.float64).std() > 1e-6) is differ
    assert check_reward_nonzero_std(arguments(), samples)[0] is differ
