"""What this machine's matrix products reach, and how many operations a fine-tuning step needs. For `benchmarks.sft`.

`python -m benchmarks.gemm MODEL ROWS` prints GFLOP/s in fp32 for the matrix products of a Hugging Face Llama-like model
whose packed row has ROWS tokens, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPEATS = 15


@dataclass(frozen=True)
class Shapes:
    """The sizes that decide the work of a Llama-like decoder."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    vocabulary: int

    @classmethod
    def of(cls, model: Path) -> Shapes:
        """From the config.json of a checkpoint."""
        config = json.loads((model / "config.json").read_text())
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            query=heads * head_dim,
            key_value=config["num_key_value_heads"] * head_dim,
            vocabulary=config["vocab_size"],
        )

    def products(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear maps of one layer, by name, and of the head."""
        return {
            "query, output": (self.hidden, self.query),
            "key, value": (self.hidden, self.key_value),
            "gate, up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
            "head": (self.hidden, self.vocabulary),
        }


def step_flops(shapes: Shapes, lengths: list[int], trained: int) -> float:
    """Floating-point operations of forward and backward over sequences of the given lengths.

    A linear map of n weights costs 2n per token forward and 4n backward. The head counts for the trained tokens only,
    causal attention only below the diagonal; looking up embeddings, norms and the optimizer count nothing. What an
    implementation does beyond that (padding, recomputation, logits of untrained tokens) does not count either.
    """
    layer = 2 * shapes.hidden * (shapes.query + shapes.key_value) + 3 * shapes.hidden * shapes.intermediate
    linear = 6 * shapes.layers * layer * sum(lengths)
    attention = 6 * shapes.layers * shapes.query * sum(length**2 for length in lengths)
    return linear + attention + 6 * shapes.hidden * shapes.vocabulary * trained


def measure(shapes: Shapes, rows: int) -> dict[str, float]:
    """GFLOP/s of each matrix product, the best of several."""
    import torch

    found = {}
    for name, (width, out) in shapes.products().items():
        x, weight = torch.randn(rows, width), torch.randn(out, width)
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds.append(time.perf_counter() - started)
        found[name] = 2e-9 * rows * width * out / min(seconds)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Shapes.of(Path(sys.argv[1])), int(sys.argv[2]))))
