"""Writes a Hugging Face checkpoint of a training state on disk, without a run: one process, no optimizer, no device. Called by the
backend for `slime export`.

Weights go from file to file. Those of the whole model lie in files without a name while they are put together, which the
operating system keeps in memory as far as there is room; with LoRA the base model's are loaded, in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import is_vision_model
from slime_core.training.initial_weights import option_of
from slime_torch import lora, state
from slime_torch.arguments import TorchRunArguments
from slime_torch.export import SHARD_SIZE, copy_processor, stored_buffers
from slime_torch.model import check_checkpoint, empty_model, load_model
from slime_torch.offload import HOST


@torch.no_grad()
def export_state(
    args: TorchRunArguments,
    stored: Path,
    path: Path,
    quantised: Mapping[str, QuantisedCheckpoint],
    adapter_only: bool = False,
) -> None:
    """Write what the training state in `stored` holds into the folder `path`; see
    `slime_core.contracts.train_backend.ExportsStates`."""
    from transformers import GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    option, folder = option_of(args), args.ref_load or args.hf_checkpoint
    check_checkpoint(args.hf_checkpoint)
    tokenizer = load_tokenizer(args.hf_checkpoint)
    if not args.lora_rank:
        model = empty_model(folder, option)
        if (
            Path(folder) / GENERATION_CONFIG_NAME
        ).is_file():  # a model that is made of its configuration does not read it
            model.generation_config = GenerationConfig.from_pretrained(folder)
        _make_room(model, path, [name for name, _ in model.named_parameters()])
        state.load_weights(stored, model, whole=state.is_whole(args))
        model.save_pretrained(path, max_shard_size=SHARD_SIZE)
    elif adapter_only:
        model = empty_model(folder, option)
        lora.add_adapters(model, args)
        _make_room(model, path, [name for name, parameter in model.named_parameters() if parameter.requires_grad])
        state.load_weights(stored, model)
        lora.save_adapter(model, args, path)
    else:
        model = load_model(folder, HOST, option, quantised.get(folder))
        lora.add_adapters(model, args)
        state.load_weights(stored, model)
        lora.save_adapter(model, args, path / "adapter")
        tensors = {**dict(stored_buffers(model)), **lora.merge(model)}
        model.save_pretrained(path, state_dict=tensors, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(path)
    if is_vision_model(model.config):
        copy_processor(args.hf_checkpoint, path)


def _make_room(model: nn.Module, beside: Path, names: Collection[str]) -> None:
    """Give parameters of a model on the meta device room in files beside what is written; tied ones stay one."""
    wanted, room = set(names), dict[int, nn.Parameter]()
    for name, parameter in model.named_parameters():
        if name in wanted:
            room[id(parameter)] = nn.Parameter(_mapped(parameter, beside), requires_grad=parameter.requires_grad)
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None and id(own) in room:
                module._parameters[name] = room[id(own)]


def _mapped(like: Tensor, beside: Path) -> Tensor:
    """A tensor like this one whose numbers are those of a file that has no name and is gone with the tensor."""
    with tempfile.NamedTemporaryFile(dir=beside, prefix=".tmp") as file:
        return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype).view(like.shape)
