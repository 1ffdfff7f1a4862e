"""Weights by their Hugging Face names from whatever they are stored in: a Hugging Face checkpoint, or a torch_dist folder of
Megatron's or of a run of slime's. The train backend, and the conversions, read through `open_weights`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch
from torch import Tensor

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.checkpoint_folders import advice, recognise
from slime_core.errors import ArgumentError, CheckpointError
from slime_megatron import checkpoint_files
from slime_megatron.inventory import VALUE_HEAD_FILE, megatron_names, require_known, shown
from slime_megatron.names import Attention, Heads, Names, Rule, Vocabulary
from slime_megatron.spec import ModelSpec
from slime_megatron.torch_dist import TorchDistFolder
from slime_megatron.torch_dist_names import Place, is_of_the_model, places


class WeightReader(Protocol):
    """Weights of one model, read when they are asked for; one is held at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def read(self, name: str) -> Tensor:
        """A weight by its Hugging Face name. Raises `KeyError` if there is none of this name."""

    def names(self) -> list[str]:
        """All names."""


def open_weights(
    folder: str, option: str, spec: ModelSpec, quantised: QuantisedCheckpoint | None = None
) -> WeightReader:
    """The weights that a folder leads to, in high precision.

    Args:
        option: that names the folder, for messages.
        spec: of the model, which all weights must be of.
        quantised: how a Hugging Face checkpoint stores its weights; None: it is not quantised.

    Raises:
        ArgumentError: there are none, or in a format that cannot be read.
        CheckpointError: they are of another model: some have no place in this one, or are missing.
    """
    found = recognise(Path(folder))
    path = None if found is None else torch_dist_path(found.format, found.path)
    where = f"{option} {folder}"
    if path is not None:
        return TorchDistReader(path, spec, where)
    if found is not None and found.format != "huggingface":
        raise ArgumentError(f"{where} leads to {found}, which cannot be read here. {advice(found)}")
    reader = checkpoint_files.Reader(Path(folder), quantised)
    require_known(reader.names(), spec, where)
    return reader


def torch_dist_path(format: str, path: Path) -> Path | None:
    """The torch_dist folder of weights that `recognise` found; None if they are in another format, as those of a run with another
    train backend are."""
    if format == "slime":
        path = path / "trainer"
        return path if (path / "common.pt").is_file() else None
    return path if format == "torch_dist" else None


class TorchDistReader:
    """The weights of a torch_dist folder by their Hugging Face names.

    Args:
        where: the folder, for messages.

    Raises:
        CheckpointError: a weight of the model is not in the folder, or one in the folder is not of the model.
    """

    def __init__(self, folder: Path, spec: ModelSpec, where: str) -> None:
        self._folder, self._where = TorchDistFolder(folder), where
        self._names = Names([_without_zeros(rule) for rule in spec.rules])
        self._places = {name: self._place(name) for name in megatron_names(spec)}
        self._head = [VALUE_HEAD_FILE] if VALUE_HEAD_FILE in self._folder.tensors else []
        self._of = {file: name for name in self._places for file in self._names.of(name)[1]}
        self._used: dict[str, set[tuple[int, ...]]] = {}
        for place in self._places.values():
            for key in place.keys if place else ():
                self._used.setdefault(key, set()).add(place.index if place else ())
        if missing := [name for name, place in self._places.items() if place is None]:
            raise CheckpointError(
                f"{where} leads to {folder}, which lacks {len(missing)} of the weights of the model that --hf-checkpoint "
                f"describes: {shown(missing)}.{_of_adapters(self._folder)}"
            )
        unknown = sorted(key for key in self._folder.tensors if not self._is_used(key) and not _is_left_out(key, spec))
        if unknown:
            raise CheckpointError(
                f"{where} leads to {folder}, which has {len(unknown)} tensors that the model of --hf-checkpoint does not have, "
                f"and that would be lost: {shown(unknown)}."
            )
        self._last: tuple[str, Tensor] | None = None

    def __enter__(self) -> TorchDistReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last = None

    def names(self) -> list[str]:
        """All names, in the order of the layers."""
        return [*self._of, *self._head]

    def size(self, name: str) -> tuple[int, ...]:
        """The size of a weight by its Hugging Face name, which is not read."""
        if name in self._head:
            return tuple(self._folder.like(name).shape)
        rule, files = self._names.of(self._of[name])
        parts = rule.layout.part(self._whole(self._of[name], meta=True))
        return tuple(parts[files.index(name)].shape)

    def read(self, name: str) -> Tensor:
        """A weight by its Hugging Face name, without the rows that fill up a vocabulary.

        Raises:
            KeyError: there is none of this name.
        """
        if name in self._head:
            return self._folder.read(name)
        own = self._of[name]
        rule, files = self._names.of(own)
        if self._last is None or self._last[0] != own:  # the parts of one are asked for one after the other
            self._last = None
            self._last = own, self._whole(own)
        parts = rule.layout.part(self._last[1])
        return parts[files.index(name)].clone() if len(parts) > 1 else parts[0]

    def _whole(self, name: str, meta: bool = False) -> Tensor:
        """A weight of megatron-core.

        Args:
            meta: on the meta device, only with its size and dtype.
        """
        place = self._places[name]
        assert place is not None  # __init__ has looked
        read = self._folder.like if meta else self._folder.read
        found = [read(key, place.index) for key in place.keys]
        whole = torch.cat(found) if len(found) > 1 else found[0]
        layout = self._names.of(name)[0].layout
        if isinstance(layout, Vocabulary) and len(whole) < layout.size:
            raise CheckpointError(
                f"{self._where}: {name} has {len(whole)} rows, but the configuration says vocab_size {layout.size}."
            )
        if isinstance(layout, Attention | Heads):
            groups = self._folder.groups(layout.groups)  # with those of zeros
            whole = whole.narrow(layout.dim, 0, whole.shape[layout.dim] // groups * layout.groups)
        return whole

    def _place(self, name: str) -> Place | None:
        """Where the folder has a weight."""
        return next((place for place in places(name) if all(self._has(key, place) for key in place.keys)), None)

    def _has(self, key: str, place: Place) -> bool:
        about = self._folder.tensors.get(key)
        return about is not None and all(n < size for n, size in zip(place.index, about.size, strict=False))

    def _is_used(self, key: str) -> bool:
        """Whether every layer and expert of a tensor has a place in the model."""
        indices = self._used.get(key)
        size = self._folder.tensors[key].size
        return indices is not None and len(indices) == math.prod(size[: len(next(iter(indices)))])


def _without_zeros(rule: Rule) -> Rule:
    """The rule of a weight of the model itself, whatever fills it up for a layout."""
    layout = rule.layout
    return replace(rule, layout=replace(layout, filled=0)) if isinstance(layout, Attention | Heads) else rule


def _is_left_out(key: str, spec: ModelSpec) -> bool:
    """Whether nothing is lost with a tensor: it is no weight, or of layers that are copied from a Hugging Face checkpoint, or a
    critic's head, which has no rule and is read by its name."""
    copied = key.startswith("mtp.") and bool(spec.extra_file_prefixes)
    return copied or key == VALUE_HEAD_FILE or not is_of_the_model(key)


def _of_adapters(folder: TorchDistFolder) -> str:
    if not any("_lora." in key for key in folder.tensors):
        return ""
    return " It is the state of a run with LoRA, which holds adapters alone; slime export writes the merged model."
