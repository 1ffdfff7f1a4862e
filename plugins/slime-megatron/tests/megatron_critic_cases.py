"""Critics on Megatron, compared with a head on the final hidden states that transformers computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron_cases import Case, Recording, _first_step, _flat, _trained, forget, in_turn, largest, make_backend
from megatron_models import (
    BETAS,
    CLIP,
    EPS,
    LR,
    WEIGHT_DECAY,
    as_in_a_file,
    make_arguments,
    make_batch,
    make_model,
    make_samples,
    save,
)
from megatron_truth import STEPS
from torch import Tensor

from slime_core.contracts.loss import LossInputs, Reduce
from slime_core.sample import Sample
from slime_losses.value import value_loss

HEAD = "value_head.weight"


def critic(case: Case) -> str:
    """The name of a checkpoint with a critic's head."""
    return f"{case.model}, critic"


def prepare(case: Case, folder: Path) -> dict[str, Any]:
    """Write checkpoints without and with a head, and what transformers and torch's AdamW make of the latter."""
    from safetensors.torch import load_file, save_file

    file = folder / f"{case.model}, critic.pt"
    if file.is_file():
        found: dict[str, Any] = torch.load(file, weights_only=True)
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = make_model(case.model)
    torch.manual_seed(2)
    head = torch.nn.Parameter(torch.randn(1, model.config.hidden_size) * 0.2)
    for name in (case.model, critic(case)):
        save(model, folder / name)
    weights = folder / critic(case) / "model.safetensors"
    save_file({**load_file(weights), HEAD: head.detach()}, weights, metadata={"format": "pt"})
    found = _truth(model, head)
    torch.save(found, file)
    torch.set_num_threads(threads)
    return found


def _truth(model: Any, head: torch.nn.Parameter) -> dict[str, Any]:
    """values, columns, gradients, losses, norms, metrics and weights, as `megatron_truth.Truth` has them. Changes the model."""
    samples = make_samples()
    output = model.get_output_embeddings()
    if output.weight is not model.get_input_embeddings().weight:
        output.requires_grad_(False)
    with torch.no_grad():
        before = [values.tolist() for values in _values(model, head, samples)]
    columns = _columns(samples, before)
    batch = make_batch(columns)
    trained = [(HEAD, head), *((n, p) for n, p in model.named_parameters() if p.requires_grad)]
    decayed, others = ([p for _, p in trained if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    found: dict[str, Any] = {"values": before, "columns": columns, "losses": [], "norms": []}
    for _ in range(STEPS):
        optimizer.zero_grad()
        outputs = value_loss(make_arguments(), _loss_inputs(batch, _values(model, head, samples)))
        outputs.loss.backward()
        if not found["losses"]:
            gradients = as_in_a_file((n, torch.zeros_like(p) if p.grad is None else p.grad) for n, p in trained)
            found["gradients"] = {name: gradient.clone() for name, gradient in gradients.items()}
            found["metrics"] = {name: value.item() for name, value in outputs.metrics.items()}
        found["losses"].append(outputs.loss.item())
        found["norms"].append(torch.nn.utils.clip_grad_norm_([p for _, p in trained], CLIP).item())
        optimizer.step()
    biases = ((n, b) for n, b in model.named_buffers() if n.endswith("e_score_correction_bias"))
    after = as_in_a_file([(HEAD, head), *model.named_parameters(), *biases])
    found["weights"] = {name: tensor.detach().clone() for name, tensor in after.items()}
    return found


def _values(model: Any, head: Tensor, samples: list[Sample]) -> list[Tensor]:
    """Per sample the head's number at the tokens before its trained ones."""
    found = []
    for sample in samples:
        hidden = model.base_model(torch.tensor([sample.tokens]), use_cache=False).last_hidden_state[0]
        first = len(sample.tokens) - sample.response_length
        places = [first + j - 1 for j, trained in enumerate(sample.trained_mask) if trained]
        found.append((hidden @ head[0])[places])
    return found


def _columns(samples: list[Sample], values: list[list[float]]) -> dict[str, list[list[float]]]:
    """Returns, and old values on both sides of the clipping range."""
    old = []
    for sample, own in zip(samples, values, strict=True):
        numbers = iter(own)
        row = [next(numbers) if flag else 0.0 for flag in sample.trained_mask]
        old.append([value + 0.4 * math.sin(sample.index + 2.0 * j) for j, value in enumerate(row)])
    returns = [[math.cos(2.0 * s.index + 0.3 * j) for j in range(s.response_length)] for s in samples]
    return {"returns": returns, "old_values": old}


def _loss_inputs(batch: Any, values: list[Tensor]) -> LossInputs:
    """All trained tokens of the batch as one micro-batch."""
    index = torch.arange(len(values)).repeat_interleave(torch.tensor([len(own) for own in values]))
    columns = {name: torch.tensor(list(_flat(_trained(batch, rows)))) for name, rows in batch.columns.items()}
    together = torch.cat(values)
    return LossInputs(
        log_probs=together,
        values=together,
        loss_mask=torch.ones_like(together),
        sample_index=index,
        reduce=Reduce(torch.tensor(batch.weights)[index]),
        measured=Reduce(torch.tensor(batch.measured)[index]),
        **columns,
    )


def work(cases: Sequence[Case], folder: Path, found: dict[str, Any], note: Any) -> None:
    """Compare one case after the other."""
    in_turn([(str(case), case, partial(compare, case, folder)) for case in cases], found, note)


def compare(case: Case, folder: Path) -> dict[str, Any]:
    """Train a critic, and tell how far this rank's part is off; as `megatron_cases.compare`, and

    frozen: parameters that are not trained.
    new: the values of a critic whose checkpoint has no head.
    resumed: a state that was saved after the steps gives the same further steps and values, and so does an export values.
    """
    import torch.distributed as dist

    truth = torch.load(folder / f"{case.model}, critic.pt", weights_only=True)
    loaded = replace(case, options={**case.options, "ref_load": str(folder / critic(case))})
    loss = Recording(value_loss)
    backend = make_backend(loaded, folder, loss, "critic")
    batch = make_batch(truth["columns"], case.mean, backend.data_parallel_size, case.rows)
    values = backend.values(batch)
    metrics = backend.evaluate(batch)
    found: dict[str, Any] = {
        "values": largest(_trained(batch, values), truth["values"]),
        "loss": metrics.pop("loss"),
        "metrics": metrics,
        "again": _same_in_the_loss(backend, batch, loss, values),
    }
    first, found["gradients"] = _first_step(backend, batch, truth["gradients"])
    found["frozen"] = [name for name, own in backend._model.module.named_parameters() if not own.requires_grad]
    steps = [first, *(backend.train_step(batch) for _ in range(STEPS - 1))]
    found |= {"losses": [s["loss"] for s in steps], "norms": [s["grad_norm"] for s in steps]}
    after = {name: weight.clone() for name, weight in backend.weights()}
    found["weights"] = {name: (w - truth["weights"][name]).abs().max().item() / LR for name, w in after.items()}
    state, export = folder / f"{case}, state", folder / f"{case}, export"
    if backend._world.rank == 0:
        state.mkdir(exist_ok=True)
    if dist.get_world_size() > 1:
        dist.barrier()
    backend.save_state(state)
    backend.export_hf(export)
    values = backend.values(batch)
    further = [backend.train_step(batch), backend.values(batch)]
    forget(backend)
    resumed = make_backend(case, folder, value_loss, "critic")
    found["new"] = sorted({value for row in resumed.values(batch) for value in row})
    resumed.load_state(state)
    found["resumed"] = resumed.values(batch) == values
    found["resumed"] &= [resumed.train_step(batch), resumed.values(batch)] == further
    forget(resumed)
    exported = replace(case, options={**case.options, "ref_load": str(export)})
    again = make_backend(exported, folder, value_loss, "critic")
    found["resumed"] &= again.values(batch) == values
    forget(again)
    return found


def _same_in_the_loss(backend: Any, batch: Any, loss: Recording, values: list[list[float]]) -> bool:
    """The loss, on the ranks that compute it, was given the very numbers that `values` returns."""
    own = batch.of_rank(backend._ranks.rank, backend._ranks.size)
    indices = [i for micro_batch in own for i in micro_batch if sum(batch.samples[i].trained_mask)]
    wanted = [value for i in indices for value in _trained(batch, values)[i]]
    given = [value for i in loss.inputs if i.values is not None for value in i.values.tolist()]
    return not loss.inputs or given == wanted


async def even_tokens(args: Any, sample: Sample) -> float:
    """A reward that varies within a group: the share of even token ids in the response."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))
