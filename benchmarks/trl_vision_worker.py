"""TRL's way from rows with images to what a vision-language model is given, once over a file. `benchmarks.vision` starts it with the
interpreter that has TRL.

    python benchmarks/trl_vision_worker.py JOB.json RESULT.json

The job names checkpoint, data file, rows of a batch, and whether batches are kept: a step that accumulates gradients fetches all of its
batches before it computes the first. The result is that of `vision_worker`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(job_path: Path, result_path: Path) -> None:
    import torch

    let_torchvision_load()
    from datasets import Image, List, load_dataset
    from memory_of import largest_mib, resident_mib  # beside this file
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    job = json.loads(job_path.read_text())
    torch.set_num_threads(job["threads"])
    processor: Any = AutoProcessor.from_pretrained(job["model"])
    collate = DataCollatorForVisionLanguageModeling(processor)
    data = load_dataset("json", data_files=job["data"], split="train", cache_dir=job["cache"])
    data = data.cast_column("images", List(Image()))
    token, loaded = processor.image_token_id, resident_mib()
    started, cpu = time.perf_counter(), time.process_time()
    images, tokens, total, kept = 0, 0, 0.0, []
    for first in range(0, len(data), job["batch"]):
        batch = collate([data[number] for number in range(first, min(first + job["batch"], len(data)))])
        images += len(batch["image_grid_thw"])
        tokens += int((batch["input_ids"] == token).sum())
        total += float(batch["pixel_values"].sum(dtype=torch.float64))
        kept = [*kept, batch] if job["keep"] else []
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    found = {**took, "images": images, "image_tokens": tokens, "pixels": total}
    result_path.write_text(json.dumps({**found, "loaded_mib": loaded, "largest_mib": largest_mib()}))


def let_torchvision_load() -> None:
    """Let torchvision be imported beside a torch for CPUs. Its wheels on PyPI are made for CUDA, so that its compiled operators (nms,
    roi_align …) cannot be loaded there; processors of images use none of them."""
    import torch

    register: Any = torch.library.register_fake

    def without_own(op: Any, *args: Any, **options: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::") and not hasattr(torch.ops.torchvision, "nms"):
            return lambda function: function
        return register(op, *args, **options)

    torch.library.register_fake = without_own
    import torchvision  # noqa: F401

    torch.library.register_fake = register


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
