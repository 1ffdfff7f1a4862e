"""One run of TRL's SFTTrainer over prepared batches. `benchmarks.sft` starts it with the interpreter that has TRL.

    python benchmarks/trl_worker.py JOB.json RESULT.json

The job names model folder, rows of `input_ids` and `labels` in the order in which they are trained, rows per step,
learning rate, and further SFTConfig options. The result holds the loss of every step and the times at which steps ended.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(job_path: Path, result_path: Path) -> None:
    import transformers
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        """Collects what the benchmark compares."""

        def __init__(self) -> None:
            self.losses: list[float] = []
            self.ends: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                self.losses.append(logs["loss"])

    job = json.loads(job_path.read_text())
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.SFTConfig(
            output_dir=scratch,
            per_device_train_batch_size=job["batch_size"],
            max_steps=len(job["rows"]) // job["batch_size"],
            train_sampling_strategy="sequential",
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{"max_length": job["max_length"], **job["options"]},
        )
        trainer = trl.SFTTrainer(
            model=job["model"], args=config, train_dataset=Dataset.from_list(job["rows"]), callbacks=[recorder]
        )
        trainer.train()
    found = {"losses": recorder.losses, "ends": recorder.ends}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    result_path.write_text(json.dumps({**found, "versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
