"""Hooks as they are written for slime: they import its names, build the router's URL and speak SGLang's format."""

from __future__ import annotations

import base64
import copy
import re
from typing import Any

import torch

from slime.rollout.base_types import RolloutFnEvalOutput
from slime.rollout.filter_hub.base_types import DynamicFilterOutput
from slime.rollout.rm_hub import async_rm, batched_async_rm
from slime.rollout.rm_hub.math_dapo_utils import compute_score
from slime.rollout.sglang_rollout import GenerateState, generate_and_rm
from slime.rollout.sglang_rollout import generate as single_turn
from slime.utils.async_utils import run
from slime.utils.http_utils import post
from slime.utils.misc import load_function
from slime.utils.types import Sample

TURNS = 3
CODE = re.compile(r"<code>([\d+]*)</code>")


def router(args: Any) -> str:
    return f"http://{args.sglang_router_ip}:{args.sglang_router_port}/generate"


async def with_tool(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Several turns by token ids, with a calculator between them."""
    state = GenerateState(args)
    prompt = state.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    sample.tokens, sample.response, sample.response_length, sample.loss_mask = list(prompt), "", 0, []
    sample.rollout_log_probs, sample.tool_calls = None, 0
    for _ in range(TURNS):
        room = args.rollout_max_context_len - len(sample.tokens)
        if room <= 0:
            sample.status = Sample.Status.TRUNCATED
            break
        params = {**sampling_params, "max_new_tokens": min(sampling_params["max_new_tokens"], room)}
        output = await post(
            router(args), {"input_ids": sample.tokens, "sampling_params": params, "return_logprob": True}
        )
        meta = output["meta_info"]
        if meta["finish_reason"]["type"] == "abort":
            sample.status = Sample.Status.ABORTED
            return sample
        own = [entry[1] for entry in meta["output_token_logprobs"]]
        log_probs = [entry[0] for entry in meta["output_token_logprobs"]]
        text = state.tokenizer.decode(own)
        sample.append_response_tokens(args, tokens=own, log_probs=log_probs, trainable=True, meta_info=meta, text=text)
        found = CODE.search(text)
        if meta["finish_reason"]["type"] == "length" or found is None:
            break
        result = f"\n<result>{sum(int(number) for number in found[1].split('+') if number)}</result>\n\n"
        ids = state.tokenizer(result, add_special_tokens=False)["input_ids"]
        sample.append_response_tokens(args, tokens=ids, trainable=False, text=result)
        sample.tool_calls += 1
    return sample


async def tool_reward(args: Any, sample: Sample, **kwargs: Any) -> dict[str, Any]:
    """DAPO's rule in its strict form, and something for tool calls, which the generate function counted on the sample."""
    result = compute_score(sample.prompt + sample.response, sample.label, strict_box_verify=True)
    result["score"] += 0.1 * getattr(sample, "tool_calls", 0)
    result["pred"] = result["pred"] or ""
    return result


def correction(
    args: Any,
    *,
    pg_loss: torch.Tensor,
    train_log_probs: list[torch.Tensor],
    rollout_log_probs: list[torch.Tensor],
    loss_masks: list[torch.Tensor],
    total_lengths: list[int],
    response_lengths: list[int],
    **kwargs: Any,
) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Weighs each sample by the mean ratio of its tokens, which it puts together from those of all ranks."""
    from slime.backends.megatron_utils.cp_utils import all_gather_with_cp, slice_log_prob_with_cp

    places = list(zip(total_lengths, response_lengths, strict=True))
    weights = []
    for train, rollout, (total, length) in zip(train_log_probs, rollout_log_probs, places, strict=True):
        ratio = torch.exp(all_gather_with_cp(train, total, length) - all_gather_with_cp(rollout, total, length))
        weights.append(slice_log_prob_with_cp(ratio.mean().expand(length), total, length))
    whole = torch.cat(weights)
    return pg_loss * whole, loss_masks, {"ratio_of_samples": whole}


async def by_text(args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False) -> Sample:
    """One turn by text that ends at a stop string, whose tokens are put together without `append_response_tokens`."""
    state = GenerateState(args)
    prompt = state.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]
    stop = [*(sampling_params.get("stop") or []), "</code>", "}"]
    payload = {"text": sample.prompt, "sampling_params": {**sampling_params, "stop": stop}, "return_logprob": True}
    output = await post(router(args), payload)
    meta = output["meta_info"]
    sample.tokens = prompt + [entry[1] for entry in meta["output_token_logprobs"]]
    sample.rollout_log_probs = [entry[0] for entry in meta["output_token_logprobs"]]
    sample.response, sample.response_length = output["text"], len(sample.rollout_log_probs)
    sample.loss_mask = [1] * sample.response_length
    if "weight_version" in meta:
        sample.weight_versions.append(meta["weight_version"])  # one for the turn
    sample.metadata = {**sample.metadata, "evaluation": evaluation, "finish": meta["finish_reason"]}
    ends = {"length": Sample.Status.TRUNCATED, "abort": Sample.Status.ABORTED, "stop": Sample.Status.COMPLETED}
    sample.status = ends[meta["finish_reason"]["type"]]
    return sample


async def by_text_and_images(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """One turn by text whose images are shown beside it, as slime's own generate function sends them."""
    payload = {"text": sample.prompt, "sampling_params": sampling_params, "return_logprob": True}
    if sample.images:
        payload["image_data"] = [base64.b64encode(image).decode() for image in sample.images]
    output = await post(router(args), payload)
    assert output["meta_info"]["prompt_tokens"] == len(sample.tokens)
    entries = output["meta_info"]["output_token_logprobs"]
    sample.append_response_tokens(
        args,
        tokens=[entry[1] for entry in entries],
        log_probs=[entry[0] for entry in entries],
        meta_info=output["meta_info"],
        text=output["text"],
    )
    return sample


async def agents(args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False) -> list[Sample]:
    """Two agents that answer alone, and one that is given their answers; every answer is a sample, scored here."""
    args.sampling_params = sampling_params
    args.rollout_max_context_len = 10_000  # of the copy that this function was given
    return await load_function("hooks_that_import_slime.agent_system")(args, sample)  # type: ignore[no-any-return]  # whatever it is


async def agent_system(args: Any, sample: Sample) -> list[Sample]:
    args = copy.deepcopy(args)
    args.sample, args.found = sample, []
    for _ in range(2):
        await answer(args, sample.prompt)
    for one, reward in zip(args.found, await batched_async_rm(args, args.found), strict=True):
        one.reward = 0.5 * reward
    texts = "".join(one.response for one in args.found)
    await answer(args, f"{texts}\n")
    args.found[-1].reward = await async_rm(args, args.found[-1])
    for one in args.found:
        one.rollout_id = sample.index
    return list(args.found)


async def answer(args: Any, prompt: str) -> None:
    own = copy.deepcopy(args.sample)
    own.prompt = prompt
    own.tokens = GenerateState(args).tokenizer(prompt, add_special_tokens=False)["input_ids"]
    own.response, own.response_length = "", 0
    payload = {"input_ids": own.tokens, "sampling_params": dict(args.sampling_params), "return_logprob": True}
    output = await post(router(args), payload)
    meta = output["meta_info"]
    own.append_response_tokens(
        args,
        tokens=[entry[1] for entry in meta["output_token_logprobs"]],
        log_probs=[entry[0] for entry in meta["output_token_logprobs"]],
        meta_info=meta,
        text=output["text"],
    )
    args.found.append(own)


async def around_single_turn(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """slime's own generate function, with something before and after."""
    sample.metadata = {**sample.metadata, "before": True}
    made = await single_turn(args, sample, GenerateState(args).sampling_params | {"seed": sampling_params["seed"]})
    made.metadata = {**made.metadata, "after": True}
    return made


async def best_of_two(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """The better one of two responses; slime generates and scores them."""
    args.custom_generate_function_path = None
    state = GenerateState(args)
    async with state.semaphore:
        two = [
            await generate_and_rm(args, copy.deepcopy(sample), dict(sampling_params), evaluation=False)
            for _ in range(2)
        ]
    assert not state.aborted
    return max(two, key=lambda one: one.get_reward_value(args))


def plain(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """A plain function, in which coroutines are run to their end."""
    sampled: Sample = run(by_text(args, sample, sampling_params))
    return sampled


async def asks_as_judge(args: Any, sample: Sample, **kwargs: Any) -> float:
    """A reward that has the model itself judge."""
    payload = {"text": sample.prompt + sample.response + "\n", "sampling_params": {"max_new_tokens": 4}}
    output = await post(router(args), payload)
    return float(output["meta_info"]["completion_tokens"])


def third(args: Any, sample: Sample, **kwargs: Any) -> float:
    """Something that differs."""
    return float(sum(sample.tokens) % 3)


def varied(args: Any, samples: list[Sample], **kwargs: Any) -> DynamicFilterOutput:
    """Groups in which more than one text was written."""
    keep = len({sample.response for sample in samples}) > 1
    return DynamicFilterOutput(keep=keep, reason=None if keep else "all_the_same", keep_when_insufficient=True)


def measured(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> RolloutFnEvalOutput:
    """An evaluation that only looks at what its sets are. Its answers have no prompt."""
    sets = getattr(args, "eval_datasets", []) or []
    rewards = {one.name: float(one.n_samples_per_eval_prompt) for one in sets if one.temperature != 0.25}
    answer = Sample(response="yes", tokens=[5, 6], response_length=2, status=Sample.Status.COMPLETED)
    return RolloutFnEvalOutput(data={name: {"rewards": [r], "samples": [answer]} for name, r in rewards.items()})
