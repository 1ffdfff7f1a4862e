"""Says of how many held-out digits models name the right one. Usage: digit_accuracy.py ROWS MODEL…

transformers computes it alone, one row at a time; and once more as a control, where every row is shown another row's image.
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


def accuracies(folder: Path, file: Path) -> tuple[float, float]:
    """Return the share of rows whose digit is the likeliest first token of an answer, and the same where each row is shown the image
    of the one before."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor = load_processor(str(folder))
    assert processor is not None
    lines = file.read_text(encoding="utf-8").splitlines()
    columns = Columns("messages", "label", image_key="images")
    rows = [sample_from_row(columns, json.loads(line), f"{file}:{n}") for n, line in enumerate(lines, 1)]
    named = []
    for row in rows:
        messages: Any = row.prompt[:-1]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for count in processor.counts(row.images):
            text = text.replace(processor.placeholder, processor.text(count), 1)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            given = processor.alone(Sample(tokens=ids[0].tolist(), images=row.images), ids)
            named.append(tokenizer.decode(model(input_ids=ids, **given).logits[0, -1].argmax()))
    # All questions and all sizes are the same, so an image answers alike wherever it is shown.
    others = [named[-1], *named[:-1]]
    right, control = (sum(n == row.label for n, row in zip(names, rows, strict=True)) for names in (named, others))
    return right / len(rows), control / len(rows)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        right, control = accuracies(Path(name), Path(sys.argv[1]))
        print(f"{name}: {right:.1%} (shown the image of another row: {control:.1%})", flush=True)
