"""Components that break their contracts, at least one for every check of the kit: `BROKEN`."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

from good_components import (
    GoodTracker,
    good_advantage,
    good_generator,
    good_importance_weight,
    good_loss_mask,
    good_reward_post_process,
    good_rollout,
    good_sample_converter,
    torch_backend,
)

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import LossOutputs, needs_gradient_at_zero_advantage, reads
from slime_core.data import GlobalDataSource
from slime_core.errors import DataError
from slime_core.sample import Status
from slime_core.testing import EchoEngine
from slime_core.testing.behaviour.engines import PATIENCE


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
    groups[0][0].remove_sample = 1


def copying_pop(args, rollout_id, buffer, num_samples):
    return buffer[:num_samples]


def clearing_pop(args, rollout_id, buffer, num_samples):
    groups = buffer[:num_samples]
    buffer.clear()
    return groups


def greedy_pop(args, rollout_id, buffer, num_samples):
    groups = list(buffer)
    buffer.clear()
    return groups


def picky_converter(row):
    raise DataError("it is not mine")


def roleless_converter(row):
    if "question" not in row:
        raise DataError("there is no question")
    return {"messages": [{"content": row["question"]}]}


def careless_converter(row):
    return {"messages": [{"role": "user", "content": row["question"]}]}


def lenient_converter(row):
    return {"messages": [{"role": "user", "content": str(row)}]}


def popping_converter(row):
    if "question" not in row:
        raise DataError("there is no question")
    return {"messages": [{"role": "user", "content": row.pop("question")}]}


def vector_loss(args, inputs):
    return LossOutputs(-inputs.log_probs)


def attached_metric_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs), {"nll": inputs.reduce(-inputs.log_probs)})


def detached_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs.detach()))


def zero_loss(args, inputs):
    return LossOutputs(inputs.reduce(0 * inputs.log_probs))


def mean_loss(args, inputs):
    return LossOutputs(-inputs.log_probs.mean())


def centred_loss(args, inputs):
    centre = inputs.log_probs.detach().sum() / max(1, len(inputs.log_probs))
    return LossOutputs(inputs.reduce(-inputs.log_probs * (1 + centre)))


def biased_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs) + 1)


def scaling_loss(args, inputs):
    inputs.advantages.mul_(2)
    return LossOutputs(inputs.reduce(-inputs.log_probs))


def undeclared_loss(args, inputs):
    return LossOutputs(inputs.reduce(inputs.log_probs - inputs.ref_log_probs))


@reads(lambda args: {"old_log_probs"})
def old_only_loss(args, inputs):
    old = inputs.log_probs.detach() * 2 if inputs.old_log_probs is None else inputs.old_log_probs
    return LossOutputs(inputs.reduce(-(inputs.log_probs - old).exp() * inputs.advantages))


@needs_gradient_at_zero_advantage(lambda args: False)
def skipping_loss(args, inputs):
    return LossOutputs(inputs.reduce(-inputs.log_probs * (1 + inputs.advantages)))


def masked(change):
    """A loss mask that does well, and then `change(masked, messages)`."""

    def broken_mask(tokenizer, messages, tools):
        return change(good_loss_mask(tokenizer, messages, tools), messages)

    return broken_mask


def message_dropping_mask(tokenizer, messages, tools):
    return good_loss_mask(tokenizer, messages[-1:], tools)


def changing_mask(tokenizer, messages, tools):
    made = good_loss_mask(tokenizer, messages, tools)
    messages[-1]["content"] += "!"
    return made


def careless_mask(tokenizer, messages, tools):
    if messages[-1]["role"] == "assistant":
        return good_loss_mask(tokenizer, messages, tools)
    raise ValueError("no answer")


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


def add_text_metric(output, evaluation):
    output.metrics["speed"] = "fast"


def forget_dataset(output, evaluation):
    if evaluation:
        output.groups[0][0].metadata = {}


def training_data_eval(args, rollout_id, data_source, evaluation=False):
    output = good_rollout(args, rollout_id, data_source)
    for s in output.samples:
        s.metadata["dataset"] = "heldout"
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


class SingleSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return [group[:1] for group in super().get_samples(num_samples)]


class UnnumberedSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return [[replace(s, index=0) for s in group] for group in super().get_samples(num_samples)]


class EndingSource(GlobalDataSource):
    def get_samples(self, num_samples):
        return super().get_samples(min(num_samples, len(self)))


class ForgettingSource(GlobalDataSource):
    def add_samples(self, groups):
        pass


class RestartingSource(GlobalDataSource):
    def load_state_dict(self, state):
        super().load_state_dict({**state, "sets": [{**position, "offset": 0} for position in state["sets"]]})


class BufferlessSource(GlobalDataSource):
    def state_dict(self):
        return {**super().state_dict(), "buffer": []}


class ObjectSource(GlobalDataSource):
    def state_dict(self):
        return {**super().state_dict(), "buffer": self.buffer}


class NumberPrintSource(GlobalDataSource):
    def fingerprint(self):
        return {"rows": 6}


class DividingSource(GlobalDataSource):
    def metrics(self):
        return {"share": float("nan")}


class LateSource(GlobalDataSource):
    def get_samples(self, num_samples):
        self.file = open(self.args.prompt_data[0])  # noqa: SIM115
        return super().get_samples(num_samples)

    def close(self):
        self.file.close()


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
    rollout_extra_metrics.clear()


def careless_eval_log(rollout_id, args, data, extra_metrics):
    return data["heldout"]["accuracy"] > 0


def popping_eval_log(rollout_id, args, data, extra_metrics):
    data["heldout"]["samples"].pop()


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


def estimated(change):
    """An estimator that does well, and then `change(advantages)`."""

    def broken_advantage(args, inputs):
        return AdvantageOutputs(change(good_advantage(args, inputs).advantages))

    return broken_advantage


def undeclared_advantage(args, inputs):
    return AdvantageOutputs(inputs.rewards[inputs.sample_index] - 0.1 * (inputs.log_probs - inputs.ref_log_probs))


def standardised_advantage(args, inputs):
    rewards = inputs.rewards.clone()
    for group in inputs.group_index.unique():
        inside = inputs.group_index == group
        rewards[inside] = (rewards[inside] - rewards[inside].mean()) / rewards[inside].std()
    return AdvantageOutputs(rewards[inputs.sample_index])


def first_group_advantage(args, inputs):
    return AdvantageOutputs((inputs.rewards - inputs.rewards[0])[inputs.sample_index])


def scaling_advantage(args, inputs):
    inputs.rewards.mul_(2)
    return good_advantage(args, inputs)


def weighed(change):
    """Importance weights that are well, and then `change(weights, inputs)`."""

    def broken_importance_weight(args, inputs):
        weights, metrics = good_importance_weight(args, inputs)
        return change(weights, inputs), metrics

    return broken_importance_weight


def attached_metric_weight(args, inputs):
    weights, _ = good_importance_weight(args, inputs)
    return weights, {"weight": inputs.measured(inputs.log_probs)}


def relative_weight(args, inputs):
    weights, metrics = good_importance_weight(args, inputs)
    return weights / max(1.0, float(weights.sum()) / max(1, len(weights))), metrics


def scaling_weight(args, inputs):
    found = good_importance_weight(args, inputs)
    inputs.rollout_log_probs.mul_(2)
    return found


class UnclosedTracker(GoodTracker):
    def close(self, error):
        pass


class OneErrorTracker(GoodTracker):
    def close(self, error):
        super().close(error)
        if error:
            raise error


class NewOnlyTracker(GoodTracker):
    def __init__(self, args, run_dir, config):
        self.file = (run_dir / "numbers").open("x")


class ClearingTracker(GoodTracker):
    def log(self, metrics, step):
        super().log(metrics, step)
        metrics.clear()


def silent_command(argv, plugins):
    return 0


def failing_command(argv, plugins):
    print("what?")
    return 2


def engine(**changes):
    """An echo whose answers have `changes`."""

    class Engine(EchoEngine):
        async def generate(self, input_ids, sampling_params, request_id=None):
            answer = await super().generate(input_ids, sampling_params, request_id)
            return replace(answer, **{name: change(answer) for name, change in changes.items()})

    return Engine


class RandomEngine(EchoEngine):
    count = 0

    async def generate(self, input_ids, sampling_params, request_id=None):
        RandomEngine.count += 1
        return await super().generate([*input_ids, RandomEngine.count], sampling_params, request_id)


def deaf_engine(option, value):
    """An echo that takes no notice of one sampling parameter."""

    class Engine(EchoEngine):
        async def generate(self, input_ids, sampling_params, request_id=None):
            return await super().generate(input_ids, {**sampling_params, option: value}, request_id)

    return Engine


class UnstoppableEngine(EchoEngine):
    async def abort(self, request_ids=None):
        pass


class AllAbortingEngine(EchoEngine):
    async def abort(self, request_ids=None):
        await super().abort(None)


class StubbornEngine(EchoEngine):
    def close(self):
        pass


class ThreadedEngine(EchoEngine):
    """Leaves a thread behind, for a while."""

    def __init__(self, args):
        super().__init__(args)
        threading.Timer(PATIENCE + 1, print).start()


class NumberedEngine(EchoEngine):
    def __init__(self, args):
        super().__init__(args)
        self.version = -1


class StaleEngine(EchoEngine):
    def update_weights(self, weights, version):
        pass


class WakefulEngine(EchoEngine):
    @contextmanager
    def hold(self):
        yield


class DividingEngine(EchoEngine):
    def take_metrics(self):
        return {"tokens_per_second": float("inf")}


class ForgetfulEngine(EchoEngine):
    def offload(self):
        pass

    def onload(self):
        self.version = 0


def forgetful_backend():
    """slime's backend, whose `onload` brings other weights."""

    class Backend(torch_backend()):
        def __init__(self, args):
            super().__init__(args.model_copy(update={"offload": False}))  # there may be no GPU here

        def offload(self):
            pass

        def onload(self):
            for parameter in self.model.parameters():
                parameter.data += 0.1

    return Backend


def backend(method, body):
    """slime's backend with another `method`, `body(self, original method, *arguments)`."""

    def make():
        original = getattr(torch_backend(), method)
        return type("Backend", (torch_backend(),), {method: lambda self, *given: body(self, original, *given)})

    return make


def step_without_lr(self, step, batch):
    metrics = step(self, batch)
    del metrics["lr"]
    return metrics


def evaluate_by_training(self, evaluate, batch):
    found = evaluate(self, batch)
    self.train_step(batch)
    return found


def load_all_but_the_optimizer(self, load, path):
    load(self, path)
    self.optimizer.state.clear()


def export_other_weights(self, export, path):
    for parameter in self.model.parameters():
        parameter.data += 1.0
    export(self, path)
    for parameter in self.model.parameters():
        parameter.data -= 1.0


def other_names(self, weights):
    return ((f"module.{name}", value) for name, value in weights(self))


def other_reference(self, setup, loss, total_steps, role="actor"):
    setup(self, loss, total_steps, role)
    if role == "reference":
        for parameter in self.model.parameters():
            parameter.data += 0.1


def weigh_what_is_computed(self, evaluate, batch):
    return evaluate(self, replace(batch, weights=batch.measured))


def measure_everything(self, evaluate, batch):
    return evaluate(self, replace(batch, measured=batch.weights))


def set_up_without_entropy(self, setup, loss, *given):
    setup(self, lambda args, inputs: loss(args, inputs), *given)


def another_loss_when_shared(self, evaluate, batch):
    return {"loss": evaluate(self, batch)["loss"] + 0.1 * batch.share_prompts}


def no_step_without_samples(self, step, batch):
    return step(self, batch) if batch.micro_batches else {}


def set_up_another_reference(self, setup, loss, steps, role="actor"):
    setup(self, loss, steps, role)
    if role == "reference":
        self.model.get_input_embeddings().weight.data.mul_(1.5)


BROKEN = [
    ("reward", text_reward, "returns one finite number", r"returned 'good' \(str\); expected a number"),
    ("reward", nan_reward, "returns one finite number", "expected a finite number"),
    ("reward", short_group_reward, "returns one finite number", "1 rewards for 4 samples; expected one for each"),
    ("reward", changing_reward, "does not change the samples", "it changed a sample; work on a copy"),
    ("dynamic_filter", wordy_filter, "answers True or False", "expected True or False"),
    ("dynamic_filter", number_reason_filter, "answers True or False", "give a short text such as 'all_equal'"),
    ("dynamic_filter", sorting_filter, "does not change the group", "it changed the group; work on a copy"),
    ("sample_filter", returning_sample_filter, "returns nothing", "expected None: it sets remove_sample"),
    ("sample_filter", dropping_sample_filter, "returns nothing", "it changed more than remove_sample"),
    ("sample_filter", counting_sample_filter, "returns nothing", "set remove_sample to 1; expected True or False"),
    ("buffer_pop", copying_pop, "removes from the buffer", "remove from `buffer`, in place, what you return"),
    ("buffer_pop", clearing_pop, "removes from the buffer", "every group must be in exactly one of the two"),
    ("buffer_pop", greedy_pop, "returns at most", "5 groups; expected at most 1"),
    ("converter", picky_converter, "turns rows into chat rows", r"Give one: EXAMPLES = \{'picky_converter': \["),
    ("converter", roleless_converter, "turns rows into chat rows", "it made a row that is no chat row: message 1 has"),
    ("converter", careless_converter, "refuses a row", "raised KeyError: 'question'. Raise slime_core.errors.DataError"),
    ("converter", lenient_converter, "refuses a row", "Raise slime_core.errors.DataError for a row that lacks"),
    ("converter", popping_converter, "does not change the rows", "it changed a row; work on a copy"),
    ("loss", vector_loss, "returns a finite scalar", r"shape \(21,\) as the loss; expected a tensor with one number, built with inputs.reduce"),
    ("loss", attached_metric_loss, "returns a finite scalar", r"inputs.reduce\(values.detach\(\)\)"),
    ("loss", detached_loss, "passes finite gradients", "does not depend on inputs.log_probs; do not detach them"),
    ("loss", zero_loss, "passes finite gradients", "its gradient is 0 for every trained token"),
    ("loss", mean_loss, "gives masked tokens no gradient", r"average with inputs.reduce\(values\)"),
    ("loss", mean_loss, "sums to the same", "differs between one micro-batch and 4 of them"),
    ("loss", centred_loss, "sums to the same", "nothing else that depends on which samples come together"),
    ("loss", mean_loss, "costs 0 for a micro-batch without", "is nan; expected 0"),
    ("loss", biased_loss, "costs 0 for a micro-batch without", "is 1.0; expected 0"),
    ("loss", undeclared_loss, "returns a finite scalar", "does not say that it reads them; say so: @slime_core.contracts.loss.reads"),
    ("loss", old_only_loss, "takes log_probs for old_log_probs", r"use inputs.log_probs.detach\(\) where"),
    ("loss", skipping_loss, "has no gradient at samples whose", "so they would be skipped; let it return True"),
    ("loss", scaling_loss, "does not change its inputs", "changed inputs.advantages in place; make a new tensor"),
    ("loss_mask", message_dropping_mask, "returns the tokens of the whole", "render the conversation once"),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=m.loss_mask[1:])),
        "gives every token a 0 or 1",
        "mask entries; expected one for each token",
    ),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=[0] + [2] * (len(m.token_ids) - 1))),
        "gives every token a 0 or 1",
        r"its mask holds \[0, 2\]; expected 0 and 1 only",
    ),
    ("loss_mask", masked(lambda m, _: replace(m, offsets=[(0, 1)])), "gives every token", "and 1 offsets; expected one"),
    (
        "loss_mask",
        masked(lambda m, _: replace(m, loss_mask=[0] * len(m.token_ids))),
        "trains something",
        "it trains 0 of",
    ),
    ("loss_mask", masked(lambda m, _: replace(m, loss_mask=[1] * len(m.token_ids))), "trains something", "first one too"),
    ("loss_mask", changing_mask, "does not change messages", "it changed the messages or tools; work on a copy"),
    ("loss_mask", careless_mask, "refuses a conversation", "Raise slime_core.errors.DataError with the reason"),
    ("rollout", rolled_out(drop_group), "returns full rollouts", "expected --rollout-batch-size × --n-samples-per"),
    ("rollout", rolled_out(shorten_mask), "returns full rollouts", "loss_mask has 1 entries, but response_length is 2"),
    ("rollout", rolled_out(forget_reward), "returns full rollouts", "it has no reward"),
    ("rollout", rolled_out(keep_number), "returns full rollouts", "keep the numbers that the data source gave them"),
    ("rollout", rolled_out(add_text_metric), "reports metrics", "its metric 'speed' is 'fast'; expected a finite number"),
    ("rollout", rolled_out(forget_dataset), "returns named samples", r'name the set in metadata\["dataset"\]'),
    ("rollout", training_data_eval, "returns named samples", "it changed the data source while evaluating"),
    ("generator", pending_generator, "completes a sample", "still pending; set `status`"),
    ("generator", forgetful_generator, "completes a sample", "rollout_log_probs has 1 entries, but response_length is 8"),
    ("generator", promptless_generator, "completes a sample", "`tokens` holds the prompt's and then the response's"),
    ("generator", changing_generator, "does not change the sampling", "which all samples share; work on a copy"),
    ("all_samples_process", clearing_process, "leaves the groups", "it changed the groups; work on a copy"),
    ("all_samples_process", returning_process, "leaves the groups", "expected None: it looks at the groups"),
    ("all_samples_process", draining_process, "leaves a data source", r"give groups back with data_source.add_samples"),
    ("reward_post_process", unpaired_rewards, "returns raw rewards", "expected a pair of lists: raw rewards, and"),
    ("reward_post_process", few_rewards, "returns raw rewards", "1 raw rewards for 12 samples; expected one for each"),
    ("reward_post_process", standardised_rewards, "returns raw rewards", "nan .* among the rewards to train with"),
    ("reward_post_process", overwriting_rewards, "does not change the samples", "it changed a sample; work on a copy"),
    ("rollout_log", wordy_log, "logs rollouts", r"returned 'logged' \(str\); expected True \(it has logged all itself"),
    ("rollout_log", clearing_log, "does not change samples or", "it changed samples or metrics; work on a copy"),
    ("eval_rollout_log", careless_eval_log, "logs evaluations", "it raised KeyError: 'accuracy'"),
    ("eval_rollout_log", popping_eval_log, "does not change samples or", "it changed samples or metrics; work on a copy"),
    ("sample_converter", converted(tokens=lambda t: t[1:]), "makes training data", "one entry for each of 12 samples"),
    ("sample_converter", converted(loss_masks=lambda m: [[1]] * len(m)), "makes training data",
     "1 loss_masks for sample 0; expected 3, as its response_length is 3"),
    ("sample_converter", converted(tokens=lambda t: [[]] * len(t)), "makes training data", "0 tokens for sample 0"),
    ("sample_converter", converted(rewards=lambda r: [None] * len(r)), "makes training data", "expected a finite number"),
    ("sample_converter", converted(loss_masks=lambda m: [[7] * len(x) for x in m]), "makes training data",
     "only 0 and 1 are allowed"),
    ("sample_converter", resetting_converter, "does not change the samples", "it changed a sample; work on a copy"),
    ("advantage", estimated(lambda a: a[1:]), "returns one finite advantage", r"expected a tensor of shape \(27,\)"),
    ("advantage", estimated(lambda a: a / 0), "returns one finite advantage", r"NaN or Inf, at samples \[0, 1, 2"),
    ("advantage", undeclared_advantage, "returns one finite advantage", "None for old_log_probs, ref_log_probs, values"),
    ("advantage", standardised_advantage, "copes with equal rewards", "NaN or Inf, at samples"),
    ("advantage", first_group_advantage, "gives a sample the same", "by inputs.group_index and inputs.sample_index"),
    ("advantage", scaling_advantage, "does not change its inputs", "it changed inputs.rewards in place"),
    ("importance_weight", weighed(lambda w, i: w[1:]), "returns a finite weight", r"expected a tensor of shape \(21,\)"),
    ("importance_weight", weighed(lambda w, i: -w), "returns a finite weight", "expected finite ones, not below 0"),
    ("importance_weight", weighed(lambda w, i: w * i.log_probs), "returns a finite weight", "expected them detached"),
    ("importance_weight", attached_metric_weight, "returns a finite weight", r"scalar tensor: inputs.measured\(values\)"),
    ("importance_weight", weighed(lambda w, i: w / 2), "weighs every trained token", "expected 1 for each"),
    ("importance_weight", relative_weight, "gives the same weights", "use nothing that depends on which samples come"),
    ("importance_weight", scaling_weight, "does not change its inputs", "it changed inputs.rollout_log_probs in place"),
    ("data_source", SingleSource, "hands out numbered groups", "expected a list of --n-samples-per-prompt = 2 Samples"),
    ("data_source", UnnumberedSource, "hands out numbered groups", "set `index` to a number that no other sample"),
    ("data_source", EndingSource, "hands out numbered groups", "into the next epoch if need be"),
    ("data_source", ForgettingSource, "gives groups that were put back", "hand out the buffer first"),
    ("data_source", RestartingSource, "goes on from its state", "the state must hold the position"),
    ("data_source", BufferlessSource, "goes on from its state", "random states and the buffer"),
    ("data_source", ObjectSource, "goes on from its state", "not plain JSON data: .* Sample.to_dict helps"),
    ("data_source", NumberPrintSource, "says what its data is", "expected {file: digest}"),
    ("data_source", DividingSource, "reports metrics and counts", "its number 'share' is nan; expected a finite"),
    ("data_source", LateSource, "closes, after it handed out", "it raised AttributeError: 'LateSource' object has no"),
    ("tracker", OneErrorTracker, "takes metrics", "it raised ValueError: the run failed"),
    ("tracker", UnclosedTracker, "has written what it writes", "are empty; flush and close them in close"),
    ("tracker", NewOnlyTracker, "goes on in the run directory", "it raised FileExistsError"),
    ("tracker", ClearingTracker, "does not change the metrics", "it changed the metrics; work on a copy"),
    ("command", silent_command, "explains itself", "0 characters on stdout; print how to use it"),
    ("command", failing_command, "explains itself", "ended with status 2"),
    ("engine", engine(log_probs=lambda a: []), "answers with as many", "0 log_probs and 6 weight_versions"),
    ("engine", engine(log_probs=lambda a: [0.5] * len(a.tokens)), "answers with as many", "not above 0"),
    ("engine", engine(finish_reason=lambda a: "abort"), "answers with as many", "expected 'length' at the limit"),
    ("engine", RandomEngine, "gives the same answer again", "`seed` fixes all randomness"),
    ("engine", deaf_engine("stop_token_ids", []), "ends an answer with the first stop token", "with the stop token .* expected"),
    ("engine", deaf_engine("min_new_tokens", 0), "goes on past stop tokens", "ended after 1 tokens; expected at least 3"),
    ("engine", NumberedEngine, "answers with the weights of the checkpoint", "expected the same tokens, of version 0"),
    ("engine", UnstoppableEngine, "returns what there is with", r"end with 'length' after .* so far, with abort"),
    ("engine", AllAbortingEngine, "returns what there is with", "expected the whole answer"),
    ("engine", StubbornEngine, "fails requests that are not finished", "neither failed nor ended; let it raise"),
    ("engine", ThreadedEngine, "fails requests that are not finished", r"its threads \['Thread-.* go on; end them in"),
    ("engine", StaleEngine, "says which weights", r"its weight_versions are \[0, .*; expected 1 for every token"),
    ("engine", WakefulEngine, "generates nothing while it is held", r"answered inside hold\(\); make no step until"),
    ("engine", DividingEngine, "counts what it does", "its metric 'tokens_per_second' is inf; expected a finite"),
    ("engine", ForgetfulEngine, "answers after offload", r"weights \[0, .*; everything must be as it was", "--offload"),
    ("train_backend", forgetful_backend, "goes on after offload", "keep weights, optimizer and random", "--offload"),
    ("train_backend", backend("close", lambda self, close: self.model.cpu()), "closes, also before", "AttributeError"),
    ("train_backend", backend("train_step", step_without_lr), "lowers the loss", "at least loss, grad_norm and lr"),
    ("train_backend", backend("train_step", lambda self, step, batch: {"loss": 1, "grad_norm": 1, "lr": 1}),
     "lowers the loss", "it should fall"),
    ("train_backend", backend("evaluate", evaluate_by_training), "evaluates without", "dropout must be off"),
    ("train_backend", backend("load_state", load_all_but_the_optimizer), "goes on from", "save the optimizer"),
    ("train_backend", backend("export_hf", export_other_weights), "exports a", "are not those of weights"),
    ("train_backend", backend("weights", other_names), "exports a", "use Hugging Face names, tied ones once"),
    ("train_backend", backend("log_probs", lambda self, of, batch: [[v / 2 for v in values] for values in of(self, batch)]),
     "gives the log-probs of", "log_probs differ from inputs.log_probs of a train_step on the same batch"),
    ("train_backend", backend("evaluate", lambda self, of, batch: of(self, replace(batch, columns={}))),
     "gives a loss the columns", "inputs.advantages is None, though batch.columns has it"),
    ("train_backend", backend("evaluate", lambda self, of, batch: {"loss": of(self, batch)["loss"] + batch.share_prompts}),
     "gives the same loss where prompts", "responses must not see each other"),
    ("train_backend", backend("train_step", lambda self, of, batch: {**of(self, batch), "grad_norm": 1.0}),
     "takes a step of gradient 0", "expected loss 0 and grad_norm 0"),
    ("train_backend", backend("values", lambda self, of, batch: [list(map(float, s.trained_mask)) for s in batch.samples]),
     "trains a critic", "its head must start as 0"),
    ("train_backend", backend("setup", other_reference), "keeps a reference", "one checkpoint give different log-probs"),
    ("train_backend", backend("log_probs", lambda self, found, batch: found(self, replace(batch, temperature=1.0))),
     "gives the log-probs of", "at batch.temperature"),
    ("train_backend", backend("log_probs", lambda self, found, batch: [row[1:] for row in found(self, batch)]),
     "gives the log-probs of", "numbers per sample; expected response_length"),
    ("train_backend", backend("evaluate", weigh_what_is_computed), "gives a loss the columns", "inputs.reduce gives the"),
    ("train_backend", backend("evaluate", measure_everything), "gives a loss the columns", "inputs.measured gives the"),
    ("train_backend", backend("setup", set_up_without_entropy), "gives a loss the columns", "inputs.entropy is None"),
    ("train_backend", backend("evaluate", another_loss_when_shared), "gives the same loss where", "not see each other"),
    ("train_backend", backend("train_step", no_step_without_samples), "takes a step of", "expected loss 0 and grad_norm 0"),
    ("train_backend", backend("setup", set_up_another_reference), "keeps a reference", "give different log-probs"),
]  # fmt: skip
