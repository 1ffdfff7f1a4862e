"""Checks of train backends, on a tiny random model. They need torch and transformers."""

from __future__ import annotations

import math

from slime_core.contracts.engine import Offloads
from slime_core.contracts.loss import LossInputs, reads
from slime_core.contracts.train_backend import GivesGradients, SavesInBackground, TrainBackend
from slime_core.remote_code import from_pretrained
from slime_core.testing.behaviour.backend_runs import (
    equal,
    expect_per_token,
    loss_that_keeps,
    negative_log_likelihood,
    new_backend,
    numbered,
    of_trained_tokens,
    ready_backend,
    squared_error,
    two_groups,
    weights_of,
)
from slime_core.testing.subject import Check, Subject


def trains(subject: Subject[TrainBackend]) -> None:
    """lowers the loss in a few steps and reports loss, grad_norm and lr"""
    backend, batch = ready_backend(subject), two_groups()
    before = backend.evaluate(batch)["loss"]
    for _ in range(3):
        metrics = backend.train_step(batch)
        subject.expect(
            all(math.isfinite(metrics.get(name, math.nan)) for name in ("loss", "grad_norm", "lr")),
            f"train_step returned {metrics}; expected finite numbers for at least loss, grad_norm and lr.",
        )
    after = backend.evaluate(batch)["loss"]
    subject.expect(
        after < before or metrics["lr"] == 0,
        f"after three steps on one batch the loss is {after}, before it was {before}; it should fall.",
    )


def evaluates_without_trace(subject: Subject[TrainBackend]) -> None:
    """evaluates without leaving a trace"""
    import torch

    backend, batch = ready_backend(subject), two_groups()
    before = weights_of(backend)
    random_state = torch.get_rng_state()
    first, second = backend.evaluate(batch)["loss"], backend.evaluate(batch)["loss"]
    subject.expect(first == second, f"evaluating twice gave {first} and {second}; dropout must be off.")
    subject.expect(
        equal(weights_of(backend), before) and torch.equal(torch.get_rng_state(), random_state),
        "evaluate changed the weights or torch's random state; restore what it uses.",
    )


def goes_on_from_its_state(subject: Subject[TrainBackend]) -> None:
    """goes on from a saved state bit for bit"""
    folder = subject.folder / "state"
    folder.mkdir(exist_ok=True)
    backend, batch = ready_backend(subject), two_groups()
    backend.train_step(batch)
    backend.save_state(folder)
    if isinstance(backend, SavesInBackground):
        backend.saved(wait=True)
    backend.train_step(batch)
    resumed = ready_backend(subject)
    resumed.load_state(folder)
    resumed.train_step(batch)
    subject.expect(
        equal(weights_of(backend), weights_of(resumed)),
        "one more step after load_state gives other weights than without stopping; save the optimizer, the schedule's "
        "position and random states too.",
    )


def exports_what_it_trained(subject: Subject[TrainBackend]) -> None:
    """exports a Hugging Face checkpoint with the trained weights under their names"""
    from transformers import AutoModelForCausalLM

    folder = subject.folder / "exported"
    folder.mkdir(exist_ok=True)
    backend = ready_backend(subject)
    backend.train_step(two_groups())
    backend.export_hf(folder)
    loaded = dict(from_pretrained(AutoModelForCausalLM, folder).named_parameters())
    weights = weights_of(backend)
    subject.expect(
        set(weights) == set(loaded),
        f"weights() names {sorted(set(weights) ^ set(loaded))[:4]} differently than the exported model; use Hugging "
        "Face names, tied ones once.",
    )
    subject.expect(
        all(value.allclose(loaded[name].to(value.dtype), atol=1e-2) for name, value in weights.items()),
        "the exported weights are not those of weights(); export what was trained.",
    )


def gives_the_log_probs_of_training(subject: Subject[TrainBackend]) -> None:
    """gives the log-probs of the training forward pass, and leaves no trace"""
    import torch

    seen: list[LossInputs] = []
    backend, batch = ready_backend(subject, loss_that_keeps(seen)), two_groups(temperature=0.7, skipped={1})
    random_state = torch.get_rng_state()
    found = backend.log_probs(batch)
    subject.expect(torch.equal(torch.get_rng_state(), random_state), "log_probs changed torch's random state.")
    expect_per_token(subject, "log_probs", batch, found)
    backend.train_step(batch)
    trained = torch.cat([inputs.log_probs.detach()[inputs.loss_mask > 0] for inputs in seen])
    subject.expect(
        torch.equal(torch.tensor(of_trained_tokens(batch, found), dtype=trained.dtype), trained.cpu()),
        "log_probs differ from inputs.log_probs of a train_step on the same batch; the first step on a rollout would "
        "not have ratio 1. Take them from the same micro-batches by the same operations, at batch.temperature.",
    )


def gives_its_gradients(subject: Subject[TrainBackend]) -> None:
    """gives the gradients of training, if it gives any, and leaves no trace"""
    if not issubclass(subject.target, GivesGradients):
        return
    backend, batch = ready_backend(subject), two_groups()
    assert isinstance(backend, GivesGradients)
    before = weights_of(backend)
    found = {name: value.detach().double().cpu() for name, value in backend.gradients(batch)}
    subject.expect(equal(weights_of(backend), before), "gradients changed the weights; put back what it uses.")
    subject.expect(
        set(found) <= set(before) and all(value.shape == before[name].shape for name, value in found.items()),
        f"gradients names {sorted(set(found) - set(before))[:4]}, which weights() does not, or gives other shapes; give them "
        "whole, under the names of weights().",
    )
    norm = math.sqrt(sum(float(value.square().sum()) for value in found.values()))
    expected = backend.train_step(batch)["grad_norm"]
    subject.expect(
        not found or math.isclose(norm, expected, rel_tol=1e-2),
        f"the norm of all gradients is {norm}, but train_step reports grad_norm {expected} for the same batch. Give them "
        "before clipping, each once, summed over ranks and micro-batches.",
    )


def gives_losses_what_they_read(subject: Subject[TrainBackend]) -> None:
    """gives a loss the columns of the batch, both means and the entropy that it reads"""
    seen: list[LossInputs] = []
    loss = reads(lambda args: {"entropy"})(loss_that_keeps(seen))
    batch = two_groups(skipped={1, 2})
    columns = {"advantages": [[float(10 * i + j) for j in range(s.response_length)] for i, s in numbered(batch)]}
    backend = ready_backend(subject, loss)
    backend.evaluate(two_groups(skipped={1, 2}, columns=columns))
    for name in ("entropy", "advantages"):
        subject.expect(
            all(getattr(inputs, name) is not None for inputs in seen),
            f"inputs.{name} is None, though "
            + ("the loss reads it." if name == "entropy" else "batch.columns has it."),
        )
    given = [value for i in seen for value in i.advantages[i.loss_mask > 0].tolist()]  # type: ignore[index]
    wished = of_trained_tokens(batch, columns["advantages"])
    subject.expect(given == wished, f"inputs.advantages of the trained tokens are {given}; expected {wished}.")
    entropies = [value for i in seen for value in i.entropy[i.loss_mask > 0].tolist()]  # type: ignore[index]
    subject.expect(all(value >= 0 for value in entropies), f"inputs.entropy holds {entropies}; it is at least 0.")
    for name, expected in (("reduce", batch.weights), ("measured", batch.measured)):
        total = sum(float(getattr(i, name)(i.loss_mask)) for i in seen)
        wanted = sum(expected[i] * sum(batch.samples[i].trained_mask) for m in batch.micro_batches for i in m)
        subject.expect(
            math.isclose(total, wanted, rel_tol=1e-5),
            f"inputs.{name} gives the computed tokens the weight {total:.6f} in all; expected {wanted:.6f}, which is "
            f"what batch.{'weights' if name == 'reduce' else name} says.",
        )


def shares_prompts(subject: Subject[TrainBackend]) -> None:
    """gives the same loss where prompts are shared"""
    backend = ready_backend(subject)
    losses = [backend.evaluate(two_groups(share_prompts=share))["loss"] for share in (False, True)]
    subject.expect(
        math.isclose(*losses, rel_tol=1e-5),
        f"with shared prompts the loss is {losses[1]}, without {losses[0]}; responses must not see each other.",
    )


def takes_a_step_without_samples(subject: Subject[TrainBackend]) -> None:
    """takes a step of gradient 0 when no sample needs computing"""
    backend = ready_backend(subject)
    metrics = backend.train_step(two_groups(skipped=range(4)))
    subject.expect(
        metrics.get("loss") == 0 and metrics.get("grad_norm") == 0,
        f"a batch without micro-batches gave {metrics}; expected loss 0 and grad_norm 0.",
    )


def trains_a_critic(subject: Subject[TrainBackend]) -> None:
    """trains a critic that starts from 0"""
    backend = ready_backend(subject, squared_error, "critic")
    samples = two_groups().samples
    batch = two_groups(columns={"returns": [[1.0] * sample.response_length for sample in samples]})
    found = backend.values(batch)
    expect_per_token(subject, "values", batch, found)
    subject.expect(not any(map(any, found)), f"a new critic predicts {found}; its head must start as 0.")
    losses = [backend.train_step(batch)["loss"] for _ in range(3)]
    rate = backend.train_step(batch)["lr"]
    subject.expect(
        losses[-1] < losses[0] or rate == 0, f"the critic's loss went {losses}; it should fall on one batch."
    )


def keeps_a_reference(subject: Subject[TrainBackend]) -> None:
    """keeps a reference model whose log-probs are the actor's at the start"""
    batch = two_groups()
    found = ready_backend(subject, role="reference").log_probs(batch)
    subject.expect(
        found == ready_backend(subject).log_probs(batch),
        "a reference model and an actor of one checkpoint give different log-probs.",
    )


def takes_its_memory_again(subject: Subject[TrainBackend]) -> None:
    """goes on after offload and onload bit for bit, if it can and --offload is given"""
    if not (subject.resolved.args.offload and issubclass(subject.target, Offloads)):
        return
    backend, other, batch = ready_backend(subject), ready_backend(subject), two_groups()
    assert isinstance(backend, Offloads)
    backend.train_step(batch)
    backend.offload()
    backend.onload()
    backend.train_step(batch)
    other.train_step(batch)
    other.train_step(batch)
    subject.expect(
        equal(weights_of(backend), weights_of(other)),
        "a step after offload and onload gives other weights than without them; keep weights, optimizer and random "
        "states.",
    )


def closes(subject: Subject[TrainBackend]) -> None:
    """closes, also before it has loaded a model, and leaves no process group behind"""
    import torch.distributed as dist

    def in_group() -> bool:
        return dist.is_available() and dist.is_initialized()

    was_in_group = in_group()
    for set_up in (False, True):
        backend = new_backend(subject)
        if set_up:
            backend.setup(negative_log_likelihood, 4)
            backend.train_step(two_groups())
        backend.close()
        subject.expect(
            was_in_group or not in_group(),
            "after close the process is still in a torch.distributed process group; call destroy_process_group in "
            "close().",
        )


TRAIN_BACKEND: list[Check] = [
    closes,  # first, so that no process group is left from the other checks
    trains,
    evaluates_without_trace,
    goes_on_from_its_state,
    exports_what_it_trained,
    gives_the_log_probs_of_training,
    gives_its_gradients,
    gives_losses_what_they_read,
    shares_prompts,
    takes_a_step_without_samples,
    trains_a_critic,
    keeps_a_reference,
    takes_its_memory_again,
]
