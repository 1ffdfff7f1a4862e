"""Training with experts that were chosen under other weights, compared with transformers' routers that are told the experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron_cases import Case, Recording, _first_step, _trained, forget, in_turn, largest, make_backend
from megatron_models import make_batch, make_model, make_samples, save
from megatron_truth import LOSSES, LR, STEPS, Truth, compute_truth
from torch import Tensor

FLAG = {"use_routing_replay": True}


def moved(case: Case) -> str:
    """The name of a checkpoint whose weights are other ones than those that choose experts."""
    return f"{case.model}, moved"


def prepare(case: Case, folder: Path) -> float:
    """Write the checkpoint that chooses experts, another one that is trained with these, and what transformers makes of it.

    Returns:
        the share of experts that the other one would not have chosen.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = make_model(case.model)
    if not (folder / case.model).is_dir():
        save(model, folder / case.model)
    with chosen_experts(model) as gates:
        for sample in make_samples():
            model(torch.tensor([sample.tokens]), use_cache=False)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.3)
        save(model, folder / moved(case))
        for gate in gates:
            gate.repeats = True
        compute_truth(model).write(folder / case.truth)
        others = sum(gate.others for gate in gates) / sum(gate.all for gate in gates)
    torch.set_num_threads(threads)
    return others


class _Gate:
    """A router of transformers that notes the experts of each sample, and later is told them."""

    def __init__(self, gate: Any) -> None:
        self.gate, self.own = gate, gate.forward
        self.noted: list[Tensor] = []
        self.calls = self.others = self.all = 0
        self.repeats = False

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, own = self.own(hidden)
        if not self.repeats:
            self.noted.append(own.detach())
            return logits, weights, own
        experts = self.noted[self.calls % len(self.noted)]  # samples come in their order, again and again
        self.calls += 1
        self.all += experts.numel()
        self.others += sum(len(set(a) - set(b)) for a, b in zip(experts.tolist(), own.tolist(), strict=True))
        if hasattr(self.gate, "routed_scaling_factor"):
            scores = logits.sigmoid().gather(1, experts)
            return logits, scores / scores.sum(-1, keepdim=True) * self.gate.routed_scaling_factor, experts
        scores = logits.softmax(-1).gather(1, experts)
        return logits, scores / scores.sum(-1, keepdim=True), experts


@contextmanager
def chosen_experts(model: Any) -> Iterator[list[_Gate]]:
    """Every router of a model in transformers as a `_Gate`."""
    gates = [_Gate(part) for part in model.modules() if type(part).__name__.lower().endswith("topkrouter")]
    for gate in gates:
        gate.gate.forward = gate
    yield gates
    for gate in gates:
        del gate.gate.forward


def work(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Any) -> None:
    """Compare one case after the other."""
    in_turn([(str(case), case, partial(compare, case, folder)) for case in cases], found, note)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Choose experts with the one checkpoint, train the other with them, and tell how far that is off; see
    `megatron_cases.compare`. `forgotten`: after forgetting, log-probs of the loss are those of a router that chooses."""
    from slime_megatron import checkpoint_files, weights

    truth = Truth.read(folder / case.truth)
    loss = Recording(LOSSES[case.loss])
    backend = make_backend(case, folder, loss)
    batch = make_batch(truth.columns, case.mean, backend.data_parallel_size, case.rows)
    plain = backend.log_probs(batch)
    same = not backend.replays_routing or backend.remember_routing(batch) == plain
    with checkpoint_files.Reader(folder / moved(case)) as reader:
        weights.load(backend._model, reader.read)
    free = backend.log_probs(batch)  # of routers that choose
    first, gradients = _first_step(backend, batch, truth.gradients)
    steps = [first, *(backend.train_step(batch) for _ in range(STEPS - 1))]
    found = {
        "same": same,
        "free": largest(_trained(batch, free), truth.log_probs),
        "gradients": gradients,
        "losses": [step["loss"] for step in steps],
        "norms": [step["grad_norm"] for step in steps],
        "weights": {n: (w - truth.weights[n]).abs().max().item() / LR for n, w in backend.weights()},
    }
    backend.forget_routing()
    loss.inputs.clear()
    again = backend.log_probs(batch)
    backend.train_step(batch)
    own = batch.of_rank(backend._ranks.rank, backend._ranks.size)
    indices = [i for micro_batch in own for i in micro_batch if sum(batch.samples[i].trained_mask)]
    wanted = [value for i in indices for value in _trained(batch, again)[i]]
    found["forgotten"] = not loss.inputs or [v for i in loss.inputs for v in i.log_probs.tolist()] == wanted
    forget(backend)
    return found
