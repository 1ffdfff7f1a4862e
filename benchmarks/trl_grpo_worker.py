"""One run of TRL's GRPOTrainer. `benchmarks.grpo` starts it with the interpreter that has TRL.

    python benchmarks/trl_grpo_worker.py JOB.json RESULT.json

The job is `benchmarks.grpo.Work` with learning rate and further GRPOConfig options. The result holds, for every step,
when it ended, the seconds that its parts took, its tokens and its mean reward.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NUMBER = re.compile(r"-?\d+")
COUNTERS = ("generation", "reward", "training", "prompt_tokens", "generated_tokens", "trained_tokens")


def main(job_path: Path, result_path: Path) -> None:
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    job = json.loads(job_path.read_text())
    batch, samples = job["prompts"] * job["samples"], job["samples"]
    steps: list[dict[str, float]] = []

    @contextmanager
    def timed(part: str) -> Iterator[dict[str, float]]:
        started = time.perf_counter()
        yield steps[-1]
        steps[-1][part] += time.perf_counter() - started

    class Timed(trl.GRPOTrainer):
        """TRL's trainer that notes how long its parts take and how many tokens there are.

        It overrides private methods, so it goes with the one version that `benchmarks.sft.TRL` names.
        """

        def _generate(self, *args: Any) -> Any:
            with timed("generation") as step:
                found = super()._generate(*args)
            step["prompt_tokens"] += sum(map(len, found[0]))
            step["generated_tokens"] += sum(map(len, found[1]))
            return found

        def _calculate_rewards(self, *args: Any) -> Any:
            with timed("reward") as step:
                rewards = super()._calculate_rewards(*args)
            step["mean_reward"] = rewards.mean().item()
            groups = rewards.view(-1, samples)
            step["without_gradient"] = samples * (groups.amax(1) == groups.amin(1)).sum().item()
            return rewards

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            steps[-1]["trained_tokens"] += inputs["completion_mask"].sum().item()
            return super()._compute_loss(model, inputs)

    class Steps(TrainerCallback):
        """Opens a row when a step begins and closes it when the optimizer has stepped."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append({"end": 0.0, **dict.fromkeys(COUNTERS, 0.0)})
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = steps[-1]
            step["end"] = time.perf_counter()
            step["training"] = step["end"] - self.began - step["generation"] - step["reward"]

    with tempfile.TemporaryDirectory() as scratch:
        settings = {"per_device_train_batch_size": 8, **job["options"]}  # 8 is GRPOConfig's default
        config = trl.GRPOConfig(
            output_dir=scratch,
            gradient_accumulation_steps=batch // settings["per_device_train_batch_size"],
            num_generations=samples,
            max_completion_length=job["length"],
            generation_kwargs={"min_new_tokens": job["length"]},
            max_steps=job["steps"],
            shuffle_dataset=False,
            learning_rate=job["lr"],
            lr_scheduler_type="constant",
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        )
        trainer = Timed(
            model=job["model"],
            reward_funcs=last_number,
            args=config,
            train_dataset=Dataset.from_list(job["rows"]),
            callbacks=[Steps()],
        )
        trainer.train()
    result_path.write_text(json.dumps(steps))


def last_number(completions: list[Any], label: list[str], **_: Any) -> list[float]:
    """1 where the last number of a response is its label."""
    numbers = [NUMBER.findall(messages[-1]["content"]) for messages in completions]
    return [float(found[-1:] == [right]) for found, right in zip(numbers, label, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
