"""Lets the model answer questions of an evaluation set, and scores the answers. Called by the SFT rollout's evaluation
when `--eval-generate` asks for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slime_core.arguments.groups.evaluation import args_of_set
from slime_core.contracts.engine import InferenceEngine
from slime_core.data import read_conversation
from slime_core.data.conversation import has_images
from slime_core.data.ends import trained_end
from slime_core.data.prompts import Prompt, read_prompt
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError, DataError
from slime_core.plugins import Plugins, Selected
from slime_core.rollout.asking import ask
from slime_core.rollout.checks import needs_an_engine
from slime_core.rollout.rewards import Rewards, choose_number, evaluation_key, reward_of_set
from slime_core.sample import Sample, Status
from slime_rollout_sft.arguments import SftRunArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer_first(
    args: SftRunArguments,
    reward: Selected[Any] | None,
    plugins: Plugins | None,
    engine: InferenceEngine | None,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
) -> tuple[list[Sample], dict[str, float]]:
    """Return the first `--eval-generate` conversations of each set with their last answer generated anew.

    The prompt is the conversation up to its last assistant message, rendered with the generation prompt. An answer ends
    with the checkpoint's end tokens and those with which trained turns end. Its length, its temperature and its reward are those of
    its set. The reward, if the run, the set or the row names one, compares the answer with the row's label or, without one, with the
    answer in the data; a sample whose reward was dropped has none.

    Args:
        reward: of the run, if one is chosen.
        plugins: provides the rewards that sets and rows name.
        engine: the run's inference engine.
        samples: the samples of all sets, `dataset` naming their set.

    Returns:
        The answered samples, and how often the reward was called and failed.
    """
    if engine is None:
        raise ArgumentError(needs_an_engine(f"--eval-generate {args.eval_generate}", args))
    ends = sorted({end for sample in samples if (end := trained_end(sample, tokenizer)) is not None})
    per_set: Counter[str] = Counter()
    chosen, seeds = [], []
    for sample in samples:
        number = per_set[str(sample.dataset)]
        per_set[str(sample.dataset)] += 1
        if number < args.eval_generate:
            chosen.append(question_of(sample))
            seeds.append(args.rollout_seed + number)
    return asyncio.run(_answer_all(args, reward, plugins or Plugins(), engine, tokenizer, chosen, seeds, ends))


async def _answer_all(
    args: SftRunArguments,
    reward: Selected[Any] | None,
    plugins: Plugins,
    engine: InferenceEngine,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[Sample],
    seeds: list[int],
    ends: list[int],
) -> tuple[list[Sample], dict[str, float]]:
    own = {name: args_of_set(args, name) for name in dict.fromkeys(str(question.dataset) for question in questions)}
    answered = await asyncio.gather(
        *(
            _answer(own[str(question.dataset)], engine, tokenizer, question, seed, ends)
            for question, seed in zip(questions, seeds, strict=True)
        )
    )
    rewards = {name: rewards_of_set(args, of_set, reward, plugins) for name, of_set in own.items()}
    await asyncio.gather(*(_score(rewards[str(sample.dataset)], sample, evaluation_key(args)) for sample in answered))
    return answered, dict(sum((Counter(of_set.metrics()) for of_set in rewards.values()), Counter[str]()))


def rewards_of_set(
    args: SftRunArguments, own: SftRunArguments, reward: Selected[Any] | None, plugins: Plugins
) -> Rewards:
    """Return the rewards of the answers of an evaluation set.

    Args:
        args: of the run.
        own: of the set.
        reward: of the run, if one is chosen.
    """
    return Rewards(own, plugins, reward_of_set(args, own, reward, plugins), evaluation_key(args))


async def _score(rewards: Rewards, sample: Sample, key: str | None) -> None:
    if rewards.caller(sample) is not None and await rewards.score([sample]):
        choose_number(sample, key)


async def _answer(
    args: SftRunArguments,
    engine: InferenceEngine,
    tokenizer: PreTrainedTokenizerBase,
    question: Sample,
    seed: int,
    ends: list[int],
) -> Sample:
    text, prompt, *_ = read_question(args, tokenizer, question)
    temperature = args.eval_temperature or 0.0
    params: dict[str, Any] = {"max_new_tokens": args.eval_max_response_len or 256, "temperature": temperature}
    if ends:  # besides the checkpoint's own
        params["stop_token_ids"] = ends
    if temperature > 0:
        params["seed"] = seed
    generation = await ask(engine, args, prompt, params, images=question.images)
    question.note(asked=question.prompt)
    return replace(
        question,
        prompt=text,
        tokens=[*prompt, *generation.tokens],
        response=generation.text,
        response_length=len(generation.tokens),
        rollout_log_probs=generation.log_probs,
        weight_versions=[*generation.weight_versions],
        status=Status.TRUNCATED if generation.finish_reason == "length" else Status.COMPLETED,
    )


def read_question(args: SftRunArguments, tokenizer: PreTrainedTokenizerBase, question: Sample) -> Prompt:
    """Return what the model reads of a question of `question_of`.

    Raises:
        DataError: what `read_prompt` raises.
    """
    processor = processor_of(args)
    return read_prompt(question, tokenizer, args, render=True, processor=processor)


def question_of(sample: Sample) -> Sample:
    """Return the conversation without its last answer, which becomes the label where the row has none."""
    if isinstance(sample.prompt, str):
        raise ArgumentError(
            f"{sample.source or sample.name}: --eval-generate needs messages, to know the question; a "
            "row of token ids says nothing of it. Leave --eval-generate out, or evaluate on messages."
        )
    conversation = read_conversation(sample.prompt, sample.tools)
    messages = conversation.messages
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    parts = [part for message in messages[:last] if has_images(message) for part in message["content"]]
    places = sum(part["type"] == "image" for part in parts)
    if places > len(sample.images):
        raise DataError(
            f"{sample.source or sample.name}: --eval-generate asks the whole question, which has {places} images, of which "
            f"{len(sample.images)} fit into --rollout-max-context-len. Raise the limit, or choose --over-long-sample skip."
        )
    question = replace(
        sample,
        prompt=messages[:last],
        label=messages[last].get("content") if sample.label is None else sample.label,
        loss_mask=None,
        reward=None,
    )
    if conversation.tools:
        question.note(tools=conversation.tools)
    return question
