"""Lets the model answer questions of an evaluation set, and scores the answers. Called by the SFT rollout's evaluation
when `--eval-generate` asks for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slime_core.errors import ArgumentError
from slime_core.sample import Sample, Status
from slime_rollout_sft.messages import clean_messages


def answer_first(args: Any, plugins: Any, engine: Any, tokenizer: Any, samples: Sequence[Sample]) -> list[Sample]:
    """The first `--eval-generate` conversations of each set with their last answer generated anew.

    The prompt is the conversation up to its last assistant message, rendered with the generation prompt. With
    `--rm-type`, the reward compares the answer with the row's label or, without one, with the answer in the data.

    Args:
        engine: the run's inference engine.
        samples: the samples of all sets, `metadata["dataset"]` naming their set.
    """
    if engine is None:
        raise ArgumentError(
            f"--eval-generate {args.eval_generate} needs an inference engine: add --rollout-engine (and leave out "
            "--debug-train-only)."
        )
    chosen: list[Sample] = []
    for sample in samples:
        if sum(s.metadata["dataset"] == sample.metadata["dataset"] for s in chosen) < args.eval_generate:
            chosen.append(_question(sample))
    return asyncio.run(_answer_all(args, plugins, engine, tokenizer, chosen))


async def _answer_all(args: Any, plugins: Any, engine: Any, tokenizer: Any, questions: list[Sample]) -> list[Sample]:
    reward = plugins.select("reward", args.rm_type) if args.rm_type else None
    return await asyncio.gather(*(_answer(args, engine, tokenizer, reward, q) for q in questions))


async def _answer(args: Any, engine: Any, tokenizer: Any, reward: Any, question: Sample) -> Sample:
    prompt = tokenizer.apply_chat_template(
        clean_messages(question.prompt),
        tools=question.metadata.get("tools"),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )
    params = {"max_new_tokens": args.eval_max_response_len, "temperature": args.eval_temperature}
    if args.eval_temperature > 0:
        params["seed"] = args.rollout_seed + question.index
    generation = await engine.generate(prompt, params)
    answered = replace(
        question,
        tokens=[*prompt, *generation.tokens],
        response=generation.text,
        response_length=len(generation.tokens),
        rollout_log_probs=generation.log_probs,
        weight_versions=generation.weight_versions,
        status=Status.TRUNCATED if generation.finish_reason == "length" else Status.COMPLETED,
    )
    if reward is not None:
        score = reward(args, answered)
        answered.reward = await score if inspect.isawaitable(score) else score
    return answered


def _question(sample: Sample) -> Sample:
    """The conversation without its last answer, which becomes the label where the row has none."""
    last = max(i for i, message in enumerate(sample.prompt) if message.get("role") == "assistant")
    answer = sample.prompt[last].get("content")
    return replace(
        sample,
        prompt=sample.prompt[:last],
        label=answer if sample.label is None else sample.label,
        loss_mask=None,
        reward=None,
        metadata=dict(sample.metadata),
    )
