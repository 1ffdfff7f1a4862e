"""`slime convert torch-dist-to-hf`: a torch_dist checkpoint, of Megatron or of a run of slime's, becomes a Hugging Face one.

Configuration, tokenizer and whatever else is no weight are those of the checkpoint that the model began with, and so are layers
that training does not know, such as those for multi-token prediction. A run's checkpoint adds the end tokens that were trained. Weights are read and written one after the other, bit for
bit; the rows that fill up a vocabulary are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from slime_core.arguments.of_a_command import read_options
from slime_core.contracts.options import REQUIRED, option
from slime_core.data.checkpoint_folders import recognise
from slime_core.data.ends import add_ends, stored_trained_ends
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.plugins import Plugins
from slime_core.unfinished import replace_folder, unfinished
from slime_megatron.arguments import MegatronArguments, MegatronComputeArguments, MegatronLayoutArguments
from slime_megatron.checkpoint_files import Reader, read_config, write
from slime_megatron.configuration import read_spec
from slime_megatron.inventory import is_extra, shown
from slime_megatron.model_flags import MegatronModelArguments
from slime_megatron.weight_files import TorchDistReader, torch_dist_path

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pth", "*.pt", "*.gguf")


class TorchDistToHfOptions(MegatronArguments):
    """The conversion"""

    input_dir: str = option(
        REQUIRED, "The checkpoint: a folder release or iter_N, or the folder that has it, of which the newest is taken."
    )
    output_dir: str = option(REQUIRED, "Folder to write the Hugging Face checkpoint into.")
    origin_hf_dir: str = option(
        REQUIRED, "The Hugging Face checkpoint that the model began with: its configuration, tokenizer and other files."
    )
    force: bool = option(False, "Replace what is in --output-dir.")
    chunk_size: int = option(2**30, "Largest size of a file in bytes, unless one weight alone is larger.", ge=1)


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime convert torch-dist-to-hf …`."""
    options = read_options(
        argv,
        "slime convert torch-dist-to-hf",
        "Convert a torch_dist checkpoint, of Megatron or of a run, into a Hugging Face checkpoint. The options that describe a "
        "model are compared with the configuration in --origin-hf-dir.",
        TorchDistToHfOptions,
        (MegatronModelArguments, MegatronLayoutArguments, MegatronComputeArguments),
    )
    found = recognise(Path(options.input_dir))
    source = torch_dist_path(found.format, found.path) if found else None
    if source is None:
        what = f"leads to {found}" if found else "holds no checkpoint"
        raise ArgumentError(f"--input-dir {options.input_dir} {what}; expected a Megatron checkpoint (torch_dist).")
    origin, output = Path(options.origin_hf_dir), Path(options.output_dir)
    if output.exists() and any(output.iterdir()) and not options.force:
        raise ArgumentError(f"--output-dir {output} is not empty. Choose another folder, or replace it with --force.")
    if output.exists() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise ArgumentError(f"--output-dir {output} holds something else than a model, which --force does not replace.")
    if output.resolve() in (origin.resolve(), *origin.resolve().parents, source.resolve(), *source.resolve().parents):
        raise ArgumentError(f"--output-dir {output} is, or contains, what is converted. Choose another folder.")
    where = f"--origin-hf-dir {origin}"
    spec = read_spec(read_config(str(origin)), where, options, tensor=1)
    reader = TorchDistReader(source, spec, f"--input-dir {options.input_dir}")
    _compare(reader, origin, spec.extra_file_prefixes)
    hidden = unfinished(output)
    try:
        write(hidden, _all(reader), origin, spec.extra_file_prefixes, shard_bytes=options.chunk_size)
        _copy_others(origin, hidden)
        add_ends(hidden, stored_trained_ends(source))
        replace_folder(hidden, output)
    except OSError as error:
        raise CheckpointError(f"The checkpoint could not be written to {output}: {error}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    print(f"{output}: {len(reader.names())} weights of {source}")
    if copied := [name for name in _stored(origin) if is_extra(name, spec)]:
        print(f"{len(copied)} weights for multi-token prediction are those of {origin}: {shown(copied)}")
    return 0


def _all(reader: TorchDistReader) -> Iterator[tuple[str, Tensor]]:
    for name in reader.names():
        yield name, reader.read(name)


def _stored(origin: Path) -> list[str]:
    if not any(origin.glob("*.safetensors")):
        return []
    with Reader(origin) as reader:
        return reader.names()


def _compare(reader: TorchDistReader, origin: Path, extra: tuple[str, ...]) -> None:
    """Compare the sizes of all weights with those of the checkpoint that the model began with, if it is there with its weights.

    Raises:
        CheckpointError: one has another size; or layers have to be copied, and the weights are not there.
    """
    stored = set(_stored(origin))
    if extra and not any(name.startswith(extra) for name in stored):
        raise CheckpointError(
            f"The configuration in --origin-hf-dir {origin} has layers for multi-token prediction, which no Megatron checkpoint "
            "is converted with, but the weights there have none to copy. Give the whole checkpoint."
        )
    if not stored:
        return
    with Reader(origin) as files:
        for name in reader.names():
            if name in stored and (own := reader.size(name)) != (theirs := tuple(files.like(name).shape)):
                raise CheckpointError(f"{name} is {own} in --input-dir and {theirs} in --origin-hf-dir {origin}.")


def _copy_others(origin: Path, output: Path) -> None:
    """Copy every file that is not a weight."""
    for file in sorted(origin.iterdir()):
        if (
            file.is_file()
            and not any(file.match(pattern) for pattern in _WEIGHTS)
            and not (output / file.name).exists()
        ):
            shutil.copyfile(file, output / file.name)
