"""`Fp8Format`: how an existing checkpoint stores its weights in FP8, by its config.json and its files. The files say which weights are
in FP8; config.json, by which engines go, must say the same. Whether they do is found before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from slime_core.contracts.checkpoint_format import StoredTensor
from slime_core.errors import DataError
from slime_fp8.modules import NEVER

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from slime_fp8.weight_formats import WeightFormat

_NEVER = re.compile("|".join(f"(?:{pattern})" for pattern in NEVER))


class Fp8Format:
    """The format of one checkpoint; see `slime_core.contracts.checkpoint_format.CheckpointFormat`.

    Raises:
        DataError: the format is none of those of `slime_fp8.weight_formats`; a weight is in another one; or the list of modules
            that are not quantised differs from what is in the files.
    """

    def __init__(self, quantization_config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> None:
        self._names = frozenset(name for name, tensor in tensors.items() if tensor.dtype.startswith("F8_E"))
        if not self._names:
            raise DataError("config.json says that the weights are quantised, but none of them is in 8 bits.")
        listed = [
            str(entry)
            for key in ("modules_to_not_convert", "ignored_layers", "ignore")
            for entry in quantization_config.get(key) or ()
        ]
        _require_same(listed, self._names, tensors)
        from slime_fp8.weight_formats import format_of

        self._format: WeightFormat = format_of(quantization_config)
        for name in self._names:
            self._require_known(name, tensors)

    def quantises(self, name: str) -> bool:
        """Whether the checkpoint has the weight in FP8."""
        return name in self._names

    def layout(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """What `stored` returns: {name: (dtype, shape)} of numbers and scales."""
        return self._format.layout(name, shape)

    def stored(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Numbers and scales of a weight (N, K).

        Raises:
            DataError: it has NaN or Inf.
        """
        return self._format.stored(name, weight)

    def restored(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, in float32, of its numbers and scales."""
        return self._format.restored(name, tensors)

    def __str__(self) -> str:
        rows, columns = self._format.quantiser.block
        words = {
            "block": f"FP8 in blocks of {rows} × {columns}",
            "channel": "FP8 with a scale for each row",
            "tensor": "FP8 with one scale each",
            "mxfp8": "MXFP8",
        }
        of_two = ", scales are powers of two" if self._format.quantiser.scaling == "power_of_two" else ""
        return words[self._format.strategy] + of_two

    def _require_known(self, name: str, tensors: Mapping[str, StoredTensor]) -> None:
        """Raise `DataError` unless the weight is a matrix of e4m3 numbers with scales of the shape that the format has."""
        tensor = tensors[name]
        if tensor.dtype != "F8_E4M3" or len(tensor.shape) != 2:
            raise DataError(
                f"{name} is {tensor.dtype} of shape {tensor.shape}; expected matrices of F8_E4M3. Experts in one tensor, and e5m2, "
                "are not read."
            )
        for key, (_, shape) in self._format.layout(name, tensor.shape).items():
            found = tensors.get(key)
            if found is None:
                raise DataError(f"{name} is in 8 bits, but the checkpoint has no {key} with its scales.")
            if found.shape != shape and (found.shape, shape) != ((), (1,)):
                raise DataError(
                    f"{key} has shape {found.shape}; expected {shape} for a weight of shape {tensor.shape} in the format that "
                    f"config.json says, {self}."
                )


def _require_same(listed: Iterable[str], quantised: Iterable[str], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise `DataError` unless config.json leaves out of FP8 what the files leave out. An engine builds its layers from config.json:
    a layer that the two have differently would compute with numbers that are no weights, without complaint.

    Args:
        listed: the entries of its list: names of modules, of what they are in, their ends, or regular expressions behind "re:".
    """
    of_files = {name.removesuffix(".weight") for name in quantised}
    patterns = [_pattern(entry) for entry in listed]
    contradicted = sorted(m for m in of_files if any(pattern.search(m) for pattern in patterns))
    if contradicted:
        raise DataError(
            f"config.json lists {len(contradicted)} modules as not quantised that the files have in FP8: {_some(contradicted)}. "
            "Take them out of its list, or convert the checkpoint again."
        )
    matrices = {n.removesuffix(".weight") for n, t in tensors.items() if n.endswith(".weight") and len(t.shape) == 2}
    unlisted = sorted(
        m for m in matrices - of_files if not _NEVER.search(m) and not any(pattern.search(m) for pattern in patterns)
    )
    if unlisted:
        raise DataError(
            f"The files have {len(unlisted)} matrices in high precision that config.json does not list as left out: "
            f"{_some(unlisted)}. An engine would read them as FP8. Add them to its list (modules_to_not_convert, or ignore in "
            "compressed-tensors), or convert the checkpoint again."
        )


def _pattern(entry: str) -> re.Pattern[str]:
    """What finds the modules that an entry of the list means. Raises `DataError` if it is no regular expression behind "re:"."""
    if entry.startswith("re:"):
        try:
            return re.compile(f"^(?:{entry.removeprefix('re:')})")
        except re.error as error:
            raise DataError(
                f"config.json lists {entry!r} as not quantised, which is no regular expression behind re: ({error}). Correct it."
            ) from None
    return re.compile(rf"(?:^|\.){re.escape(entry)}(?:\.|$)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
