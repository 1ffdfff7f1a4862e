"""Writes Hugging Face checkpoints, which transformers, SGLang and vLLM load. Called by the backend.

The weights are as they are trained (float32). With LoRA: the merged model, and the adapter alone in the folder
`adapter` in it. All ranks help to put tensors together, and the first one writes. What a training state is exported from is
in `stored_export`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from slime_core.data.vision import is_vision_model
from slime_core.tensors.low_precision import is_precision_state, remembering
from slime_core.tensors.ranks import Ranks
from slime_torch import lora
from slime_torch.arguments import TorchRunArguments
from slime_torch.sharding import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARD_SIZE = "4GB"
"""Of weights in one file, which is put together in memory before it is written."""


def export_hf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    path: Path,
    ranks: Ranks,
    args: TorchRunArguments,
) -> None:
    """Write `model`, and `tokenizer` if there is one, into the folder `path`. All ranks call this at the same time."""
    first, adapters = ranks.rank == 0, bool(args.lora_rank)
    as_it_is = ranks.size == 1 and not adapters and not remembering(model)
    tensors = None if as_it_is else _whole_state(model, keep=first)
    if first:
        model.save_pretrained(path, state_dict=tensors, max_shard_size=SHARD_SIZE)
    if adapters:
        lora.save_adapter(model, args, path / "adapter", whole, write=first)
    if first and tokenizer is not None:
        tokenizer.save_pretrained(path)
    if first and is_vision_model(model.config):
        copy_processor(args.hf_checkpoint, path)


def copy_processor(folder: str, path: Path) -> None:
    """Copy what a vision-language checkpoint says of its processor, which training does not change."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (file := Path(folder) / name).is_file() and file.resolve() != (path / name).resolve():
            shutil.copy(file, path / name)


def stored_buffers(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint of the model stores besides its weights, such as a router's bias. Every rank has it whole.
    What products in low precision remember is no part of it."""
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    every = ((name, buffer) for name, buffer in model.state_dict().items() if name not in weights)
    return ((name, buffer) for name, buffer in every if not is_precision_state(name))


def _whole_state(model: PreTrainedModel, keep: bool) -> dict[str, Tensor]:
    """The weights and stored buffers, the weights in host memory. All ranks call this, and help to put them together.

    Args:
        keep: False: this rank gets no weights.
    """
    found = dict(stored_buffers(model))
    for name, tensor in lora.merged_parameters(model, whole):
        if keep:
            found[name] = tensor.cpu()
    return found
