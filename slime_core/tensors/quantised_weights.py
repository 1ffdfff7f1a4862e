"""Weights into the format of a quantised checkpoint and back, one after the other, on every way that they take: from the trainer to
an engine, into an export, and from a checkpoint into a model. What the format is says `slime_core.contracts.checkpoint_format`;
names, dtypes and bytes are in all of these places what a converter writes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slime_core.contracts.checkpoint_format import CheckpointFormat, QuantisedCheckpoint
from slime_core.data.quantised_checkpoints import INDEX, weight_files
from slime_core.errors import CheckpointError, TrainingError
from slime_core.remote_code import from_config, from_pretrained
from slime_core.tensors.experts import taken_apart
from slime_core.tensors.weight_buckets import in_buckets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILE_BYTES = 4 << 30
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LAYER = re.compile(r"(?:.*?\.)?(?:layers|h|blocks)\.\d+\.")
_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def quantised_like(
    weights: Iterable[tuple[str, Tensor]], checkpoint: QuantisedCheckpoint
) -> Iterator[tuple[str, Tensor]]:
    """Quantise the weights of a training model as they come, (Hugging Face name, tensor) pairs, to what a checkpoint of that model
    would hold. Scales come right behind their weight.

    Experts of a layer that are one tensor are taken apart where the checkpoint has them apart. What it does not quantise stays
    as it is. Of tensors on the meta device, which a rank has that only takes part in gathering, shapes and dtypes alone are
    found.

    Layers of which no weight comes, such as those that predict further tokens, are not trained and no concern of an update.

    Raises:
        DataError: a weight has NaN or Inf.
        TrainingError: a weight has another shape than in the checkpoint, or one that is quantised there did not come.
    """
    format, known = checkpoint.format, checkpoint.tensors
    left = {name for name in known if format.quantises(name)}
    layers = set()
    for name, tensor in taken_apart(weights, known):
        layers.add(_layer_of(name))
        if not format.quantises(name):
            yield name, tensor
            continue
        left.discard(name)
        if tuple(tensor.shape) != known[name].shape:
            raise TrainingError(
                f"{name} is trained with shape {tuple(tensor.shape)}, but {checkpoint.folder}, in whose format it goes to the "
                f"engine, has it with {known[name].shape}. They are of different models: give --ref-load (or --load) the weights "
                "of --hf-checkpoint in high precision."
            )
        layout = format.layout(name, tuple(tensor.shape))
        if tensor.is_meta:
            made = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (dtype, shape) in layout.items()}
        else:
            made = format.stored(name, tensor.detach())
        yield from ((key, made[key]) for key in layout)
    trained = [name for name in left if _layer_of(name) in layers] or (left if layers <= {""} else ())
    if trained:
        raise TrainingError(
            f"{checkpoint.folder} has weights in low precision that are not among those that are trained ({len(trained)}): "
            f"{_some(trained)}. An engine would go on with their old values. Give an --hf-checkpoint of the model that is trained, "
            "with the same names."
        )


def restored(
    weights: Iterable[tuple[str, Tensor]], format: CheckpointFormat, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Take what `quantised_like` gives back to high precision: numbers · scales, multiplied in float32.

    Args:
        dtype: of all floating-point numbers; None: what is not quantised stays as it is, and the rest is float32.

    Raises:
        CheckpointError: the scales of a weight do not come right behind it.
    """
    rest = iter(weights)
    for name, tensor in rest:
        whole = tensor
        if format.quantises(name):
            parts = {name: tensor}
            for wanted in [own for own in format.layout(name, tuple(tensor.shape)) if own != name]:
                key, parts[wanted] = next(rest, ("nothing", tensor))
                if key != wanted:
                    raise CheckpointError(f"Behind {name}, which is in low precision, comes {key}; expected {wanted}.")
            whole = format.restored(name, parts)
        yield name, whole.to(dtype) if dtype is not None and whole.is_floating_point() else whole


def read_restored(checkpoint: QuantisedCheckpoint, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights of a quantised checkpoint in high precision, one after the other, by the names that they have in its files.

    Raises:
        CheckpointError: a file is missing, or the scales of a weight.
    """
    format, known, places = checkpoint.format, checkpoint.tensors, _places(checkpoint)
    parts = {name: list(format.layout(name, known[name].shape)) for name in known if format.quantises(name)}
    scales = {own for name, names in parts.items() for own in names if own != name}
    if missing := scales - places.keys():
        raise CheckpointError(
            f"{checkpoint.folder} has weights in low precision without their scales: {_some(missing)}."
        )
    names = (own for name in known if name not in scales for own in parts.get(name, [name]))
    yield from restored(((name, places[name].get_tensor(name)) for name in names), format, dtype)


def load_restored(
    checkpoint: QuantisedCheckpoint, dtype: torch.dtype, **settings: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """transformers' causal language model of a quantised checkpoint, in high precision, with what transformers says about missing
    weights. Weights whose sizes blocks do not divide, which transformers refuses itself, are read too.

    Args:
        settings: of the configuration, such as `attn_implementation`.

    Raises:
        CheckpointError: see `read_restored`.
        OSError, ValueError, KeyError, RuntimeError: transformers does not know the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = in_high_precision(from_pretrained(AutoConfig, checkpoint.folder, **settings))
    with init_empty_weights():
        kind: Any = type(from_config(AutoModelForCausalLM, config))
    weights = dict(read_restored(checkpoint, dtype))
    loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    return loaded


def in_high_precision(config: Any) -> Any:
    """A configuration of transformers, changed to be that of the same model in high precision."""
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return config


def write_quantised(
    folder: Path, weights: Iterable[tuple[str, Tensor]], checkpoint: QuantisedCheckpoint, write: bool = True
) -> None:
    """Write the weights of a training model as a checkpoint like the quantised one, whose configuration and tokenizer it gets.
    What is not quantised is rounded to the dtype that it has there; layers of which no weight comes are copied.

    Args:
        folder: is made; a checkpoint that is there already is replaced.
        write: False: this rank only takes part in gathering.
    """
    if not write:
        for _ in weights:
            pass
        return
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(Path(checkpoint.folder).iterdir()):
        if file.is_file() and not file.name.endswith(_OF_WEIGHTS):
            shutil.copyfile(file, folder / file.name)
    places: dict[str, str] = {}
    total = 0
    tensors = _with_untrained_layers(checkpoint, _rounded_like(checkpoint, quantised_like(weights, checkpoint)))
    for number, bucket in enumerate(in_buckets(tensors, _FILE_BYTES), 1):
        file_name = f"model-{number:05d}.safetensors"
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in bucket}
        save_file(own, folder / file_name, metadata={"format": "pt"})
        places |= dict.fromkeys(own, file_name)
        total += sum(tensor.nbytes for tensor in own.values())
    table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _rounded_like(
    checkpoint: QuantisedCheckpoint, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Round what is not quantised to the dtype that the checkpoint has it in."""
    format, known = checkpoint.format, checkpoint.tensors
    quantised = {own for n, tensor in known.items() if format.quantises(n) for own in format.layout(n, tensor.shape)}
    for name, tensor in weights:
        wanted = _FLOATS.get(known[name].dtype) if name in known and name not in quantised else None
        yield name, tensor if wanted is None else tensor.to(wanted)


def _with_untrained_layers(
    checkpoint: QuantisedCheckpoint, weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Behind the weights, add the layers of the checkpoint that they have nothing of, as they are there."""
    layers = {""}  # what belongs to no layer is either trained or, as a tied head, another name of something that is
    for name, tensor in weights:
        layers.add(_layer_of(name))
        yield name, tensor
    places = _places(checkpoint)
    yield from ((n, places[n].get_tensor(n)) for n in checkpoint.tensors if _layer_of(n) not in layers)


def _places(checkpoint: QuantisedCheckpoint) -> dict[str, Any]:
    """The open file that each tensor is in."""
    from safetensors import safe_open

    files: list[Any] = [safe_open(file, "pt") for file in weight_files(Path(checkpoint.folder))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - it is no mapping


def _layer_of(name: str) -> str:
    """The beginning of a name up to the number of its layer; "" outside of layers."""
    found = _LAYER.match(name)
    return found[0] if found else ""


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
