"""Components of rollouts that break their contracts: rewards, filters, rollout functions, and what comes after them."""

from __future__ import annotations

from dataclasses import replace

import torch
from good_components import good_generator, good_reward_post_process, good_rollout, good_sample_converter

from slime_core.sample import Status


def text_reward(args, sample):
    return "good"


def nan_reward(args, sample):
    return float("nan")


def short_group_reward(args, samples):
    return [0.0]


def changing_reward(args, sample):
    sample.metadata["seen"] = True
    return 0.0


def wordy_filter(args, samples, **kwargs):
    return "yes"


def number_reason_filter(args, samples, **kwargs):
    return False, 3


def sorting_filter(args, samples, **kwargs):
    samples.sort(key=lambda s: s.reward)
    return True


def returning_sample_filter(args, groups):
    return groups


def dropping_sample_filter(args, groups):
    groups[0].pop()


def counting_sample_filter(args, groups):
    groups[0][0].remove_sample = 2


def rolled_out(change):
    """A rollout function that does well, and then `change(output, evaluation)`."""

    def broken_rollout(args, rollout_id, data_source, evaluation=False):
        output = good_rollout(args, rollout_id, data_source, evaluation)
        change(output, evaluation)
        return output

    return broken_rollout


def keep_number(output, evaluation):
    output.groups[0][0].index = 0


def drop_group(output, evaluation):
    if not evaluation:
        output.groups.pop()


def shorten_mask(output, evaluation):
    output.groups[0][0].loss_mask = [1]


def forget_reward(output, evaluation):
    output.groups[0][0].reward = None


def add_list_metric(output, evaluation):
    output.metrics["speed"] = [1.0, 2.0]


def forget_dataset(output, evaluation):
    if evaluation:
        output.groups[0][0].metadata = {}


def training_data_eval(args, rollout_id, data_source, evaluation=False):
    output = good_rollout(args, rollout_id, data_source)
    for s in output.samples:
        s.note(dataset="heldout")
    return output


async def pending_generator(args, sample, sampling_params, engine):
    return replace(await good_generator(args, sample, sampling_params, engine), status=Status.PENDING)


async def forgetful_generator(args, sample, sampling_params, engine):
    return replace(await good_generator(args, sample, sampling_params, engine), rollout_log_probs=[-1.0])


async def promptless_generator(args, sample, sampling_params, engine):
    answer = await engine.generate(sample.tokens, sampling_params)
    return replace(sample, tokens=[0, *answer.tokens], response_length=len(answer.tokens), status=Status.COMPLETED)


async def changing_generator(args, sample, sampling_params, engine):
    sampling_params["max_new_tokens"] = 2
    return await good_generator(args, sample, sampling_params, engine)


def clearing_process(args, all_samples, data_source):
    all_samples.clear()


def draining_process(args, all_samples, data_source):
    data_source.get_samples = lambda num_samples: []


def returning_process(args, all_samples, data_source):
    return all_samples


def unpaired_rewards(args, samples):
    return [0.0] * len(samples)


def few_rewards(args, samples):
    return [0.0], [0.0]


def standardised_rewards(args, samples):
    raw, centred = good_reward_post_process(args, samples)
    deviation = (sum(c * c for c in centred) / len(centred)) ** 0.5
    return raw, [c / deviation if deviation else float("nan") for c in centred]


def overwriting_rewards(args, samples):
    for s in samples:
        s.reward = 0.0
    return good_reward_post_process(args, samples)


def wordy_log(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
    return "logged"


def clearing_log(rollout_id, args, samples, rollout_extra_metrics, rollout_time):
    samples.clear()


def careless_eval_log(rollout_id, args, data, extra_metrics):
    return data["heldout"]["accuracy"] > 0


def popping_eval_log(rollout_id, args, data, extra_metrics):
    data["heldout"]["samples"].pop()


def elementwise_filter(args, samples, **kwargs):
    return torch.tensor([sample.reward for sample in samples]) > 0


def counting_hook(args, sample):
    return sample.response_length


def cutting_hook(args, sample):
    sample.response_length -= 1


def dropping_postprocess(args, rollout_id, rollout_data):
    rollout_data["tokens"].pop()


def weighing_postprocess(args, rollout_id, rollout_data):
    rollout_data["loss_masks"] = [mask * 0.5 for mask in rollout_data["loss_masks"]]


def short_postprocess(args, rollout_id, rollout_data):
    rollout_data["advantages"][0] = rollout_data["advantages"][0][1:]


def endless_postprocess(args, rollout_id, rollout_data):
    rollout_data["advantages"][0] /= 0


def wordy_postprocess(args, rollout_id, rollout_data):
    rollout_data["why"] = "because"


def converted(**changes):
    """A converter that does well, and then changes entries."""

    def broken_converter(args, samples):
        made = good_sample_converter(args, samples)
        return {**made, **{name: change(made[name]) for name, change in changes.items()}}

    return broken_converter


def resetting_converter(args, samples):
    made = good_sample_converter(args, samples)
    for s in samples:
        s.loss_mask = None
    return made


BROKEN = [
    ("reward", text_reward, "returns one finite number", r"returned 'good' \(str\); expected a number"),
    ("reward", nan_reward, "returns one finite number", "expected a finite number"),
    ("reward", short_group_reward, "returns one finite number", "1 rewards for 4 samples; expected one for each"),
    ("reward", changing_reward, "does not change the samples", "it changed a sample; work on a copy"),
    ("dynamic_filter", wordy_filter, "answers True or False", "expected True or False"),
    ("dynamic_filter", elementwise_filter, "answers True or False", r"tensor\(.*\(Tensor\); expected True or False"),
    ("dynamic_filter", number_reason_filter, "answers True or False", "give a short text such as 'all_equal'"),
    ("dynamic_filter", sorting_filter, "does not change the group", "it changed the group; work on a copy"),
    ("sample_filter", returning_sample_filter, "returns nothing", "expected None: it sets remove_sample"),
    ("sample_filter", dropping_sample_filter, "returns nothing", r"left \d+\. A group keeps its samples"),
    ("sample_filter", counting_sample_filter, "returns nothing", "remove_sample is 2, expected True or False"),
    ("rollout", rolled_out(drop_group), "returns full rollouts", "expected --rollout-batch-size × --n-samples-per"),
    ("rollout", rolled_out(shorten_mask), "returns full rollouts", "loss_mask has 1 entries, but response_length is 2"),
    ("rollout", rolled_out(forget_reward), "returns full rollouts", "it has no reward"),
    ("rollout", rolled_out(keep_number), "returns full rollouts", "keep the numbers that the data source gave them"),
    ("rollout", rolled_out(add_list_metric), "reports metrics", r"the metric 'speed' is \[1.0, 2.0\]"),
    ("rollout", rolled_out(forget_dataset), "returns named samples", "keep their metadata, which names the set"),
    ("rollout", training_data_eval, "returns named samples", "it changed the data source while evaluating"),
    ("generator", pending_generator, "completes a sample", "still pending; set `status`"),
    ("generator", forgetful_generator, "completes a sample", "rollout_log_probs has 1 entries, but response_length is 8"),
    ("generator", promptless_generator, "completes a sample", "`tokens` holds the prompt's and then the response's"),
    ("generator", changing_generator, "does not change the sampling", "which all samples share; work on a copy"),
    ("sample_hook", counting_hook, "leaves samples", "expected a Sample, or None"),
    ("sample_hook", cutting_hook, "leaves samples", "but response_length is"),
    ("rollout_data_postprocess", dropping_postprocess, "leaves data", "other 'tokens' than it was given"),
    ("rollout_data_postprocess", weighing_postprocess, "leaves data", "other numbers than 0 and 1 among the 'loss_masks'"),
    ("rollout_data_postprocess", short_postprocess, "leaves data", "as many finite numbers as its response has tokens"),
    ("rollout_data_postprocess", endless_postprocess, "leaves data", "as many finite numbers as its response has tokens"),
    ("rollout_data_postprocess", wordy_postprocess, "leaves data", "it must be one finite number for each sample"),
    ("all_samples_process", clearing_process, "leaves the groups", "it changed the groups; work on a copy"),
    ("all_samples_process", returning_process, "leaves the groups", "expected None: it looks at the groups"),
    ("all_samples_process", draining_process, "leaves a data source", r"give groups back with data_source.add_samples"),
    ("reward_post_process", unpaired_rewards, "returns raw rewards", "expected a pair of lists: raw rewards, and"),
    ("reward_post_process", few_rewards, "returns raw rewards", "1 raw rewards for 12 samples; expected one for each"),
    ("reward_post_process", standardised_rewards, "returns raw rewards", "nan .* among the rewards to train with"),
    ("reward_post_process", overwriting_rewards, "does not change the samples", "it changed a sample; work on a copy"),
    ("rollout_log", wordy_log, "logs rollouts", r"returned 'logged' \(str\); expected True \(it has logged all itself"),
    ("rollout_log", clearing_log, "does not change the samples", "it changed a sample; work on a copy"),
    ("eval_rollout_log", careless_eval_log, "logs evaluations", "it raised KeyError: 'accuracy'"),
    ("eval_rollout_log", popping_eval_log, "does not change the samples", "it changed a sample; work on a copy"),
    ("sample_converter", converted(tokens=lambda t: t[1:]), "makes training data", "one entry for each of 12 samples"),
    ("sample_converter", converted(loss_masks=lambda m: [[1]] * len(m)), "makes training data",
     "1 loss_masks for sample 0; expected 3, as its response_length is 3"),
    ("sample_converter", converted(tokens=lambda t: [[]] * len(t)), "makes training data", "0 tokens for sample 0"),
    ("sample_converter", converted(rewards=lambda r: [None] * len(r)), "makes training data", "expected a finite number"),
    ("sample_converter", converted(loss_masks=lambda m: [[7] * len(x) for x in m]), "makes training data",
     "only 0 and 1 are allowed"),
    ("sample_converter", resetting_converter, "does not change the samples", "it changed a sample; work on a copy"),
]  # fmt: skip
