"""How far a train backend is from transformers: weights, log-probs and gradients compared, and what differs put into words.

Pure but for reading what it is given. Called by `slime_core.training.parity`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from slime_core.sample import Sample
from slime_core.tensors.packed_rows import trained_places
from slime_core.tensors.truth import Truth, in_model_order, layer_of
from slime_core.token_arrays import num_tokens

NOISE = 1e-6
"""Gradients below this part of the largest one of the whole model are rounding alone, such as those of a bias that changes
nothing, and count as it."""


@dataclass(frozen=True)
class Limits:
    """Differences that rounding explains.

    Attributes:
        log_probs: of a token's log-prob.
        gradients: of a gradient, relative to the largest value of its tensor.
    """

    log_probs: float
    gradients: float

    @classmethod
    def of(cls, bf16: bool) -> Limits:
        """Those of a run in float32, or of one whose matrix products are bfloat16."""
        return cls(0.5, 0.5) if bf16 else cls(3e-4, 1e-2)  # of SmolLM2-135M 3e-5 and 2.4e-3 were seen to be rounding


@dataclass(frozen=True)
class Compared:
    """What a comparison found. Plain data.

    Attributes:
        what: was compared: "weights", "log-probs", "gradients".
        count: of tensors or tokens.
        worst: the largest difference.
        limit: up to which rounding explains it; 0: not at all.
        where: the name of what differs most.
        problems: one sentence for each that differs too much, in the model's order; empty: all is as it should be.
        names: of the tensors that the problems are about.
        errors: how far each of these is off, where that was measured.
        seconds: that it took.
    """

    what: str
    count: int
    worst: float
    limit: float
    where: str
    problems: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    errors: tuple[float, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        return not self.problems


def compare_checkpoint(truth: Truth, folder: str, started: float) -> Compared:
    """Whether the checkpoint has all tensors of the model."""
    problems = tuple(
        f"{placed(name)}: {folder} has no such tensor, or one of another shape, so the model would begin with random numbers. "
        "Get a complete checkpoint."
        for name in truth.missing
    )
    first = truth.missing[0] if truth.missing else ""
    count = len(truth.weights())
    return Compared(
        "checkpoint", count, 0, 0, first, problems, tuple(truth.missing), seconds=time.perf_counter() - started
    )


@torch.no_grad()
def compare_weights(given: Iterable[tuple[str, Tensor]], truth: Truth) -> Compared:
    """Compare what `TrainBackend.weights` gives with the checkpoint, bit for bit in the type that it is given in."""
    started = time.perf_counter()
    expected, tied = truth.weights(), truth.tied()
    seen: set[str] = set()
    wrong: dict[str, str] = {}
    worst, where = 0.0, ""
    for name, tensor in in_file(given, truth, expected):
        if name not in expected:
            wrong[name] = (
                f"{placed(name)}: the backend gives it, and the checkpoint's model has no tensor of this name."
            )
            continue
        seen.add(tied.get(name, name))
        right = expected[name].to(tensor.dtype)
        if tuple(tensor.shape) != tuple(right.shape):
            wrong[name] = f"{placed(name)}: given the shape {tuple(tensor.shape)}, expected {tuple(right.shape)}."
        elif not torch.equal(own := tensor.cpu(), right):
            difference = (own.float() - right.float()).abs().nan_to_num(torch.inf)
            if difference.max().item() >= worst:
                worst, where = difference.max().item(), name
            wrong[name] = f"{placed(name)}: {_unequal(own, right, difference)}{_instead(name, own, expected)}"
    for name in expected:
        if tied.get(name, name) not in seen and name not in tied:
            wrong[name] = (
                f"{placed(name)}: given nothing, expected {_first(expected[name])}. The backend does not give it, so an engine "
                "and an export never get it, and it may not have been loaded."
            )
    names = tuple(in_model_order(list(wrong)))
    if not where and names:
        where, worst = names[0], float("inf")
    problems = tuple(wrong[name] for name in names)
    seconds = time.perf_counter() - started
    return Compared("weights", len(expected) - len(tied), worst, 0, where, problems, names, seconds=seconds)


def compare_log_probs(
    samples: Sequence[Sample], given: Sequence[Sequence[float]], expected: Sequence[Sequence[float]], limit: float
) -> Compared:
    """Compare the log-probs of trained tokens, shaped like `TrainBackend.log_probs`."""
    worst, where, told, count = 0.0, "", "", 0
    off = 0
    for sample, own, right in zip(samples, given, expected, strict=True):
        for place in trained_places(sample):
            difference = abs(own[place] - right[place])
            count += 1
            off += not difference <= limit
            if not difference <= worst:
                worst, where = difference, sample.name
                token = num_tokens(sample) - sample.response_length + place
                told = f"{sample.name}, token {token + 1}: given {own[place]:.6f}, expected {right[place]:.6f}"
    problems = (f"{told}; of {count} log-probs {off} differ by more than {limit:g}.",) if off else ()
    return Compared("log-probs", count, worst, limit, where, problems)


def compare_gradients(
    given: Iterable[tuple[str, Tensor]], expected: Mapping[str, Tensor], truth: Truth, limit: float
) -> Compared:
    """Compare every gradient that is expected, relative to the largest value of its tensor. Tensors that are not expected
    are passed over. `count` is 0 where none is given at all, as by a backend that trains adapters."""
    given, left = iter(given), dict(expected)
    if (first := next(given, None)) is None:
        return Compared("gradients", 0, 0.0, limit, "")
    given = chain([first], given)
    noise = NOISE * max((tensor.abs().max().item() for tensor in expected.values()), default=0.0)
    found: dict[str, tuple[float, str]] = {}
    for name, tensor in in_file(given, truth, expected):
        right = left.pop(name, None)
        if right is None:
            continue
        own = tensor.detach().cpu().float()
        if own.shape != right.shape:
            found[name] = torch.inf, f"given the shape {tuple(own.shape)}, expected {tuple(right.shape)}."
            continue
        difference = (own - right).abs().nan_to_num(torch.inf)
        relative = difference.max().item() / max(right.abs().max().item(), noise, torch.finfo(torch.float32).tiny)
        found[name] = relative, f"off by {relative:.1e} of its largest value; {_at(own, right, difference)}."
    for name in left:
        found[name] = torch.inf, "the backend gives no gradient of it."
    where = max(found, key=lambda name: found[name][0], default="")
    names = tuple(name for name in in_model_order(list(found)) if not found[name][0] <= limit)
    problems = tuple(f"gradient of {placed(name)}: {found[name][1]}" for name in names)
    worst = found[where][0] if where else 0.0
    errors = tuple(found[name][0] for name in names)
    return Compared("gradients", len(expected), worst, limit, where, problems, names, errors)


def in_file(
    given: Iterable[tuple[str, Tensor]], truth: Truth, expected: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their names in a checkpoint's files; a backend may give them as transformers holds them in memory."""
    for name, tensor in given:
        if name in expected:
            yield name, tensor
        else:
            yield from truth.in_file({name: tensor}).items()


def placed(name: str) -> str:
    """The name of a tensor with its layer."""
    layer = layer_of(name)
    return name if layer is None else f"{name} (layer {layer})"


def _unequal(own: Tensor, right: Tensor, difference: Tensor) -> str:
    count = int((difference != 0).sum())
    return f"{count} of {right.numel()} numbers differ, most {_at(own, right, difference)}."


def _at(own: Tensor, right: Tensor, difference: Tensor) -> str:
    place = int(difference.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), right.shape)] if right.dim() else []
    return f"at {index}: given {own.flatten()[place].item():.6g}, expected {right.flatten()[place].item():.6g}"


def _first(tensor: Tensor) -> str:
    numbers = ", ".join(f"{number:.4g}" for number in tensor.flatten()[:3].tolist())
    return f"{list(tensor.shape)} numbers {numbers} …"


def _instead(name: str, own: Tensor, expected: Mapping[str, Tensor]) -> str:
    """What the numbers of a wrong weight are instead, if that can be said."""
    for other, tensor in expected.items():
        near = other != name and layer_of(other) == layer_of(name) and tensor.shape == own.shape
        if near and torch.equal(tensor.to(own.dtype), own):
            return f" They are those of {other}."
    if torch.equal(own.flatten().sort().values, expected[name].to(own.dtype).flatten().sort().values):
        return " They are its own numbers in another order."
    return ""
