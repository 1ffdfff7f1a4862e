"""Tiny random vision-language checkpoints of real architectures, with a tokenizer of bytes, and images to show them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AROUND = ("<fake_token_around_image>", "<global-img>")
SHOWN = {"gemma3": "<|vision_start|>", "smolvlm": "<|image_pad|>"}
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm")
ROTARY = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}


def write_tokenizer(folder: Path, family: str) -> Any:
    """Write a tokenizer of the 256 bytes and the special tokens, with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL + AROUND])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    shown = SHOWN.get(family, "<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", shown)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_config(family: str, **changes: Any) -> Any:
    """The configuration of a model of two layers, whose vision tower has two."""
    from transformers import AutoConfig

    special = {text: 256 + number for number, text in enumerate(SPECIAL)}
    text: dict[str, Any] = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": special["<|im_end|>"],
        "pad_token_id": None,
        **changes,
    }
    tower: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48}
    ids = {
        "image_token_id": special["<|image_pad|>"],
        "video_token_id": special["<|video_pad|>"],
        "vision_start_token_id": special["<|vision_start|>"],
        "vision_end_token_id": special["<|vision_end|>"],
    }
    if family == "gemma3":
        text |= {
            "query_pre_attn_scalar": 16,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
        }
        text |= {"rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4} for k in text["layer_types"]}}
        tower |= {
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        }
        own = {"boi_token_index": ids["vision_start_token_id"], "eoi_token_index": ids["vision_end_token_id"]}
        own |= {"image_token_index": ids["image_token_id"], "mm_tokens_per_image": 4}
        return AutoConfig.for_model(family, text_config=text, vision_config=tower, **own)
    if family == "smolvlm":
        tower |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
        text |= {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
        own = {"image_token_id": ids["image_token_id"], "scale_factor": 2, "tie_word_embeddings": False}
        return AutoConfig.for_model(family, text_config=text, vision_config=tower, **own)
    rotary = {**ROTARY, "mrope_interleaved": True} if family == "qwen3_vl" else ROTARY
    text |= {"rope_parameters": rotary}
    tower |= {"depth": 2, "num_heads": 2, "out_hidden_size": text["hidden_size"]}
    if family == "qwen2_vl":
        text.pop("head_dim")
        tower |= {"patch_size": 14, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": text["hidden_size"]}
        return AutoConfig.for_model(family, text_config=text, vision_config=tower, tie_word_embeddings=False, **ids)
    if family == "qwen3_vl":
        tower |= {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    else:
        text.pop("head_dim")
        tower |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    return AutoConfig.for_model(family, text_config=text, vision_config=tower, tie_word_embeddings=False, **ids)


def make_model(family: str, **changes: Any) -> Any:
    """A random model, none of whose parts is so small that a mistake in it would not be seen."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(make_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias") or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4.0)
    return model


def write_checkpoint(folder: Path, family: str, **changes: Any) -> Path:
    """Write a whole checkpoint: weights, tokenizer with template, image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(family, **changes).save_pretrained(folder)
    write_tokenizer(folder, family)
    if family == "gemma3":
        given: dict[str, Any] = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 56, "width": 56}}
        given |= {"do_pan_and_scan": False, "image_seq_length": 4}
    elif family == "smolvlm":
        given = {"image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": False}
        given |= {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 56}}
    else:
        given = {"image_processor_type": "Qwen2VLImageProcessor", "merge_size": 2, "temporal_patch_size": 2}
        given |= {"patch_size": 16 if family == "qwen3_vl" else 14}
        given |= {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    return folder


def picture(width: int, height: int, seed: int = 0, format: str = "PNG") -> bytes:
    """An encoded image of noise."""
    generator = torch.Generator().manual_seed(seed + 1000 * width + height)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format)
    return buffer.getvalue()
