"""A byte-level tokenizer with a chat template, and a random model for it, made on the spot. They need transformers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@lru_cache(maxsize=1)
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Return a Hugging Face tokenizer with one token per byte; `<|im_start|>` and `<|im_end|>` enclose messages."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|pad|>"])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers says no types here
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tiny_checkpoint(folder: Path, weights: bool = True) -> Path:
    """Write a Hugging Face checkpoint into `folder`, and return the folder.

    Args:
        folder: exists.
        weights: write a random Llama of two small layers too, which needs torch, and not the tokenizer alone.
    """
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(folder)
    if weights:
        from safetensors.torch import save_file

        config = {**_CONFIG, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(_random_weights(len(tokenizer)), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def _random_weights(vocabulary: int) -> dict[str, Tensor]:
    """Return the parameters of the model of `_CONFIG` by name, the same ones in every call."""
    import torch

    width, inner, keys = 32, 64, 16
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (vocabulary, width), "norm": (width,)}
    for n in range(_CONFIG["num_hidden_layers"]):
        attention = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        mlp = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        shapes |= {f"layers.{n}.self_attn.{name}_proj": shape for name, shape in attention.items()}
        shapes |= {f"layers.{n}.mlp.{name}_proj": shape for name, shape in mlp.items()}
        shapes |= {f"layers.{n}.{name}_layernorm": (width,) for name in ("input", "post_attention")}
    generator = torch.Generator().manual_seed(0)
    return {
        f"model.{name}.weight": torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
