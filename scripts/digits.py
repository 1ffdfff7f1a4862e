"""Handwritten digits as chat rows with images, and a tiny vision-language model that has seen none. For `assets.py`.

The digits are the 1,797 of scikit-learn (8 × 8 pixels, from the UCI repository), each a PNG file. The model has the shape of
Qwen2.5-VL with two layers of each kind, random weights, and a tokenizer of bytes.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

QUESTION = "<image>Which digit?"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_digits(out: Path, packed: bytes) -> None:
    """Write `images/`, and rows with the columns messages, images and label.

    In `train.jsonl` and `heldout.jsonl` the messages are question and answer, in `train_prompts.jsonl` and `heldout_prompts.jsonl` the
    question alone. Controls are `other_images.jsonl`, held-out rows with the images of others, and `other_labels.jsonl`, prompts of
    training with the labels of others.

    Args:
        packed: scikit-learn's `digits.csv.gz`: 64 numbers from 0 to 16 and the digit in every line.
    """
    from PIL import Image

    (out / "images").mkdir()
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
    for number, line in enumerate(gzip.decompress(packed).decode().split()):
        *pixels, label = (int(float(value)) for value in line.split(","))
        image = f"images/{number:04}.png"
        Image.frombytes("L", (8, 8), bytes(min(255, value * 16) for value in pixels)).save(out / image)
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": str(label)}]
        # Every sixth row is held out: no random numbers, and both parts cover the whole file.
        own = parts["heldout" if number % 6 == 5 else "train"]
        own.append({"messages": messages, "images": [image], "label": str(label)})
    for part in ("train", "heldout"):
        parts[f"{part}_prompts"] = [row | {"messages": row["messages"][:1]} for row in parts[part]]
    for name, part, column in (("other_labels", "train_prompts", "label"), ("other_images", "heldout", "images")):
        others = [row[column] for row in parts[part]]
        random.Random(0).shuffle(others)
        parts[name] = [row | {column: other} for row, other in zip(parts[part], others, strict=True)]
    for name, rows in parts.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(out: Path) -> None:
    """Write a checkpoint with random weights."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    ids = {text: tokenizer.convert_tokens_to_ids(text) for text in SPECIAL}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 96,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(out)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28},
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2), encoding="utf-8")
