"""Components of training that break their contracts: losses, estimators, weights, backends."""

from __future__ import annotations

from dataclasses import replace

from good_components import able_backend, good_advantage, good_importance_weight, good_pg_loss_reducer, torch_backend

from slime_core.contracts.advantage import AdvantageOutputs
from slime_core.contracts.loss import LossOutputs, needs_gradient_at_zero_advantage, reads


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


def maskless_reducer(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda losses: losses.sum()


def vector_reducer(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    return lambda losses: losses


def averaging_reducer(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    reduce = good_pg_loss_reducer(total_lengths, response_lengths, loss_masks)
    return lambda losses: reduce(losses) / max(1, len(loss_masks))


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


def forgetful_backend():
    """Return a backend whose `onload` brings other weights."""

    class Backend(able_backend()):
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


def clipped_gradients(self, gradients, batch):
    return ((name, value / 2) for name, value in gradients(self, batch))


def gradients_of_modules(self, gradients, batch):
    return ((f"module.{name}", value) for name, value in gradients(self, batch))


def gradients_by_a_step(self, gradients, batch):
    found = [(name, value.clone()) for name, value in gradients(self, batch)]
    self.train_step(batch)
    return iter(found)


BROKEN = [
    ("loss", vector_loss, "returns a finite scalar", r"shape \(21,\) as the loss; expected a tensor with one number, built with inputs.reduce"),
    ("loss", attached_metric_loss, "returns a finite scalar", r"inputs.reduce\(values.detach\(\)\)"),
    ("loss", detached_loss, "returns a finite scalar", "a loss without a gradient, from which nothing is learned"),
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
    ("advantage", estimated(lambda a: a[1:]), "returns one finite advantage", r"expected a tensor of shape \(27,\)"),
    ("advantage", estimated(lambda a: a / 0), "returns one finite advantage", r"NaN or Inf, at samples \[0, 1, 2"),
    ("advantage", undeclared_advantage, "returns one finite advantage", "None for old_log_probs, ref_log_probs, values"),
    ("advantage", standardised_advantage, "copes with equal rewards", "NaN or Inf, at samples"),
    ("advantage", first_group_advantage, "gives a sample the same", "by inputs.group_index and inputs.sample_index"),
    ("advantage", scaling_advantage, "does not change its inputs", "it changed inputs.rewards in place"),
    ("pg_loss_reducer", maskless_reducer, "makes one finite number", "multiply losses by loss_masks"),
    ("pg_loss_reducer", vector_reducer, "makes one finite number", "expected one finite number"),
    ("pg_loss_reducer", averaging_reducer, "sums to the same number", "add up what each sample gives"),
    ("importance_weight", weighed(lambda w, i: w[1:]), "returns a finite weight", r"expected a tensor of shape \(21,\)"),
    ("importance_weight", weighed(lambda w, i: -w), "returns a finite weight", "expected finite ones, not below 0"),
    ("importance_weight", weighed(lambda w, i: w * i.log_probs), "returns a finite weight", "expected them detached"),
    ("importance_weight", attached_metric_weight, "returns a finite weight", r"scalar tensor: inputs.measured\(values\)"),
    ("importance_weight", weighed(lambda w, i: w / 2), "weighs every trained token", "expected 1 for each"),
    ("importance_weight", relative_weight, "gives the same weights", "use nothing that depends on which samples come"),
    ("importance_weight", scaling_weight, "does not change its inputs", "it changed inputs.rollout_log_probs in place"),
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
    ("train_backend", backend("gradients", clipped_gradients), "gives the gradients", "Give them before clipping, each once"),
    ("train_backend", backend("gradients", gradients_of_modules), "gives the gradients", "under the names of weights"),
    ("train_backend", backend("gradients", gradients_by_a_step), "gives the gradients", "gradients changed the weights"),
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
