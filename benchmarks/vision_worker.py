"""slime's way from rows with images to what a vision-language model is given, once over a file. `benchmarks.vision` starts it.

    python -m benchmarks.vision_worker JOB.json RESULT.json

The job names checkpoint, data file, and the token budget of a packed row. The result holds seconds, those of the processor, images, image tokens, a sum over
all pixels, and the memory of the process: resident when everything is loaded, and the largest in all (VmHWM).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(job_path: Path, result_path: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from benchmarks.memory_of import largest_mib, resident_mib
    from slime_core.data.rows import open_rows
    from slime_core.data.samples import Columns, sample_from_row
    from slime_core.data.vision import load_processor
    from slime_core.plugins import Plugins
    from slime_core.tensors.micro_batches import pack_micro_batch
    from slime_core.training.batches import make_train_batch
    from slime_rollout_sft.conversations import Conversations, Policy
    from slime_torch.vision import Vision

    job = json.loads(job_path.read_text())
    torch.set_num_threads(job["threads"])
    model = AutoModelForImageTextToText.from_pretrained(job["model"])
    processor = load_processor(job["model"])
    assert processor is not None
    conversations = Conversations(Policy(job["model"], "messages"), Plugins().select("loss_mask", "auto"))
    vision, columns = Vision(model, processor), Columns("messages", image_key="images")
    rows, loaded = open_rows([job["data"]]), resident_mib()
    started, cpu = time.perf_counter(), time.process_time()
    samples = []
    for number in range(len(rows)):
        done = conversations.complete(sample_from_row(columns, rows[number], f"{job['data']}:{number + 1}"))
        assert done is not None
        samples.append(done)
    batch = make_train_batch(samples, mean="token", max_tokens=job["max_tokens"])
    images, tokens, total = 0, 0, 0.0
    for micro_batch in batch.micro_batches:
        row = vision.laid(
            pack_micro_batch(batch, micro_batch, vocab_size=model.config.text_config.vocab_size),
            [samples[number] for number in micro_batch],
        )
        images += len(row.images["image_grid_thw"])
        tokens += int((row.input_ids == processor.token).sum())
        total += float(row.images["pixel_values"].sum(dtype=torch.float64))
    took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    found = {**took, "images": images, "image_tokens": tokens, "pixels": total}
    result_path.write_text(json.dumps({**found, "loaded_mib": loaded, "largest_mib": largest_mib()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
