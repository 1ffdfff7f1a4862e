"""The engine's own copy of the model: built empty from the configuration, filled from the trainer's tensors.

Called by the scheduler, on its thread only.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from slime_engine_local import attention
from slime_engine_local.errors import EngineError

LAYER_TYPES = {"full_attention", "sliding_attention"}
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class LanguageModel:
    """A causal language model that reads packed rows; see `slime_engine_local.attention`.

    Args:
        checkpoint: Hugging Face folder, of which the configuration alone is read.
        dtype: of the weights that will come.

    Raises:
        EngineError: the model has layers that the engine cannot serve.
    """

    def __init__(self, checkpoint: str, dtype: torch.dtype) -> None:
        config = AutoConfig.from_pretrained(checkpoint)
        text = config.get_text_config()
        if other := sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES):
            raise EngineError(
                f"The engine 'local' cannot serve {checkpoint}: it has layers of type {', '.join(other)}."
            )
        self.context: int | None = getattr(text, "max_position_embeddings", None)
        self.vocabulary: int = text.vocab_size
        self._layers: int = text.num_hidden_layers
        with init_empty_weights(include_buffers=False):
            self._module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        self._module.eval()
        self._module.tie_weights()
        for module in self._module.modules():
            if (kind := getattr(module, "rope_type", None)) in BATCH_DEPENDENT_ROPE:
                raise EngineError(
                    f"The engine 'local' cannot serve {checkpoint}: its position encoding ({kind}) depends on the "
                    "longest sequence in the batch."
                )

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy all weights. Tied ones may come under any of their names. Nothing is changed when one does not fit.

        Raises:
            EngineError: a weight is missing, unknown, or of another shape.
        """
        given = dict(weights)
        stored: dict[int, tuple[Tensor, list[str]]] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            stored.setdefault(id(tensor), (tensor, []))[1].append(name)
        known = {name for _, names in stored.values() for name in names}
        problems = [f"{name} is unknown to the model" for name in given if name not in known]
        pairs: list[tuple[Tensor, list[str], Tensor]] = []
        for own, names in stored.values():
            new = next((given[name] for name in names if name in given), None)
            if new is None:
                problems.append(f"{names[0]} is missing")
            elif new.shape != own.shape:
                problems.append(f"{names[0]} has shape {tuple(new.shape)}, expected {tuple(own.shape)}")
            else:
                pairs.append((own, names, new))
        if problems:
            more = f" ({len(problems)} such problems in all)" if len(problems) > 1 else ""
            raise EngineError(f"The weights handed to the engine 'local' do not fit its model: {problems[0]}{more}.")
        for own, names, new in pairs:
            target = self._allocate(names, new) if own.is_meta else own
            target.copy_(new)
        self._device = pairs[0][2].device
        self._module.to(self._device)  # what is computed from the configuration and so was not handed over

    def _allocate(self, names: list[str], like: Tensor) -> Tensor:
        """Memory for a weight that had none, of the type and on the device of `like`."""
        owners = [(self._module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
        memory = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if like.device.type == "cpu" and any(isinstance(module, nn.Linear) for module, _ in owners) and like.ndim == 2:
            # Products of few rows with a matrix are two to four times as fast when it is stored transposed.
            memory = torch.empty(like.mT.shape, dtype=like.dtype).mT
        parameter = nn.Parameter(memory, requires_grad=False)
        for module, attribute in owners:
            setattr(module, attribute, parameter)
        return parameter

    def next_logits(
        self, tokens: list[int], positions: list[int], prompts: list[list[int]], cache: attention.KVCache
    ) -> Tensor:
        """Logits of the token after each request's last one.

        Args:
            tokens, positions: of each request that is being decoded (B of them, in the cache's slots 0 … B-1), its last
                token, which the cache does not hold yet, and where in the sequence that stands.
            prompts: of the requests that join; they are written to the slots after B.
            cache: keys and values of what came before. Written.

        Returns:
            [B + number of prompts, vocabulary].
        """
        lengths = [len(prompt) for prompt in prompts]
        row = torch.tensor([[*tokens, *(token for prompt in prompts for token in prompt)]], device=self._device)
        places = torch.tensor([[*positions, *(i for length in lengths for i in range(length))]], device=self._device)
        ends = [*range(len(tokens)), *(len(tokens) + end - 1 for end in accumulate(lengths))]
        step = attention.Pass(cache, places[0, : len(tokens)], max(positions, default=-1) + 1, lengths)
        output = self._module(
            row,
            position_ids=places,
            use_cache=False,
            logits_to_keep=torch.tensor(ends, device=self._device),
            slime_pass=step,
        )
        if len(cache) != self._layers:
            raise EngineError(
                f"The engine 'local' cannot serve this model: {len(cache)} of its {self._layers} layers attend through "
                "transformers' AttentionInterface."
            )
        return output.logits[0]
