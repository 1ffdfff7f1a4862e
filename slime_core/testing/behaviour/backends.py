"""Train backends, tried on a tiny random model. Needs torch and transformers."""

from __future__ import annotations

import math
from typing import Any

from slime_core.batch import TrainBatch, make_train_batch
from slime_core.loss import LossInputs, LossOutputs
from slime_core.sample import Sample
from slime_core.testing.subject import Check, Subject


def trains(subject: Subject) -> None:
    """lowers the loss in a few steps and reports loss, grad_norm and lr"""
    backend, batch = _ready(subject), _batch()
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


def evaluates_without_trace(subject: Subject) -> None:
    """evaluates without leaving a trace"""
    import torch

    backend, batch = _ready(subject), _batch()
    before = _weights(backend)
    random_state = torch.get_rng_state()
    first, second = backend.evaluate(batch)["loss"], backend.evaluate(batch)["loss"]
    subject.expect(first == second, f"evaluating twice gave {first} and {second}; dropout must be off.")
    subject.expect(
        _same(_weights(backend), before) and torch.equal(torch.get_rng_state(), random_state),
        "evaluate changed the weights or torch's random state; restore what it uses.",
    )


def goes_on_from_its_state(subject: Subject) -> None:
    """goes on from a saved state bit for bit"""
    folder = subject.folder / "state"
    folder.mkdir(exist_ok=True)
    backend, batch = _ready(subject), _batch()
    backend.train_step(batch)
    backend.save_state(folder)
    backend.train_step(batch)
    resumed = _ready(subject)
    resumed.load_state(folder)
    resumed.train_step(batch)
    subject.expect(
        _same(_weights(backend), _weights(resumed)),
        "one more step after load_state gives other weights than without stopping; save the optimizer, the schedule's "
        "position and random states too.",
    )


def exports_what_it_trained(subject: Subject) -> None:
    """exports a Hugging Face checkpoint with the trained weights under their names"""
    from transformers import AutoModelForCausalLM

    folder = subject.folder / "exported"
    folder.mkdir(exist_ok=True)
    backend = _ready(subject)
    backend.train_step(_batch())
    backend.export_hf(folder)
    loaded = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    weights = _weights(backend)
    subject.expect(
        set(weights) == set(loaded),
        f"weights() names {sorted(set(weights) ^ set(loaded))[:4]} differently than the exported model; use Hugging Face "
        "names, tied ones once.",
    )
    subject.expect(
        all(value.allclose(loaded[name].to(value.dtype), atol=1e-2) for name, value in weights.items()),
        "the exported weights are not those of weights(); export what was trained.",
    )


def _ready(subject: Subject) -> Any:
    subject.need_checkpoint(weights=True)
    backend = subject.call(subject.args)
    backend.setup(_negative_log_likelihood, 4)
    return backend


def _negative_log_likelihood(args: Any, inputs: LossInputs) -> LossOutputs:
    return LossOutputs(inputs.reduce(-inputs.log_probs))


def _batch() -> TrainBatch:
    """Four samples of different lengths in two micro-batches."""
    samples = [
        Sample(index=i, tokens=list(range(10 + i, 20 + 3 * i)), response_length=4 + i, loss_mask=[1] * (4 + i))
        for i in range(4)
    ]
    return make_train_batch(samples, micro_batch_size=2)


def _weights(backend: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in backend.weights()}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


TRAIN_BACKEND: list[Check] = [trains, evaluates_without_trace, goes_on_from_its_state, exports_what_it_trained]
