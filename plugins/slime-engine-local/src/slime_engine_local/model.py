"""The engine's own copy of the model: built empty from the configuration, filled from the trainer's tensors or from the
checkpoint. Called by the scheduler, on its thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from slime_engine_local import attention
from slime_engine_local.cache import Chain, KVCache
from slime_engine_local.decoder import Decoder
from slime_engine_local.errors import EngineError
from slime_engine_local.packed import PackedLinear, packing_works

LAYER_TYPES = {"full_attention", "sliding_attention"}
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class _Copy(Protocol):
    """A weight that the engine owns: an ordinary parameter, a `PackedLinear` or a part of joined layers."""

    def copy_(self, weight: Tensor, /) -> object: ...


@dataclass
class _Weight:
    """A weight of the model, which tied layers know under several names."""

    names: list[str]
    shape: torch.Size
    copies: list[_Copy] = field(default_factory=list)


class LanguageModel:
    """A causal language model that reads packed rows; see `slime_engine_local.attention`.

    Args:
        checkpoint: Hugging Face folder, of which the configuration alone is read.
        weights: all of them, by their Hugging Face names; they are copied. Their number format is the model's, and so is
            their device where there is no GPU. (On their way from other processes they come in host memory.)

    Raises:
        EngineError: the model has layers that the engine cannot serve, or the weights are not its.
    """

    def __init__(self, checkpoint: str, weights: Mapping[str, Tensor]) -> None:
        self._checkpoint = checkpoint
        self.dtype, self.device = _kind(weights)
        self._decoder: Decoder | None = None
        config = AutoConfig.from_pretrained(checkpoint)
        text = config.get_text_config()
        if other := sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES):
            raise self._refusal(f"it has layers of type {', '.join(other)}")
        self._layers: int = text.num_hidden_layers
        with init_empty_weights(include_buffers=False):
            self._module = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation=attention.NAME
            )
        self._module.eval()
        self._module.tie_weights()
        for module in self._module.modules():
            if (kind := getattr(module, "rope_type", None)) in BATCH_DEPENDENT_ROPE:
                raise self._refusal(f"its position encoding ({kind}) depends on the longest sequence in the batch")
        stored: dict[int, _Weight] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            stored.setdefault(id(tensor), _Weight([], tensor.shape)).names.append(name)
        self._weights = list(stored.values())
        self._fill(weights)

    @classmethod
    def from_checkpoint(cls, checkpoint: str) -> LanguageModel:
        """With the checkpoint's own weights: as stored on a GPU, in float32 on a CPU.

        Raises:
            EngineError: the checkpoint has none that can be read, or see above.
        """
        device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            with torch.inference_mode(False), torch.no_grad():
                module = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).to(device)
        except (OSError, ValueError) as error:
            raise EngineError(
                f"The engine 'local' was handed no weights, and those of {checkpoint} cannot be loaded: {error}"
            ) from error
        return cls(checkpoint, module.state_dict())

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these have the model's number format and device."""
        return _kind(weights) == (self.dtype, self.device)

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Copy all weights. Tied ones may come under any of their names. Nothing is changed when one does not fit.

        Raises:
            EngineError: a weight is missing, unknown, or of another shape.
        """
        for weight, new in self._checked(weights):
            for own in weight.copies:
                own.copy_(new)

    def tensors(self) -> Iterator[Tensor]:
        """All that it keeps on its device. (Packed weights are not among them; they are on a CPU.)"""
        yield from self._module.parameters()
        yield from self._module.buffers()
        if self._decoder is not None:
            yield from self._decoder.tensors()

    def _checked(self, given: Mapping[str, Tensor]) -> list[tuple[_Weight, Tensor]]:
        known = {name for weight in self._weights for name in weight.names}
        problems = [f"{name} is unknown to the model" for name in given if name not in known]
        pairs: list[tuple[_Weight, Tensor]] = []
        for weight in self._weights:
            new = next((given[name] for name in weight.names if name in given), None)
            if new is None:
                problems.append(f"{weight.names[0]} is missing")
            elif new.shape != weight.shape:
                problems.append(f"{weight.names[0]} has shape {tuple(new.shape)}, expected {tuple(weight.shape)}")
            else:
                pairs.append((weight, new))
        if problems:
            more = f" ({len(problems)} such problems in all)" if len(problems) > 1 else ""
            raise EngineError(f"The weights handed to the engine 'local' do not fit its model: {problems[0]}{more}.")
        return pairs

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        """Give the empty model its first weights: those handed over, in whose place copies come one after the other."""
        pairs = [(weight, new.to(self.device)) for weight, new in self._checked(weights)]
        for weight, new in pairs:
            self._set(weight.names, nn.Parameter(new.detach(), requires_grad=False))
        self._module.to(self.device)  # what is computed from the configuration and so was not handed over
        expected = self._probe()
        self._join(expected)
        self._pack(expected)
        joined = self._decoder.parts if self._decoder else {}
        for weight, new in pairs:
            for name in weight.names:
                if (copy := joined.get(name) or self._packed(name)) is not None:
                    weight.copies.append(copy)
            if plain := [name for name in weight.names if name not in joined and not self._packed(name)]:
                own = nn.Parameter(new.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
                self._set(plain, own)
                weight.copies.append(own)

    def _join(self, expected: Tensor) -> None:
        """Use a `Decoder` if the model then still computes the same."""
        if self.dtype not in (torch.float32, torch.float64):  # Hugging Face modules round in between
            return
        with suppress(AttributeError, TypeError, ValueError, RuntimeError):
            self._decoder = Decoder(self._module, self._attention)
            if _agree(self._probe(), expected):
                for module in self._module.model.layers.modules():
                    if isinstance(module, nn.Linear):
                        module.weight = module.bias = None
                return
        self._decoder = None

    def _pack(self, expected: Tensor) -> None:
        """Pack the linear layers, if the model then still computes the same: it might read a layer's weight itself."""
        if self.dtype != torch.float32 or self.device.type != "cpu" or not packing_works():
            return
        plain = {
            path: module
            for path, module in self._module.named_modules()
            if type(module) is nn.Linear and module.weight is not None
        }
        for path, module in plain.items():
            self._module.set_submodule(path, PackedLinear(module.weight, module.bias))
        with suppress(AttributeError, TypeError, RuntimeError):
            if _agree(self._probe(), expected):
                return
        for path, module in plain.items():
            self._module.set_submodule(path, module)

    def _set(self, names: Iterable[str], parameter: nn.Parameter) -> None:
        for name in names:
            path, _, attribute = name.rpartition(".")
            setattr(self._module.get_submodule(path), attribute, parameter)

    def _packed(self, name: str) -> PackedLinear | None:
        """The packed layer whose weight has this name."""
        path, _, attribute = name.rpartition(".")
        owner = self._module.get_submodule(path)
        return owner if attribute == "weight" and isinstance(owner, PackedLinear) else None

    def _probe(self) -> Tensor:
        """Logits after a few tokens."""
        cache = KVCache()
        piece = attention.Piece(Chain(cache.add(8)), range(8))
        step = attention.Pass(cache, [], [piece], self.device)
        logits = self.next_logits([], step)
        self._attention = step.settings
        return logits

    def next_logits(self, tokens: list[int], step: attention.Pass) -> Tensor:
        """Logits of the token after each request's last one.

        Args:
            tokens: the last token of each request that is being decoded; the cache does not hold it yet.
            step: the decoded requests, B of them, and the pieces that join.

        Returns:
            [B + number of pieces, vocabulary].
        """
        row, places = list(tokens), [chain.length for chain in step.decoded]
        for piece in step.pieces:
            row += piece.tokens
            places += range(piece.chain.length, piece.chain.length + len(piece.tokens))
        sums = accumulate((len(piece.tokens) for piece in step.pieces), initial=len(tokens) - 1)
        last = [*range(len(tokens)), *list(sums)[1:]]
        ids, positions = (torch.tensor([numbers], device=self.device) for numbers in (row, places))
        ends = torch.tensor(last, device=self.device)
        if self._decoder is not None:
            return self._decoder(ids, positions, ends, step)
        output = self._module(ids, position_ids=positions, use_cache=False, logits_to_keep=ends, slime_pass=step)
        if len(step.settings) != self._layers:
            raise self._refusal(
                f"{len(step.settings)} of its {self._layers} layers attend through transformers' AttentionInterface"
            )
        return output.logits[0]

    def _refusal(self, reason: str) -> EngineError:
        return EngineError(f"The engine 'local' cannot serve {self._checkpoint}: {reason}.")


def _kind(weights: Mapping[str, Tensor]) -> tuple[torch.dtype, torch.device]:
    """Number format and device of a model with these weights."""
    like = next(iter(weights.values()))
    return like.dtype, torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else like.device


def _agree(logits: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-3
    return torch.allclose(logits, expected, rtol=tolerance, atol=tolerance)
