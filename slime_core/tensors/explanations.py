"""What could be wrong with a model whose log-probs are not transformers': known mistakes are made in transformers' model, one
after the other, until it gives the same wrong numbers.

Called by `slime_core.training.parity`, where a backend is found to differ. Each mistake is made in all layers, or in one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slime_core.sample import Sample
from slime_core.tensors.truth import Truth, layer_of

Change = tuple[Any, str, Any]
"""An object, the name of one of its attributes, and the value that it gets."""

EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12)
ROPE_BASES = (1e4, 1e5, 5e5, 1e6, 1e7)


@dataclass(frozen=True)
class Explanation:
    """A mistake that gives the numbers which the backend gives. Plain data.

    Attributes:
        text: what it is, as the end of a sentence.
        names: of the tensors that are used wrongly, as in a file.
    """

    text: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Mistake:
    text: str
    changes: Sequence[Change]
    parameters: Sequence[str]
    """Names in memory of the tensors that it is about."""


def explain(
    truth: Truth, samples: Sequence[Sample], given: Sequence[Sequence[float]], limit: float, layer: int | None
) -> Explanation | None:
    """Find the mistake that gives these log-probs, if it is one of those that are known here.

    Args:
        samples, given: what was computed, and what the backend found.
        limit: of the difference that rounding explains.
        layer: the only one that mistakes are made in; None: they are made in all.
    """
    # A mistake in one layer may be most of a mistake in all, so what is left over has to be small beside what is explained.
    limit = min(limit, max(limit / 10, 0.05 * _difference(given, truth.log_probs(samples))))
    for mistake in _mistakes(truth.model, layer):
        if not mistake.changes:
            continue
        with _made(mistake.changes):
            found = truth.log_probs(samples)
        if _difference(given, found) <= limit:
            state = truth.model.state_dict()
            names = truth.in_file({name: state[name] for name in mistake.parameters})
            return Explanation(mistake.text, tuple(sorted(names, key=lambda name: layer_of(name) or 0)))
    return None


def _difference(given: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> float:
    """The largest difference of two log-probs; Inf where one of them is NaN."""
    pairs = (pair for own, other in zip(given, found, strict=True) for pair in zip(own, other, strict=True))
    return max((abs(a - b) if a == a and b == b else math.inf for a, b in pairs), default=0.0)


@contextmanager
def _made(changes: Sequence[Change]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _mistakes(model: Any, layer: int | None) -> Iterator[_Mistake]:
    modules = {n: m for n, m in model.named_modules() if layer is None or layer_of(n + ".") == layer}
    yield _gates(modules)
    yield _buffers(modules)
    yield from _epsilons(modules)
    yield from _query_heads(model.config.get_text_config(), modules)
    yield from _exchanged(modules, "k_proj", "v_proj")
    yield from _numbers(modules)
    yield from _rotation(model, layer)


def _gates(modules: dict[str, nn.Module]) -> _Mistake:
    """Gate and up projection of MLPs, in one tensor or two, in each other's place."""
    changes: list[Change] = []
    names: list[str] = []
    for name, module in modules.items():
        gate, up = getattr(module, "gate_proj", None), getattr(module, "up_proj", None)
        if isinstance(gate, nn.Linear) and isinstance(up, nn.Linear):
            changes += [(module, "gate_proj", up), (module, "up_proj", gate)]
            names += [f"{name}.gate_proj.weight", f"{name}.up_proj.weight"]
        both = getattr(module, "gate_up_proj", None)
        owner, weight, path = (
            (both, both.weight, f"{name}.gate_up_proj.weight")
            if isinstance(both, nn.Linear)
            else ((module, both, f"{name}.gate_up_proj") if isinstance(both, nn.Parameter) else (None, None, ""))
        )
        if owner is not None and weight is not None:
            swapped = torch.cat(weight.detach().chunk(2, -2)[::-1], -2)
            changes.append((owner, path.rpartition(".")[2], nn.Parameter(swapped, requires_grad=False)))
            names.append(path)
    return _Mistake("gate and up projections stand in each other's place", changes, names)


def _buffers(modules: dict[str, nn.Module]) -> _Mistake:
    """Buffers that a checkpoint stores, such as a router's bias, are lost."""
    found = [
        (module, name, f"{path}.{name}")
        for path, module in modules.items()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]
    changes = [(module, name, torch.zeros_like(getattr(module, name))) for module, name, _ in found]
    kinds = ", ".join(sorted({name for _, name, _ in found}))
    return _Mistake(f"{kinds} is 0", changes, [path for _, _, path in found])


def _epsilons(modules: dict[str, nn.Module]) -> Iterator[_Mistake]:
    """Norms, all of them or those of one name, add another epsilon."""
    norms = [
        (path, module, attribute)
        for path, module in modules.items()
        for attribute in ("variance_epsilon", "eps")
        if isinstance(getattr(module, attribute, None), float) and hasattr(module, "weight")
    ]
    kinds = sorted({path.rpartition(".")[2] for path, _, _ in norms})
    for kind in (None, *kinds):
        own = [norm for norm in norms if kind is None or norm[0].rpartition(".")[2] == kind]
        for value in EPSILONS:
            changes = [(m, attribute, value) for _, m, attribute in own if getattr(m, attribute) != value]
            known = sorted({getattr(m, attribute) for _, m, attribute in own})
            text = f"{'norms' if kind is None else kind} add {value:g} in place of {', '.join(f'{v:g}' for v in known)}"
            yield _Mistake(text, changes, [f"{path}.weight" for path, _, _ in own])


def _query_heads(config: Any, modules: dict[str, nn.Module]) -> Iterator[_Mistake]:
    """Heads of queries are counted through the groups of keys, or the other way round."""
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    each = heads // groups
    if 1 in (each, groups):
        return
    queries = [
        (f"{path}.{part}", getattr(module, part))
        for path, module in modules.items()
        for part in ("q_proj",)
        if isinstance(getattr(module, part, None), nn.Linear)
    ]
    for first in (groups, each):
        changes: list[Change] = []
        for _, linear in queries:
            for name in ("weight", "bias"):
                if (tensor := getattr(linear, name)) is not None:
                    changes.append((linear, name, nn.Parameter(_transposed(tensor, first, heads // first), False)))
        yield _Mistake("heads of queries are in another order", changes, [f"{path}.weight" for path, _ in queries])


def _transposed(tensor: Tensor, first: int, second: int) -> Tensor:
    """A tensor whose rows are first × second blocks, with the blocks as second × first."""
    cut = tensor.detach().reshape(first, second, -1, *tensor.shape[1:])
    return cut.transpose(0, 1).reshape(tensor.shape).contiguous()


def _exchanged(modules: dict[str, nn.Module], one: str, other: str) -> Iterator[_Mistake]:
    changes: list[Change] = []
    names: list[str] = []
    for path, module in modules.items():
        a, b = getattr(module, one, None), getattr(module, other, None)
        if isinstance(a, nn.Linear) and isinstance(b, nn.Linear) and a.weight.shape == b.weight.shape:
            changes += [(module, one, b), (module, other, a)]
            names += [f"{path}.{one}.weight", f"{path}.{other}.weight"]
    yield _Mistake(f"{one} and {other} stand in each other's place", changes, names)


def _numbers(modules: dict[str, nn.Module]) -> Iterator[_Mistake]:
    """Settings of a layer that is not what the configuration says."""
    for attribute, text, other in _SETTINGS:
        own = [(path, m) for path, m in modules.items() if getattr(m, attribute, None) is not None]
        changes = [(m, attribute, other(getattr(m, attribute))) for _, m in own]
        names = [f"{path}.{name}" for path, m in own for name, _ in m.named_parameters()]
        yield _Mistake(text, changes, names)


_SETTINGS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("routed_scaling_factor", "what experts give is not multiplied by routed_scaling_factor", lambda value: 1.0),
    ("norm_topk_prob", "norm_topk_prob is the opposite of what the configuration says", lambda value: not value),
    ("act_fn", "the activation is SiLU", lambda value: nn.SiLU()),
    ("act_fn", "the activation is GELU", lambda value: nn.GELU()),
    ("act_fn", "the activation is GELU, approximated by tanh", lambda value: nn.GELU(approximate="tanh")),
)


def _rotation(model: Any, layer: int | None) -> Iterator[_Mistake]:
    """Rotary positions turn with another base, or are not scaled."""
    body = model.base_model
    rotary = getattr(body, "rotary_emb", None)
    given = getattr(model.config.get_text_config(), "rope_parameters", None)
    if layer is not None or rotary is None or not isinstance(given, dict) or "rope_theta" not in given:
        return
    names = [
        n for n, _ in model.named_parameters() if any(part in n for part in ("q_proj", "k_proj", "q_b_proj", "kv_a_"))
    ]
    others = [
        ({**given, "rope_theta": base}, f"rope_theta is {base:g} in place of {given['rope_theta']:g}")
        for base in ROPE_BASES
        if base != given["rope_theta"]
    ]
    if given.get("rope_type", "default") != "default":
        plain = {k: given[k] for k in ("rope_theta", "partial_rotary_factor") if k in given}
        others.append(({**plain, "rope_type": "default"}, f"rotary positions are not scaled ({given['rope_type']})"))
    for parameters, text in others:
        config = copy.deepcopy(model.config)
        config.get_text_config().rope_parameters = parameters
        yield _Mistake(text, [(body, "rotary_emb", type(rotary)(config=config.get_text_config()))], names)
