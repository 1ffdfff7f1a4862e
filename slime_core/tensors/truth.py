"""`Truth`: what transformers computes with a checkpoint, one sequence at a time, in float32, on the CPU. `slime check
--parity` compares a train backend with it.

Attention is transformers' plainest ("eager"): no kernel, no packing, no padding. Names are those of Hugging Face files,
which may cut a tensor in memory, such as all experts of a layer, into several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.image_processor import Processor
from slime_core.data.vision import auto_model
from slime_core.errors import ArgumentError, CheckpointError
from slime_core.remote_code import from_pretrained
from slime_core.sample import Sample
from slime_core.tensors.packed_rows import check_samples, trained_places
from slime_core.tensors.quantised_weights import load_restored
from slime_core.token_arrays import token_ids

_LAYER = re.compile(r"\.(\d+)\.")


class Truth:
    """transformers' model of a checkpoint.

    Args:
        folder: the checkpoint.
        option: that names it, for messages.
        quantised: how it stores its weights, which are restored; None: they are not quantised.
        processor: what it makes of images; None: samples have none.

    Attributes:
        missing: tensors of the model that the checkpoint lacks, or has in another shape; transformers makes them up.
        layers: how many layers the model has.

    Raises:
        ArgumentError: the folder holds no causal language model that transformers can load.
    """

    def __init__(
        self,
        folder: str,
        option: str = "--hf-checkpoint",
        quantised: QuantisedCheckpoint | None = None,
        processor: Processor | None = None,
    ) -> None:
        from transformers import AutoConfig

        try:
            config: Any = from_pretrained(AutoConfig, folder)
            config._experts_implementation = "eager"
            loaded: Any
            if quantised is not None:
                plain = {"attn_implementation": "eager", "experts_implementation": "eager"}
                loaded = load_restored(quantised, torch.float32, **plain)
            else:
                loaded = from_pretrained(
                    auto_model(config),
                    folder,
                    config=config,
                    dtype=torch.float32,
                    attn_implementation="eager",
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, CheckpointError) as error:
            raise ArgumentError(
                f"{option} {folder} does not hold a causal language model that transformers can load: {error}"
            ) from error
        self._processor = processor
        self.model: Any = loaded[0].train(False)
        self.model.get_input_embeddings().padding_idx = None  # no row is filled up, so every token has a gradient
        info: dict[str, Any] = loaded[1]
        wrong = [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]]
        self.missing = sorted({*map(str, info["missing_keys"]), *wrong})
        self.layers = int(config.get_text_config().num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """How many token ids the model can read."""
        return len(self.model.get_input_embeddings().weight)

    def in_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names that they have in memory → by those that they, or their parts, have in a file."""
        from transformers.core_model_loading import revert_weight_conversion

        found: dict[str, Tensor] = revert_weight_conversion(self.model, dict(tensors))
        return found

    def weights(self) -> dict[str, Tensor]:
        """Every parameter, and every buffer that a checkpoint stores. Tied ones under all of their names."""
        return self.in_file(self.model.state_dict())

    def tied(self) -> dict[str, str]:
        """{name: the name of the first one that is the same tensor} of all that are tied to another one."""
        first: dict[int, str] = {}
        found = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if first.setdefault(id(tensor), name) != name:
                found[name] = first[id(tensor)]
        return found

    def log_probs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Per sample the log-probs of its trained tokens, and 0.0 for the others of its response, each from the tokens
        before it alone."""
        check_samples(samples, self.vocab_size)
        found = []
        with torch.no_grad():
            for sample in samples:
                row = [0.0] * sample.response_length
                places = trained_places(sample)
                for place, number in zip(places, self._trained(sample, places).tolist(), strict=True):
                    row[place] = number
                found.append(row)
        return found

    def gradients(
        self, samples: Sequence[Sample], weights: Sequence[float], only: Sequence[int] | None
    ) -> dict[str, Tensor]:
        """The gradient of the weighted negative log-likelihood of the trained tokens.

        Args:
            weights: per sample, of each of its trained tokens.
            only: numbers of the layers whose gradients are wanted, besides those of all that is in no layer; None: all.
        """
        chosen = {
            name: p for name, p in self.model.named_parameters() if only is None or layer_of(name) in {None, *only}
        }
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        for sample, weight in zip(samples, weights, strict=True):
            if places := trained_places(sample):
                loss: Any = -self._trained(sample, places).sum() * weight
                loss.backward()
        found = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in chosen.items()}
        for parameter in chosen.values():
            parameter.grad = None
        return self.in_file(found)

    def _trained(self, sample: Sample, places: Sequence[int]) -> Tensor:
        """(T,) log-probs of the tokens at these places of the response."""
        tokens = token_ids(sample)
        first = len(tokens) - sample.response_length
        if not places:
            return torch.zeros(0)
        ids = torch.tensor(tokens[: first + places[-1]], dtype=torch.int64)[None]
        images = {} if self._processor is None else self._processor.alone(sample, ids)
        logits: Tensor = self.model(input_ids=ids, use_cache=False, **images).logits[0]
        predictors = torch.tensor([first + place - 1 for place in places])
        targets = torch.tensor(tokens[first + np.array(places)], dtype=torch.int64)
        return -nn.functional.cross_entropy(logits[predictors].float(), targets, reduction="none")


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None for those of no layer."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def in_model_order(names: Sequence[str]) -> Iterator[str]:
    """Names as the data flows: embeddings, layer after layer, what comes after them. Inside of a layer as they are given."""

    def place(name: str) -> tuple[int, int]:
        layer = layer_of(name)
        if layer is not None:
            return 1, layer
        return (0 if "embed" in name or "wte" in name or "wpe" in name else 2), 0

    return iter(sorted(names, key=place))
