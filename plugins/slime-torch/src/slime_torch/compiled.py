"""`--compile-layers`: the passes over memory between the matrix products of a decoder layer are fused by torch.compile. Called by
the backend.

Norms, rotary positions, casts for --bf16 and the activation of the MLP are each a read and a write of all tokens when they run one
by one, and together cost a GPU about half as much time as the products themselves, and a CPU a tenth. What is compiled are a layer's
attention module, up to the attention itself and behind it, its MLP and its norms; the parts of all layers are one program, whatever the
number of tokens. Recomputation (--gradient-checkpointing) and FSDP stay around them.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slime_core.errors import ArgumentError
from slime_torch.sharding import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compile_layers(model: PreTrainedModel, compiler: Any = "inductor") -> int:
    """Have the parts of every decoder layer compiled when they are first computed, and return how many parts there are.

    Args:
        compiler: the backend of torch.compile.

    Raises:
        ArgumentError: the programs are for a CPU, and there is no C++ compiler that could make them; or the model has no decoder layers.
    """
    if compiler == "inductor" and model.device.type == "cpu":
        _require_cpp()
    parts = [
        part for layer in decoder_layers(model) for part in layer.children() if not isinstance(part, nn.ModuleList)
    ]
    if not parts:
        raise ArgumentError(f"--compile-layers finds no decoder layers in {type(model).__name__}. Leave it out.")
    # A row with one trained token more is no reason for another program.
    for part in parts:
        part.compile(backend=compiler, dynamic=True)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 16)
    return len(parts)


def _require_cpp() -> None:
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        raise ArgumentError(
            f"--compile-layers makes C++ programs for a CPU, and the compiler {name} is not on the PATH of this machine. Install it "
            "(g++ of Debian, gcc-c++ of Fedora), name another one in the environment variable CXX, or leave the option out."
        )
