"""Writes a Hugging Face checkpoint of a training state on disk, without a run: one process, no ranks, no megatron-core. Called by the
backend for `slime export`.

The state is a torch_dist folder, whatever cut wrote it (`slime_megatron.state`), and weights are read and written one after the
other. With LoRA it holds adapters alone; the weights under them are those that the run began with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import CheckpointError
from slime_core.tensors.adapter_files import write_adapter
from slime_core.tensors.quantised_weights import in_high_precision
from slime_core.tensors.stored_weights import KEPT_IN_FLOAT32
from slime_core.training.initial_weights import option_of
from slime_megatron import checkpoint_files
from slime_megatron.adapter_names import add_rules, is_adapter, with_adapter
from slime_megatron.arguments import MegatronRunArguments
from slime_megatron.configuration import read_spec
from slime_megatron.inventory import megatron_names
from slime_megatron.names import Attention, Heads, Names
from slime_megatron.spec import ModelSpec
from slime_megatron.torch_dist import TorchDistFolder
from slime_megatron.weight_files import TorchDistReader, open_weights


def export_state(
    args: MegatronRunArguments,
    stored: Path,
    path: Path,
    quantised: Mapping[str, QuantisedCheckpoint],
    adapter_only: bool = False,
) -> None:
    """Write what the training state in `stored` holds into the folder `path`; see
    `slime_core.contracts.train_backend.ExportsStates`."""
    source, tokenizer = Path(args.hf_checkpoint), load_tokenizer(args.hf_checkpoint)
    config, own = checkpoint_files.read_config(args.hf_checkpoint), quantised.get(args.hf_checkpoint)
    if own is not None:
        config = in_high_precision(config)
    spec = read_spec(config, f"--hf-checkpoint {source}", args, tensor=1)
    if not args.lora_rank:
        reader = TorchDistReader(stored, spec, f"The state {stored}")
        weights = ((name, reader.read(name)) for name in reader.names())
        checkpoint_files.write(path, weights, source, spec.extra_file_prefixes, quantised=own)
    else:
        adapters = dict(_adapters(stored, spec))
        if not adapter_only:
            merged = _merged(args, dict(adapters), spec, quantised)
            checkpoint_files.write(path, merged, source, spec.extra_file_prefixes, quantised=own)
        experts = bool(spec.config.get("num_moe_experts"))
        write_adapter(path if adapter_only else path / "adapter", adapters, args, experts=experts)
    tokenizer.save_pretrained(path)


def _adapters(stored: Path, spec: ModelSpec) -> Iterator[tuple[str, Tensor]]:
    """Every A and B of a state, under peft's names.

    Raises:
        CheckpointError: there are none, or one is of no layer of the model.
    """
    folder, names = TorchDistFolder(stored), Names(spec.rules)
    add_rules(names)
    found = [key for key in folder.tensors if is_adapter(key) and not key.startswith(("optimizer.", "chained_"))]
    if not found:
        raise CheckpointError(f"{stored} holds no adapters, but the run had --lora-rank.")
    for key in found:
        for name, index in _weights_of(key, folder.tensors[key].size):
            layout, whole = names.of(name)[0].layout, folder.read(key, index)
            if isinstance(layout, Attention | Heads):  # without heads of zeros, whatever layout had them
                groups = folder.groups(layout.groups)
                whole = whole.narrow(layout.dim, 0, whole.shape[layout.dim] // groups * layout.groups)
            yield from ((file, part.clone()) for file, part in names.to_file(name, whole))


def _weights_of(key: str, size: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The weights that a tensor of the folder holds, by megatron-core's names, and where in it each is: one, or one of every layer."""
    inside = key.removeprefix("decoder.layers.")
    if inside == key or inside.split(".")[0].isdigit():
        yield key, ()
        return
    yield from ((f"decoder.layers.{layer}.{inside}", (layer,)) for layer in range(size[0]))


def _merged(
    args: MegatronRunArguments,
    adapters: dict[str, Tensor],
    spec: ModelSpec,
    quantised: Mapping[str, QuantisedCheckpoint],
) -> Iterator[tuple[str, Tensor]]:
    """All weights of the plain model, those with an adapter merged, in the dtype that they have in training."""
    folder, dtype = args.ref_load or args.hf_checkpoint, torch.bfloat16 if args.bf16 else torch.float32
    with open_weights(folder, option_of(args), spec, quantised.get(folder)) as reader:
        for name in _names(spec, reader.names()):
            weight = reader.read(name)
            yield (
                name,
                with_adapter(
                    name, weight.to(torch.float32 if name.endswith(KEPT_IN_FLOAT32) else dtype), adapters, args
                ),
            )
    if adapters:
        raise CheckpointError(f"The state has adapters of {next(iter(adapters))}, a layer that {folder} does not have.")


def _names(spec: ModelSpec, stored: list[str]) -> list[str]:
    """Those of the stored names that are weights of the model."""
    names = Names(spec.rules)
    known = {file for own in megatron_names(spec) for file in names.of(own)[1]}
    return [name for name in stored if name in known]
