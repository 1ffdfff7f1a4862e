"""Checks of formats of quantised checkpoints. They need torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slime_core.contracts.checkpoint_format import CheckpointFormat, StoredTensor
from slime_core.errors import DataError
from slime_core.testing.subject import Check, Subject

if TYPE_CHECKING:
    from torch import Tensor

NAME, SHAPE = "model.layers.0.mlp.up_proj.weight", (160, 192)
OWN = (
    {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    {
        "model.embed_tokens.weight": StoredTensor("BF16", (96, 192)),
        NAME: StoredTensor("F8_E4M3", SHAPE),
        f"{NAME}_scale_inv": StoredTensor("F32", (2, 2)),
    },
)
"""An entry `quantization_config` and the tensors of its checkpoint, in the format that most have. A format that does not read it
gives such pairs of its own as examples."""


def stores_what_it_says(subject: Subject[CheckpointFormat]) -> None:
    """stores what its layout says, scales behind the weight, and restores it within a quarter of its size"""
    for made, name, shape in _weights(subject):
        weight = _numbers(shape)
        before = weight.clone()
        stored, layout = made.stored(name, weight), made.layout(name, shape)
        found = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in stored.items()}
        subject.expect(found == layout, f"it stores {found}, and its layout says {layout}; let both be the same.")
        subject.expect(
            next(iter(layout)) == name and all(key.startswith(name) for key in layout),
            f"its layout has {', '.join(layout)}; expected {name} first, and {name}… for scales.",
        )
        restored = made.restored(name, stored)
        error = ((restored - weight).norm() / weight.norm()).item() if restored.shape == weight.shape else float("inf")
        subject.expect(
            str(restored.dtype) == "torch.float32" and error < 0.25,
            f"it restores {restored.dtype} of shape {tuple(restored.shape)}, {error:.3g} of its size off; expected float32 of "
            "the same shape, less than 0.25 off.",
        )
        subject.expect(weight.equal(before), "it changed the weight in place; make a new tensor instead.")


def quantises_no_others(subject: Subject[CheckpointFormat]) -> None:
    """leaves what the checkpoint has in high precision, and what it does not have, as it is"""
    for config, tensors in _checkpoints(subject):
        made = subject.call(config, tensors)
        floats = [name for name, tensor in tensors.items() if tensor.dtype in ("F32", "BF16", "F16")]
        wrong = [name for name in [*floats, "nobody.knows.this.weight"] if made.quantises(name)]
        subject.expect(not wrong, f"it quantises {', '.join(wrong)}; let quantises return False for them.")


def refuses_to_store_what_is_not_finite(subject: Subject[CheckpointFormat]) -> None:
    """refuses to store a weight with NaN or Inf"""
    for made, name, shape in _weights(subject):
        for bad in (float("nan"), float("-inf")):
            weight = _numbers(shape)
            weight[-1, -1] = bad
            try:
                made.stored(name, weight)
            except DataError:
                continue
            subject.expect(
                False, f"it stores a weight with {bad}, which nobody will find again; raise a DataError that names it."
            )


def _checkpoints(subject: Subject[CheckpointFormat]) -> list[Any]:
    subject.need("torch")
    return subject.examples or [OWN]


def _weights(subject: Subject[CheckpointFormat]) -> list[tuple[CheckpointFormat, str, tuple[int, ...]]]:
    """One weight of each checkpoint that its format has in low precision, with the format and its shape."""
    found = []
    for config, tensors in _checkpoints(subject):
        with subject.takes("quantization_config and tensors"):
            made = subject.call(config, tensors)
        name = next((name for name in tensors if made.quantises(name)), None)
        subject.expect(name is not None, f"it quantises none of {', '.join(tensors)}.")
        found.append((made, str(name), tensors[name].shape))
    return found


def _numbers(shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


CHECKPOINT_FORMAT: list[Check] = [stores_what_it_says, quantises_no_others, refuses_to_store_what_is_not_finite]
