"""`LanguageModel`: the engine's own copy of the model. It is built empty from the configuration and filled with the
trainer's tensors, or with those of the checkpoint. The scheduler calls it, on its thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from slime_core.contracts.checkpoint_format import QuantisedCheckpoint
from slime_core.data.vision import auto_model, is_vision_model
from slime_core.errors import SlimeError
from slime_core.remote_code import from_config, from_pretrained, load_configuration
from slime_core.tensors.quantised_weights import in_high_precision, load_restored
from slime_core.tensors.rotary import length_dependent
from slime_core.tensors.stored_weights import KEPT_IN_FLOAT32
from slime_core.tensors.windows import slides
from slime_engine_local import attention
from slime_engine_local.cache import CachedSequence, KVCache
from slime_engine_local.decoder import FusedDecoder
from slime_engine_local.errors import EngineError
from slime_engine_local.forward_pass import Chunk, ForwardPass
from slime_engine_local.fused_proof import SeenLayers, agree, layers_agree
from slime_engine_local.layer_operations import LayerOperations, PlainOperations
from slime_engine_local.packed import PackedLinear, packing_works
from slime_engine_local.pages import StaticPass
from slime_engine_local.triton_experts import exchange_experts
from slime_engine_local.triton_operations import TritonOperations, fits
from slime_engine_local.vision import RowImages, features_of, language_part, probe_chunk, row_images, row_positions
from slime_engine_local.weights import Weights

LAYER_TYPES = {"full_attention", "sliding_attention"}
HALF = (torch.bfloat16, torch.float16)
PROBED = 8
"""Tokens that forms of the model are compared with."""
_log = logging.getLogger(__name__)


class LanguageModel:
    """A causal language model, perhaps one that reads images, that computes packed rows of tokens; see
    `slime_engine_local.attention`.

    Args:
        checkpoint: the Hugging Face folder, of which only the configuration is read.
        weights: all weights by their Hugging Face names; they are copied. The model gets their dtype and, where there
            is no GPU, their device. (Weights that come from other processes come in host memory.)
        dtype: of the model, in place of that of the weights.

    Attributes:
        state: another object after every change of the weights.
        reads_images: whether it has a vision tower.
        has_grid_positions: whether the tokens of an image have positions in height and width.

    Raises:
        EngineError: the model has layers that the engine cannot serve, or the weights are those of another model.
    """

    def __init__(self, checkpoint: str, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        self._checkpoint, self._wanted = checkpoint, dtype
        self.dtype, self.device = _dtype_and_device(weights, dtype)
        self._decoder: FusedDecoder | None = None
        config = in_high_precision(load_configuration(checkpoint))
        if reason := refusal(config):
            raise self._refusal(reason)
        self._layers: int = config.get_text_config().num_hidden_layers
        self.reads_images = is_vision_model(config)
        from accelerate import init_empty_weights

        attention.register()
        with init_empty_weights(include_buffers=False):
            self._module: Any = from_config(
                auto_model(config),
                config,
                dtype=self.dtype,
                **({} if self.reads_images else {"attn_implementation": attention.NAME}),
            )
        if self.reads_images:  # the tower's is another one, and is not causal
            self._module.set_attn_implementation({"text_config": attention.NAME})
        self.has_grid_positions = self.reads_images and hasattr(self._module.model, "get_rope_index")
        self.state = object()
        self._module.eval()
        self._module.tie_weights()
        self._weights = Weights(self._module)
        self._fill(weights)

    @classmethod
    def from_checkpoint(cls, checkpoint: str, quantised: QuantisedCheckpoint | None = None) -> LanguageModel:
        """Make the model with the checkpoint's own weights: as they are stored on a GPU, in float32 on a CPU.

        Args:
            quantised: its format; its weights are restored then.

        Raises:
            EngineError: the checkpoint has no weights that can be read, or the engine cannot serve the model.
        """
        device, dtype = ("cuda", "auto") if torch.cuda.is_available() else ("cpu", torch.float32)
        try:
            with torch.inference_mode(False), torch.no_grad():
                module: Any
                if quantised is not None:
                    module, _ = load_restored(quantised, dtype_of(checkpoint))
                else:
                    module = from_pretrained(auto_model(load_configuration(checkpoint)), checkpoint, dtype=dtype)
                module = module.to(device)
        except (OSError, ValueError, SlimeError) as error:
            raise EngineError(
                f"The engine 'local' was handed no weights, and those of {checkpoint} cannot be loaded: {error}"
            ) from error
        return cls(checkpoint, module.state_dict())

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Return whether these weights would give a model of the same dtype on the same device."""
        return _dtype_and_device(weights, self._wanted) == (self.dtype, self.device)

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Copy all weights. Tied ones may come under any of their names. Nothing is changed when one does not fit.

        Raises:
            EngineError: a weight is missing, unknown, or of another shape.
        """
        self._weights.update(weights)
        self.state = object()

    def replace(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy all weights as they come, (name, tensor) pairs. Tied ones may come under any of their names.

        Raises:
            EngineError: the first one does not fit; nothing is changed.
            HalfReplaced: a later one does not fit or does not come, or one is missing: the model is of no use now.
        """
        self.state = object()
        self._weights.replace(weights)

    def give_up(self) -> bool:
        """Free the weights where they are packed, and return whether they are. Then the model is of no use until all of them are
        replaced."""
        packed = [module for module in self._module.modules() if isinstance(module, PackedLinear)]
        packed += self._decoder.packed() if self._decoder else ()
        for layer in packed:
            layer.give_up()
        if packed:
            self._weights.give_up()
        return bool(packed)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return int(self._module.config.get_text_config().vocab_size)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all that it keeps on its device. (Packed weights are not among them; they are on a CPU.)"""
        yield from self._module.parameters()
        yield from self._module.buffers()
        if self._decoder is not None:
            yield from self._decoder.tensors()

    def next_logits(self, tokens: list[int], step: ForwardPass, everywhere: bool = False) -> Tensor:
        """Compute the logits that choose the next token of each request, and of each chunk.

        Args:
            tokens: the last token of each request that is being decoded; the cache does not hold it yet.
            step: the decoded requests, B of them, and the chunks of those that join.
            everywhere: compute those behind every token of the chunks, not behind the last ones alone.

        Returns:
            [B + number of chunks, vocabulary], or [B + number of tokens in the chunks, vocabulary].
        """
        row = list(tokens)
        for chunk in step.chunks:
            row += chunk.tokens
        sums = accumulate((len(chunk.tokens) for chunk in step.chunks), initial=len(tokens) - 1)
        last = range(len(row)) if everywhere else [*range(len(tokens)), *list(sums)[1:]]
        ids, places = torch.tensor([row], device=self.device), row_positions(step, self.device)
        ends = torch.tensor(last, device=self.device)
        images = row_images(step.chunks, len(tokens), self.device) if self.reads_images else None
        if self._decoder is not None:
            return self._decoder(ids, places, ends, step, images)
        if self.reads_images:
            logits = self._of_embeddings(ids, places, ends, step, images)
        else:
            settings = {"use_cache": False, "logits_to_keep": ends, "slime_pass": step}
            logits = self._module(ids, position_ids=places, **settings).logits[0]
        if len(step.settings) != self._layers:
            raise self._refusal(
                f"{len(step.settings)} of its {self._layers} layers attend through transformers' AttentionInterface"
            )
        return logits

    def image_features(self, read: dict[str, Tensor]) -> list[Tensor]:
        """Return what the vision tower makes of one image, as `slime_engine_local.vision.RowImages` has it.

        Args:
            read: what `Processor.features` gives.
        """
        return features_of(self._module.model, read, self.device)

    def grid_positions(self, ids: Tensor, types: Tensor, grids: Tensor) -> Tensor:
        """Return the positions of N tokens in time, height and width, (3, N), from their ids and types, (1, N), and the grids of
        their images."""
        positions: Tensor = self._module.model.get_rope_index(ids, types, image_grid_thw=grids)[0][:, 0]
        return positions

    def _of_embeddings(
        self, ids: Tensor, places: Tensor, ends: Tensor, step: ForwardPass, images: RowImages | None
    ) -> Tensor:
        """Compute logits as `FusedDecoder` does, with the module's own layers, and without its vision tower."""
        _, body = language_part(self._module)
        embedded = body.embed_tokens(ids)
        later: dict[str, Any] = {}
        if images is not None:
            embedded = images.embedded(embedded[0])[None]
            if len(images.features) > 1:
                later["visual_pos_masks"] = torch.zeros_like(ids, dtype=torch.bool).index_fill_(1, images.places, True)
                later["deepstack_visual_embeds"] = images.features[1:]
        settings = {"use_cache": False, "slime_pass": step}
        hidden = body(inputs_embeds=embedded, position_ids=places, **settings, **later).last_hidden_state
        logits: Tensor = self._module.lm_head(hidden[0, ends])
        return logits

    def static_logits(self, tokens: Tensor, positions: Tensor, step: StaticPass) -> Tensor:
        """Compute the logits (B, vocabulary) behind one token of each of B requests, both (B,). Nothing is read by the host, and all
        shapes are fixed by B."""
        if self._decoder is not None:
            return self._decoder(tokens[None], positions[None], slice(None), step)
        output = self._module(tokens[None], position_ids=positions[None], use_cache=False, slime_pass=step)
        logits: Tensor = output.logits[0]
        return logits

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        """Give the empty model its first weights.

        At first these are the very tensors that were handed over, where they are on the device and in the dtype that is wanted. Each is
        then replaced by a copy, one after the other. Nothing here holds on to a tensor that the module has no more.
        """
        filled, pairs = [], self._weights.paired(weights)
        while pairs:
            weight, new = pairs.pop(0)
            new = self._own(weight.names[0], new)
            self._set(weight.names, nn.Parameter(new.detach(), requires_grad=False))
            filled.append(weight)
            del new
        self._module.to(self.device)  # what is computed from the configuration and so was not handed over
        expected = self._probe()
        if fits(self.device, self.dtype):
            exchange_experts(self._module, self.dtype, self.device)
        self._fuse(expected)
        self._pack(expected)
        fused = self._decoder.parts if self._decoder else {}
        handed = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
        for weight in filled:
            for name in weight.names:
                if (copy := fused.get(name) or self._packed(name)) is not None:
                    weight.copies.append(copy)
            if plain := [name for name in weight.names if name not in fused and not self._packed(name)]:
                own = self._module.get_parameter(plain[0])
                if not _is_alone(own) or own.untyped_storage().data_ptr() in handed:
                    apart = own.detach().clone(memory_format=torch.contiguous_format)
                    own = nn.Parameter(apart, requires_grad=False)
                    self._set(plain, own)
                weight.copies.append(own)

    def _own(self, name: str, new: Tensor) -> Tensor:
        """New values on the model's device and in the dtype that is wanted of them."""
        kept = self._wanted is None or not new.is_floating_point() or name.endswith(KEPT_IN_FLOAT32)
        return new.to(self.device, new.dtype if kept else self._wanted)

    def _fuse(self, expected: Tensor) -> None:
        """Use a `FusedDecoder` if the model then still computes the logits `expected`."""
        if not _may_fuse(self.dtype, self.device):
            return
        plain: LayerOperations = PlainOperations()
        ways = [TritonOperations(), plain] if fits(self.device, self.dtype) else [plain]
        try:
            decoder = FusedDecoder(self._module, self._attention, plain)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            return
        seen = SeenLayers(decoder.body, self._probe) if self.dtype in HALF else None
        for way in ways:
            decoder.compute_by(way)
            problem = "its layers compute something else"
            try:
                if self._computes(decoder, expected, seen):
                    self._decoder = decoder
                    break
            except Exception as error:  # a compiler raises what it likes
                problem = str(error)
            if way is not plain:
                _log.warning("Layers are computed by plain operations, not by Triton kernels (%s).", problem)
        else:
            if seen is not None:
                _log.warning("The model's layers are computed as transformers wrote them: fused, %s.", problem)
            return
        decoder.free_modules()

    def _computes(self, decoder: FusedDecoder, expected: Tensor, seen: SeenLayers | None) -> bool:
        """Whether a decoder computes what the module does, which made the logits `expected` and, in half precision, `seen`."""
        step, tokens, images = self._probe_step()
        positions = row_positions(step, self.device)
        if seen is None:
            ends = torch.tensor([len(tokens) - 1], device=self.device)
            shown = row_images(step.chunks, 0, self.device) if images else None
            return agree(decoder(tokens[None], positions, ends, step, shown), expected)
        embedded = None if images else decoder.body.embed_tokens(tokens)
        return layers_agree(decoder, seen, embedded, positions, step)

    def _pack(self, expected: Tensor) -> None:
        """Pack the linear layers if the model then still computes the logits `expected`: its code might read a
        weight."""
        if self.dtype != torch.float32 or self.device.type != "cpu" or not packing_works():
            return
        of_text, _ = language_part(self._module) if self.reads_images else ("", None)
        plain = {
            path: module
            for path, module in self._module.named_modules()
            if type(module) is nn.Linear and module.weight is not None and (path.startswith(of_text) or "." not in path)
        }
        for path, module in plain.items():
            self._module.set_submodule(path, PackedLinear(module.weight, module.bias))
        with suppress(AttributeError, TypeError, RuntimeError):
            if agree(self._probe(), expected):
                return
        for path, module in plain.items():
            self._module.set_submodule(path, module)

    def _set(self, names: Iterable[str], parameter: nn.Parameter) -> None:
        """Make `parameter` the one of all these names."""
        for name in names:
            path, _, attribute = name.rpartition(".")
            setattr(self._module.get_submodule(path), attribute, parameter)

    def _packed(self, name: str) -> PackedLinear | None:
        """Return the packed layer whose weight has this name, if there is one."""
        path, _, attribute = name.rpartition(".")
        owner = self._module.get_submodule(path)
        return owner if attribute == "weight" and isinstance(owner, PackedLinear) else None

    def _probe(self) -> Tensor:
        """Compute the logits after a few tokens, and note scale and window of each layer's attention.

        Raises:
            EngineError: a window is in a mask alone, which the model is not asked for.
        """
        step, _, _ = self._probe_step()
        logits = self.next_logits([], step)
        self._attention = step.settings
        config = self._module.config.get_text_config()
        if any(window is None and slides(config, layer) for layer, (_, window) in step.settings.items()):
            raise self._refusal("its attention does not say how long its sliding window is")
        return logits

    def _probe_step(self) -> tuple[ForwardPass, Tensor, bool]:
        """A pass over a few tokens, these tokens, and whether an image is among them.

        Their positions are the last ones of the context: there, too, shows what some models do beyond a certain position alone.
        """
        cache, tokens = KVCache(), range(PROBED)
        shown = probe_chunk(self._module, PROBED, self.dtype, self.device)
        context = getattr(self._module.config.get_text_config(), "max_position_embeddings", None) or PROBED
        sequence = CachedSequence(cache.add(PROBED), shift=max(0, context - PROBED))
        step = ForwardPass(cache, [], [Chunk(sequence, tokens, shown)], self.device)
        return step, torch.arange(PROBED, device=self.device), shown is not None

    def _refusal(self, reason: str) -> EngineError:
        return EngineError(f"The engine 'local' cannot serve {self._checkpoint}: {reason}.")


def dtype_of(checkpoint: str) -> torch.dtype:
    """The dtype in which the engine computes with a quantised checkpoint: that of its configuration on a GPU, float32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    named = getattr(load_configuration(checkpoint).get_text_config(), "dtype", None)
    return named if isinstance(named, torch.dtype) else torch.bfloat16


def refusal(config: Any) -> str:
    """Why the engine serves no model of this configuration, as half a sentence; "" where it may."""
    if other := sorted(set(getattr(config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES):
        return f"it has layers of type {', '.join(other)}"
    if kind := length_dependent(config):
        return f"its position encoding ({kind}) depends on the longest sequence in the batch"
    return ""


def _is_alone(tensor: Tensor) -> bool:
    """Whether a tensor is all that there is in its memory, row by row."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


def _dtype_and_device(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device of a model with these weights, of which `dtype` is wanted."""
    like = next(iter(weights.values()))
    return dtype or like.dtype, torch.device(
        "cuda", torch.cuda.current_device()
    ) if torch.cuda.is_available() else like.device


def _may_fuse(dtype: torch.dtype, device: torch.device) -> bool:
    """On a CPU a model in half precision rounds where its Hugging Face module does. On a GPU it rounds less often."""
    return dtype in (torch.float32, torch.float64) or device.type == "cuda"
