"""Says of how many held-out digits a model names the right one. Usage: digit_accuracy.py MODEL ROWS [--shuffled]

transformers computes it alone, one row at a time; with --shuffled every row is shown another row's image.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from slime_core.data.samples import Columns, sample_from_row
from slime_core.data.vision import load_processor
from slime_core.sample import Sample


def accuracy(folder: Path, file: Path, shuffled: bool) -> float:
    """Return the share of rows whose digit is the likeliest first token of an answer."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor = load_processor(str(folder))
    assert processor is not None
    lines = file.read_text(encoding="utf-8").splitlines()
    columns = Columns("messages", "label", image_key="images")
    rows = [sample_from_row(columns, json.loads(line), f"{file}:{n}") for n, line in enumerate(lines, 1)]
    right = 0
    for number, row in enumerate(rows):
        images = rows[number - 1].images if shuffled else row.images
        messages: Any = row.prompt[:-1]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for count in processor.counts(images):
            text = text.replace(processor.placeholder, processor.text(count), 1)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            given = processor.alone(Sample(tokens=ids[0].tolist(), images=images), ids)
            likeliest = model(input_ids=ids, **given).logits[0, -1].argmax()
        right += tokenizer.decode(likeliest) == row.label
    return right / len(rows)


if __name__ == "__main__":
    print(f"{accuracy(Path(sys.argv[1]), Path(sys.argv[2]), '--shuffled' in sys.argv[3:]):.3f}")
