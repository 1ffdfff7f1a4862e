"""A small component of every kind that keeps its contract, for the tests of the contract kit."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import replace

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.data import MaskedTokens
from slime_core.contracts.loss import LossOutputs
from slime_core.data import GlobalDataSource
from slime_core.errors import DataError
from slime_core.sample import RolloutOutput, Status
from slime_core.testing import EchoEngine, sample


def good_reward(args, sample):
    return float(sample.label in sample.response)


def good_dynamic_filter(args, samples, **kwargs):
    return len({sample.reward for sample in samples}) > 1, "equal"


def good_sample_filter(args, groups):
    groups[0][0].remove_sample = True


def good_buffer_pop(args, rollout_id, buffer, num_samples):
    groups = buffer[:num_samples]
    del buffer[:num_samples]
    return groups


def good_converter(row):
    if "question" not in row:
        raise DataError("there is no question")
    return {"messages": [{"role": "user", "content": row["question"]}]}


def good_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs), {"p": inputs.reduce(inputs.log_probs.detach().exp())})


def good_loss_mask(tokenizer, messages, tools):
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError("there is no answer")
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return MaskedTokens(ids, [0] + [1] * (len(ids) - 1), text)


def good_rollout(args, rollout_id, data_source, evaluation=False):
    def done(sample, **changes):
        fields = {"tokens": [1, 2, 3], "response_length": 2, "reward": 0.0, "status": Status.COMPLETED}
        none = {"loss_mask": None, "rollout_log_probs": None, "weight_versions": []}
        return replace(sample, **{**fields, **none, **changes})

    if evaluation:
        return RolloutOutput([[done(sample(), metadata={"slime": {"dataset": "heldout"}})]])
    return RolloutOutput([[done(s) for s in g] for g in data_source.get_samples(args.rollout_batch_size)], {"n": 1.0})


async def good_generator(args, sample, sampling_params, engine):
    answer = await engine.generate(sample.tokens, sampling_params)
    return replace(
        sample,
        tokens=[*sample.tokens, *answer.tokens],
        response_length=len(answer.tokens),
        rollout_log_probs=answer.log_probs,
        status=Status.COMPLETED,
    )


async def good_sample_hook(args, sample, rollout_id=None):
    sample.metadata["words"] = len(sample.response.split())
    return sample if rollout_id else None


def good_rollout_data_postprocess(args, rollout_id, rollout_data):
    for mask, advantages in zip(rollout_data["loss_masks"], rollout_data["advantages"], strict=True):
        mask[advantages.abs() < 1e-3] = 0
    rollout_data["kept"] = [float(mask.sum()) for mask in rollout_data["loss_masks"]]


def good_all_samples_process(args, all_samples, data_source):
    data_source.add_samples(data_source.get_samples(1))


def good_reward_post_process(args, samples):
    raw = [sample.reward for sample in samples]
    return raw, [reward - sum(raw) / len(raw) for reward in raw]


def good_rollout_log(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
    return rollout_id > 0


def good_eval_rollout_log(rollout_id, args, data, extra_metrics):
    return all(len(one["rewards"]) == len(one["samples"]) for one in data.values())


def good_sample_converter(args, samples):
    return {
        "tokens": [sample.tokens for sample in samples],
        "response_lengths": [sample.response_length for sample in samples],
        "rewards": [sample.reward for sample in samples],
        "loss_masks": [sample.loss_mask for sample in samples],
    }


def good_advantage(args, inputs):
    return AdvantageOutputs(inputs.rewards[inputs.sample_index] * inputs.loss_mask)


def good_importance_weight(args, inputs):
    weights = (inputs.old_log_probs - inputs.rollout_log_probs).exp().clamp(max=2.0)
    return weights, {"weight": inputs.measured(weights)}


def good_pg_loss_reducer(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    def reduce(losses):
        own = zip(losses.split(response_lengths), loss_masks, strict=True)
        return sum(((x * mask).sum() / 7 for x, mask in own), losses.new_zeros(()))

    return reduce


class AbleSource(GlobalDataSource):
    """A data source that holds something."""

    def __init__(self, args):
        super().__init__(args)
        self.file = open(args.prompt_data[0])  # noqa: SIM115

    def close(self):
        self.file.close()


class AbleEngine(EchoEngine):
    """An echo with every ability that can be tried without a server."""

    held = requests = 0

    async def generate(self, input_ids, sampling_params, request_id=None):
        while self.held:
            await asyncio.sleep(0)
        self.requests += 1
        return await super().generate(input_ids, sampling_params, request_id)

    @contextmanager
    def hold(self):
        self.held += 1
        yield
        self.held -= 1

    def take_metrics(self):
        return {"requests": float(self.requests)}

    def offload(self):
        pass

    def onload(self):
        pass


def able_backend():
    """Return slime's backend, which offloads on machines without a GPU too."""

    class Backend(torch_backend()):
        def __init__(self, args):
            super().__init__(args.model_copy(update={"offload": False}))

        def offload(self):
            pass

        def onload(self):
            pass

    return Backend


class GoodTracker:
    def __init__(self, args, run_dir, config):
        self.file = (run_dir / "numbers").open("a")

    def log(self, metrics, step):
        self.file.write(str(metrics))

    def close(self, error):
        self.file.close()


def good_command(argv, plugins):
    print("usage")
    return 0


def torch_backend():
    from slime_torch.backend import TorchBackend

    return TorchBackend


def good_precision_recipe():
    """Return one of slime's recipes."""
    from slime_fp8.recipes.tensorwise import Tensorwise

    return Tensorwise


def good_checkpoint_format():
    """Return slime's."""
    from slime_fp8.checkpoint_format import Fp8Format

    return Fp8Format


GOOD = {
    "reward": good_reward,
    "dynamic_filter": good_dynamic_filter,
    "sample_filter": good_sample_filter,
    "buffer_pop": good_buffer_pop,
    "converter": good_converter,
    "loss": good_loss,
    "loss_mask": good_loss_mask,
    "rollout": good_rollout,
    "generator": good_generator,
    "sample_hook": good_sample_hook,
    "rollout_data_postprocess": good_rollout_data_postprocess,
    "all_samples_process": good_all_samples_process,
    "reward_post_process": good_reward_post_process,
    "rollout_log": good_rollout_log,
    "eval_rollout_log": good_eval_rollout_log,
    "sample_converter": good_sample_converter,
    "advantage": good_advantage,
    "importance_weight": good_importance_weight,
    "pg_loss_reducer": good_pg_loss_reducer,
    "data_source": GlobalDataSource,
    "tracker": GoodTracker,
    "command": good_command,
    "checkpoint_conversion": good_command,
    "engine": EchoEngine,
    "train_backend": torch_backend,
    "precision_recipe": good_precision_recipe,
    "checkpoint_format": good_checkpoint_format,
}


MADE = ("train_backend", "precision_recipe", "checkpoint_format")
"""Kinds whose components need torch: they are made when they are needed."""

ABLE = {"data_source": AbleSource, "engine": AbleEngine, "train_backend": able_backend}
"""Components with further abilities."""


def component_of(kind):
    return GOOD[kind]() if kind in MADE else GOOD[kind]
