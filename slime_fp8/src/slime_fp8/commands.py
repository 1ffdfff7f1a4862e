"""`slime convert hf-to-fp8` and `slime convert fp8-to-hf`: the options of the two conversions, under the names of slime's own tool,
and what they print. The work is in `slime_fp8.convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from slime_core.arguments.of_a_command import read_options
from slime_core.contracts.options import REQUIRED, ArgumentGroup, option
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_fp8.checkpoint_folder import read_folder
from slime_fp8.convert import Converted, from_fp8, to_fp8
from slime_fp8.modules import QuantisedModules
from slime_fp8.weight_formats import FORMATS, WeightFormat, block_format


class ToFp8Options(ArgumentGroup):
    """The conversion"""

    model_dir: str = option(REQUIRED, "The Hugging Face checkpoint: a folder with config.json and *.safetensors.")
    save_dir: str = option(REQUIRED, "Folder to write into; it is empty or does not exist yet.")
    strategy: Literal["block", "channel", "tensor", "mxfp8"] = option(
        "block", "What shares a scale: a block of a weight, a row of it, all of it, or 32 numbers of a row (MXFP8)."
    )
    block_size: list[int] | None = option(
        None, "Rows and columns of a block, with --strategy block. Default: 128 128.", min_length=2, max_length=2
    )
    scale_fmt: Literal["ue8m0"] | None = option(
        None, "Scales of blocks are powers of two, as engines on Blackwell need them. Default: any float32."
    )
    first_last_layers_bf16: bool = option(
        False, "Leave the first and last layers as they are, as the option of this name does in training."
    )
    num_layers_at_start_in_bf16: int | None = option(
        None, "How many first layers --first-last-layers-bf16 leaves as they are. Default: 1.", ge=0
    )
    num_layers_at_end_in_bf16: int | None = option(
        None, "How many last layers --first-last-layers-bf16 leaves as they are. Default: 1.", ge=0
    )
    fp8_modules_to_not_convert: list[str] = option(
        [], "Further modules to leave as they are: regular expressions that are found in their names."
    )
    max_workers: int = option(1, "Files that are converted at the same time.", ge=1)


class ToHfOptions(ArgumentGroup):
    """The conversion"""

    model_dir: str = option(REQUIRED, "The FP8 checkpoint: a folder with config.json and *.safetensors.")
    save_dir: str = option(REQUIRED, "Folder to write into; it is empty or does not exist yet.")
    dtype: Literal["bfloat16", "float16", "float32"] | None = option(
        None, "Of the restored weights. Default: what config.json says of the model, or else bfloat16."
    )
    max_workers: int = option(1, "Files that are converted at the same time.", ge=1)


def hf_to_fp8(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert hf-to-fp8 …`."""
    options = read_options(
        argv,
        "slime convert hf-to-fp8",
        "Convert a Hugging Face checkpoint into one in FP8. Routers, heads, embeddings and norms keep their bytes.",
        ToFp8Options,
    )
    source, target = Path(options.model_dir), Path(options.save_dir)
    further = tuple(options.fp8_modules_to_not_convert)
    modules = QuantisedModules(read_folder(source).num_layers, *_ends(options), further)
    format = _format(options)
    done = to_fp8(source, target, format, modules, options.max_workers)
    print(f"{target}: {len(done.changed)} weights in FP8 ({options.strategy}), {_sizes(done)}")
    if done.left:
        print(f"{len(done.left)} matrices keep their numbers: {_some(done.left)}")
    if done.ragged and options.strategy in ("block", "mxfp8"):
        print(
            f"{len(done.ragged)} weights have sizes that blocks do not divide, which transformers and some engines refuse: "
            f"{_some(done.ragged)}"
        )
    return 0


def fp8_to_hf(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert fp8-to-hf …`."""
    options = read_options(
        argv,
        "slime convert fp8-to-hf",
        "Convert an FP8 checkpoint into an ordinary one, for what reads no FP8. What was lost to 8 bits stays lost.",
        ToHfOptions,
    )
    dtype: torch.dtype | None = getattr(torch, options.dtype) if options.dtype else None
    target = Path(options.save_dir)
    done = from_fp8(Path(options.model_dir), target, dtype, options.max_workers)
    print(f"{target}: {len(done.changed)} weights restored, {_sizes(done)}")
    return 0


def _ends(options: ToFp8Options) -> tuple[int, int]:
    """How many layers stay as they are at the start and at the end.

    Raises:
        ArgumentError: numbers are given without the option that they belong to.
    """
    given = options.num_layers_at_start_in_bf16, options.num_layers_at_end_in_bf16
    if options.first_last_layers_bf16:
        return 1 if given[0] is None else given[0], 1 if given[1] is None else given[1]
    if given != (None, None):
        raise ArgumentError(
            "--num-layers-at-start-in-bf16 and --num-layers-at-end-in-bf16 have an effect only with --first-last-layers-bf16. Give it "
            "too, or leave them out."
        )
    return 0, 0


def _format(options: ToFp8Options) -> WeightFormat:
    """The format that the options name.

    Raises:
        ArgumentError: one of them says something about blocks, and there are none.
    """
    if options.strategy == "block":
        rows, columns = options.block_size or (128, 128)
        if min(rows, columns) < 1:
            raise ArgumentError(f"--block-size {rows} {columns}: expected two numbers of at least 1, such as 128 128.")
        return block_format((rows, columns), options.scale_fmt == "ue8m0")
    for flag, value in (("--block-size", options.block_size), ("--scale-fmt", options.scale_fmt)):
        if value is not None:
            raise ArgumentError(f"{flag} goes with --strategy block, not {options.strategy}. Leave it out.")
    return FORMATS[options.strategy]


def _sizes(done: Converted) -> str:
    return f"{done.bytes_before / 1e9:.3g} GB before, {done.bytes_after / 1e9:.3g} GB now"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
