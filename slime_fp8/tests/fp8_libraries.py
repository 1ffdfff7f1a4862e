"""What other libraries make of the same matrices, as digests of their bytes: `fp8_vectors.json`.

    pip install torchao compressed-tensors loguru && python slime_fp8/tests/fp8_libraries.py

writes them anew. Tests compare with the file, and, where the libraries are installed, the file with them. They are not among the
requirements of the tests, since transformers imports torchao wherever it finds it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fp8_cases import numbers
from torch import Tensor

from slime_fp8.quantise import Quantiser

FILE = Path(__file__).with_name("fp8_vectors.json")
Made = tuple[Tensor, Tensor]
"""Numbers and scales, (M, N) and (blocks down, blocks across)."""


def torchao_tensorwise(matrix: Tensor, quantiser: Quantiser) -> Made:
    """One scale, `torchao.float8`."""
    from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
    from torchao.float8.float8_training_tensor import LinearMMConfig

    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[quantiser.format]
    made = hp_tensor_to_float8_dynamic(matrix, dtype, LinearMMConfig())
    return made._data, made._scale.reciprocal()


@cache
def _blockwise_references() -> dict[str, Any]:
    """torchao's reference functions. Their module needs Triton, so they are taken out of its source."""
    package = importlib.util.find_spec("torchao.prototype")
    assert package is not None
    (folder,) = package.submodule_search_locations or ()
    tree = ast.parse((Path(folder) / "blockwise_fp8_training" / "kernels.py").read_text(encoding="utf-8"))
    wanted = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("torch_blockwise_scale_")]
    names: dict[str, Any] = {
        "torch": torch,
        "EPS": 1e-12,
        "e4m3_dtype": torch.float8_e4m3fn,
        "FP8_E4M3_DTYPES": (torch.float8_e4m3fn,),
        "Tuple": tuple,
    }
    exec(compile(ast.Module([*wanted], []), "kernels.py", "exec"), names)
    return names


def torchao_blockwise(matrix: Tensor, quantiser: Quantiser) -> Made:
    """Blocks of 128, `torchao.prototype.blockwise_fp8_training`."""
    name = {(1, 128): "act_quant_lhs", (128, 1): "act_quant_rhs", (128, 128): "weight_quant"}[quantiser.block]  # type: ignore[index]
    data, scales = _blockwise_references()[f"torch_blockwise_scale_{name}"](matrix)
    rows, columns = quantiser.block
    assert rows
    assert columns
    m, n = matrix.shape
    empty = (matrix == 0).view(m // rows, rows, n // columns, columns).all(3).all(1)
    return data.contiguous(), torch.where(empty, torch.ones_like(scales), scales)  # zeros have a scale of its own there


def torchao_mxfp8(matrix: Tensor, quantiser: Quantiser) -> Made:
    """Blocks of 32, `torchao.prototype.mx_formats`, rounding scales up."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    scales, data = to_mx(matrix, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    return data, scales.view(torch.uint8)


def compressed_tensors(matrix: Tensor, quantiser: Quantiser) -> Made:
    """Any blocks, `compressed_tensors.quantization`."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    m, n = matrix.shape
    rows, columns = quantiser.block[0] or m, quantiser.block[1] or n
    strategy = "tensor" if (rows, columns) == (m, n) else "channel" if rows == 1 else "block"
    more = {"block_structure": [rows, columns]} if strategy == "block" else {}
    how = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy, **more)
    amax = matrix.view(m // rows, rows, n // columns, columns).abs().amax((1, 3))
    scales, _ = calculate_qparams(-amax, amax, how)
    data = quantize(matrix, scales.view(m // rows, n // columns), None, how, dtype=torch.float8_e4m3fn)
    return data, scales


Library = Callable[[Tensor, Quantiser], Made]
COMPARED: dict[str, tuple[Library, Quantiser]] = {
    "torchao tensorwise e4m3": (torchao_tensorwise, Quantiser("e4m3")),
    "torchao tensorwise e5m2": (torchao_tensorwise, Quantiser("e5m2")),
    "torchao blockwise 1x128": (torchao_blockwise, Quantiser("e4m3", (1, 128))),
    "torchao blockwise 128x1": (torchao_blockwise, Quantiser("e4m3", (128, 1))),
    "torchao blockwise 128x128": (torchao_blockwise, Quantiser("e4m3", (128, 128))),
    "torchao mxfp8": (torchao_mxfp8, Quantiser("e4m3", (1, 32), "e8m0")),
    "compressed-tensors block": (compressed_tensors, Quantiser("e4m3", (128, 128), "quotient")),
    "compressed-tensors channel": (compressed_tensors, Quantiser("e4m3", (1, None), "quotient")),
    "compressed-tensors tensor": (compressed_tensors, Quantiser("e4m3", (None, None), "quotient")),
}


def matrices(name: str) -> Iterator[Tensor]:
    """What a library is compared on: normal numbers, and numbers that span up to 24 powers of two, some blocks of zeros."""
    for seed, spread in ((0, 0.0), (1, 0.0), (2, 3.0), (3, 12.0)):
        matrix = numbers(256, 384, seed=seed, spread=spread)
        if name.startswith("torchao") and "tensorwise" not in name:
            matrix[:128, :128] = 0
        yield matrix
        if not name.startswith("compressed-tensors") and "blockwise" not in name:
            yield matrix.bfloat16()


def digest(name: str, quantise: Callable[[Tensor], Made]) -> dict[str, str]:
    """{"inputs", "data", "scales"}: digests of the bytes of all matrices, of what became of them, and of their scales."""
    found = {part: hashlib.sha256() for part in ("inputs", "data", "scales")}
    for matrix in matrices(name):
        data, scales = quantise(matrix)
        for part, tensor in (("inputs", matrix), ("data", data), ("scales", scales)):
            found[part].update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {part: hashed.hexdigest()[:32] for part, hashed in found.items()}


def of_library(name: str) -> dict[str, str]:
    """The digests of what the library makes."""
    library, quantiser = COMPARED[name]
    return digest(name, lambda matrix: library(matrix, quantiser))


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: of_library(name) for name in COMPARED}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")
