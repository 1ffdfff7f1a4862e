"""`slime convert hf-to-torch-dist`: a Hugging Face checkpoint becomes one that Megatron reads.

    SAVE/latest_checkpointed_iteration.txt   release
    SAVE/release/                            weights (`__0_0.distcp`, `.metadata`, `metadata.json`), the model's options (`common.pt`)

The weights have the names that Megatron gives them with Transformer Engine, since that is how it is run elsewhere. They are read,
put together and written one after the other, bit for bit.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import warnings
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from slime_core.arguments.of_a_command import read_options
from slime_core.contracts.options import REQUIRED, option
from slime_core.data.checkpoint_folders import LATEST
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.plugins import Plugins
from slime_core.tensors.embedding import require_tied
from slime_megatron.arguments import MegatronArguments, MegatronComputeArguments, MegatronLayoutArguments
from slime_megatron.checkpoint_files import Reader, read_config
from slime_megatron.configuration import read_spec
from slime_megatron.inventory import VALUE_HEAD_FILE, is_extra, is_sparse, megatron_names, require_known, shown
from slime_megatron.model_flags import MegatronModelArguments
from slime_megatron.names import Names, Rule, Vocabulary
from slime_megatron.spec import ModelSpec
from slime_megatron.torch_dist_names import Place, megatron_place

FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class HfToTorchDistOptions(MegatronArguments):
    """The conversion"""

    hf_checkpoint: str = option(REQUIRED, "The Hugging Face checkpoint: a folder with config.json and *.safetensors.")
    save: str = option(REQUIRED, "Folder to write into: the checkpoint is in its folder `release`.")


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert hf-to-torch-dist …`."""
    options = read_options(
        argv,
        "slime convert hf-to-torch-dist",
        "Convert a Hugging Face checkpoint into one of Megatron (torch_dist). The options that describe a model are compared "
        "with its configuration; those of layout and computation change nothing, since any layout reads the result.",
        HfToTorchDistOptions,
        (MegatronModelArguments, MegatronLayoutArguments, MegatronComputeArguments),
    )
    save_folder = Path(options.save)
    final = save_folder / "release"
    if final.exists():
        raise ArgumentError(f"{final} exists. Choose another folder for --save, or remove that one.")
    latest = save_folder / LATEST
    if latest.is_file() and (named := latest.read_text(encoding="utf-8").strip()) != "release":
        raise ArgumentError(
            f"{latest} names {named!r}: --save is the folder of other checkpoints, which a run would then no longer go on from. "
            "Choose another folder for --save."
        )
    where = f"--hf-checkpoint {options.hf_checkpoint}"
    rows = options.make_vocab_size_divisible_by * options.tensor_model_parallel_size
    padded = options.model_copy(update={"make_vocab_size_divisible_by": rows})  # heads are never filled up in a file
    config = read_config(options.hf_checkpoint)
    spec = read_spec(config, where, padded, tensor=1)
    require_tied(options.hf_checkpoint, bool(getattr(config, "tie_word_embeddings", False)), "--hf-checkpoint")
    with Reader(Path(options.hf_checkpoint)) as reader:
        require_known(reader.names(), spec, where)
        pieces = list(_pieces(spec, reader, _is_numbered(options, spec), where))
        unfinished = save_folder / ".saving_release"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished, pieces, {"args": _options_of(options, spec), "checkpoint_version": 3.0, "iteration": 1})
            os.rename(unfinished, final)
            latest.write_text("release", encoding="utf-8")
        except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(f"The checkpoint could not be written to {final}: {error}.") from error
        left_out = [name for name in reader.names() if is_extra(name, spec)]
    print(f"{final}: {len(pieces)} weights")
    if left_out:
        print(f"{len(left_out)} weights for multi-token prediction are not in it: {shown(left_out)}")
    return 0


@dataclass(frozen=True)
class Piece:
    """A weight on its way into a folder.

    Attributes:
        place: where it goes.
        sizes: of the dimensions that `place.index` counts: layers, experts.
        like: a tensor on the meta device with its size and dtype.
    """

    place: Place
    sizes: tuple[int, ...]
    like: Tensor
    rule: Rule
    files: tuple[str, ...]
    reader: Reader = field(repr=False)

    def read(self) -> Tensor:
        """The weight, whole, with its layer and expert as first dimensions."""
        whole = self.rule.layout.join([self.reader.read(name) for name in self.files])
        return whole[(None,) * len(self.sizes)]


def write(folder: Path, pieces: list[Piece], common: dict[str, Any]) -> None:
    """Write a torch_dist checkpoint into an existing folder, piece by piece.

    Args:
        common: what is not a tensor.
    """
    writer = FileSystemWriter(folder, thread_count=1, per_thread_copy_ahead=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that it saves in one process, which is wanted
        save({}, storage_writer=writer, planner=_OneByOne(pieces), no_dist=True)
    torch.save(common, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")


class _OneByOne(SavePlanner):
    """Plans to write pieces, each of which is read when its turn has come."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._items: list[WriteItem] = []
        self._pieces: dict[tuple[str, tuple[int, ...]], Piece] = {}
        for piece in pieces:
            (key,) = piece.place.keys
            start = (*piece.place.index, *(0,) * piece.like.dim())
            chunk = ChunkStorageMetadata(torch.Size(start), torch.Size((*(1,) * len(piece.sizes), *piece.like.shape)))
            about = TensorWriteData(
                chunk, TensorProperties(dtype=piece.like.dtype), torch.Size((*piece.sizes, *piece.like.shape))
            )
            index = MetadataIndex(key, chunk.offsets)
            self._items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=about))
            self._pieces[key, start] = piece
        states = dict.fromkeys(name for piece in pieces for name in _states_beside(piece))
        self._items += [WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO) for name in states]

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None: ...

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self._items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type is WriteItemType.BYTE_IO:
            nothing = io.BytesIO()
            torch.save([None], nothing)
            return nothing
        assert write_item.index.offset is not None  # __init__ gives each one
        return self._pieces[write_item.index.fqn, tuple(write_item.index.offset)].read()


def _states_beside(piece: Piece) -> Iterator[str]:
    """The names of the state that Transformer Engine's linear layers, and its attention, keep beside their weights. It is
    nothing without FP8, but Megatron looks for it."""
    module, _, kind = piece.place.keys[0].rpartition(".")
    if kind != "weight" or not module.rpartition(".")[2].startswith("linear_"):
        return
    index, sizes = piece.place.index or (0,), piece.sizes or (1,)
    shard = f"_extra_state/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, sizes))}"
    yield f"{module}.{shard}"
    if module.endswith(".linear_proj"):
        yield f"{module.removesuffix('.linear_proj')}.core_attention.{shard}"


def _pieces(spec: ModelSpec, reader: Reader, numbered: bool, where: str) -> Iterator[Piece]:
    """Every weight of the model.

    Raises:
        CheckpointError: the checkpoint lacks one, or those of different layers do not go into one tensor.
    """
    names, stored = Names(spec.rules), set(reader.names())
    every = {name: names.of(name) for name in megatron_names(spec)}
    if missing := [file for _, files in every.values() for file in files if file not in stored]:
        raise CheckpointError(f"{where} lacks {len(missing)} of its weights: {shown(missing)}.")
    counts = {"{layer}": spec.config["num_layers"], "{expert}": spec.config.get("num_moe_experts", 0)}
    first: dict[str, Tensor] = {}
    for name, (rule, files) in every.items():
        layer = int(name.split(".")[2]) if "{layer}" in rule.megatron else 0
        place = megatron_place(name, numbered=numbered, sparse=is_sparse(spec, layer), latent=spec.latent)
        counted = [count for mark, count in counts.items() if mark in rule.megatron]
        sizes = tuple(counted[len(counted) - len(place.index) :])
        like = rule.layout.join([reader.like(file) for file in files])
        known = first.setdefault(place.keys[0], like)
        if (known.shape, known.dtype) != (like.shape, like.dtype):
            raise CheckpointError(
                f"{where}: {', '.join(files)} give {name} {tuple(like.shape)} in {like.dtype}, but in other layers or experts it "
                f"is {tuple(known.shape)} in {known.dtype}; Megatron keeps them as one tensor."
            )
        yield Piece(place, sizes, like, rule, files, reader)
    if VALUE_HEAD_FILE in stored:  # of a critic
        head = Rule(VALUE_HEAD_FILE, (VALUE_HEAD_FILE,))
        yield Piece(Place((VALUE_HEAD_FILE,)), (), reader.like(VALUE_HEAD_FILE), head, head.file, reader)


def _is_numbered(options: HfToTorchDistOptions, spec: ModelSpec) -> bool:
    """Whether Megatron numbers the layers: where they are not alike, or `--moe-layer-freq` is a list."""
    kinds = {is_sparse(spec, layer) for layer in range(spec.config["num_layers"])}
    return len(kinds) > 1 or "[" in (options.moe_layer_freq or "")


def _options_of(options: HfToTorchDistOptions, spec: ModelSpec) -> Namespace:
    """The model under the names of Megatron's options, as it keeps them in a checkpoint: what the command line says, and else
    what the checkpoint says."""
    plain = {**spec.model, **spec.config}
    found: dict[str, Any] = {
        name: value for name, value in plain.items() if isinstance(value, (bool, int, float, str, list))
    }
    padded = next(rule.layout.padded for rule in spec.rules if isinstance(rule.layout, Vocabulary))
    found |= {
        "norm_epsilon": spec.config["layernorm_epsilon"],
        "num_experts": spec.config.get("num_moe_experts"),
        "group_query_attention": spec.config.get("num_query_groups") not in (None, spec.config["num_attention_heads"]),
        "untie_embeddings_and_output_weights": not spec.model["share_embeddings_and_output_weights"],
        "add_position_embedding": options.position_embedding is not False,
        "max_position_embeddings": options.max_position_embeddings or spec.model["max_sequence_length"],
        "make_vocab_size_divisible_by": options.make_vocab_size_divisible_by,
        "padded_vocab_size": padded,
        "swiglu": bool(spec.config.get("gated_linear_unit")),
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "consumed_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    return Namespace(**found)
