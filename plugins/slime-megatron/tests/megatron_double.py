"""Computing in float64 what asks for float32, on both sides of a comparison: then a difference is a fault and not a rounding.

transformers and megatron-core compute norms, rotary angles, softmaxes and routers in float32 whatever the model's type is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from megatron_models import make_config
from torch.overrides import TorchFunctionMode


class _Double(TorchFunctionMode):
    """Every tensor function that is told float32 gets float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        given = {name: _double(value) for name, value in (kwargs or {}).items()}
        return func(*map(_double, args), **given)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double() -> Iterator[None]:
    """Everything inside of this context is float64, in this thread. megatron-core's device must be prepared before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)


def double_model(name: str, like: Any) -> Any:
    """The same model with the same weights, and rotary frequencies that were never rounded. Inside of `in_double`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(make_config(name)).double().eval()
    model.load_state_dict(like.state_dict())
    return model
