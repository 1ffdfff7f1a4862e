"""Hook functions of a user's own project, named by import path in the RL tests."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from slime_core.sample import Sample
from slime_core.testing import EchoEngine

UPDATE_S, PATIENCE_S, FIRST_ROLLOUT = 0.3, 1.0, 12  # requests


class SendingEngine(EchoEngine):
    """Takes its weights from the trainer at once, also while it generates. A second rollout under the first weights lasts
    until the first one has been trained, and a while longer."""

    def __init__(self, args):
        super().__init__(args)
        self._metrics = Path(args.run_dir) / "metrics.jsonl"

    async def generate(self, input_ids, sampling_params, request_id=None):
        if self.version == 0 and self._count >= FIRST_ROLLOUT:
            while not self._metrics.read_text():
                await asyncio.sleep(0.02)
            end = time.monotonic() + PATIENCE_S
            while self.version == 0 and time.monotonic() < end:
                await asyncio.sleep(0.02)
        return await super().generate(input_ids, sampling_params, request_id)

    def weight_sender(self):
        return self

    def send(self, weights, version):
        for _ in weights:
            pass
        time.sleep(UPDATE_S)
        self.version = version


LOOKS_S = 0.0


def look_for_a_while(args, sample: Sample) -> Sample:
    """A sample hook that takes its time, for earlier samples longer."""
    time.sleep(LOOKS_S * (5 - (sample.index or 0) % 6))
    return sample


scored: list[int | None] = []


async def wait_for_others(args, sample: Sample) -> Sample:
    """A sample hook that is done with the first sample once another one has its reward."""
    deadline = time.monotonic() + 20
    while sample.index == 0 and not scored:
        assert time.monotonic() < deadline, "no other sample was scored meanwhile"
        await asyncio.sleep(0.01)
    return sample


async def note_and_score(args, sample: Sample) -> float:
    scored.append(sample.index)
    return await even_tokens(args, sample)


async def even_tokens(args, sample: Sample) -> float:
    """The share of even token ids in the response: varies within a group, and a model can learn it."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


async def same_for_all(args, sample: Sample) -> float:
    return 1.0


def in_half_of_the_groups(args, samples: list[Sample], **kwargs) -> bool:
    """Keeps groups with even numbers."""
    return samples[0].group_index % 2 == 0


def log_reward_to_file(rollout_id, args, samples, rollout_extra_metrics, rollout_time) -> bool:
    with open(f"{args.run_dir}/own.log", "a", encoding="utf-8") as file:
        file.write(f"{rollout_id} {len(samples)} {rollout_time > 0}\n")
    return True


def double_rewards(args, samples: list[Sample]) -> tuple[list[float], list[float]]:
    raw = [float(sample.reward) for sample in samples]
    return raw, [2 * reward for reward in raw]


def pop_newest(args, rollout_id, buffer: list[list[Sample]], num_samples: int) -> list[list[Sample]]:
    groups = buffer[::-1][:num_samples]
    del buffer[-num_samples:]
    return groups


def over_three_tokens(total_lengths, response_lengths, loss_masks, calculate_per_token_loss=False):
    """A reducer of the policy loss: every sample over the same number of tokens, as Dr. GRPO has it."""

    def reduce(x):
        return sum((own * mask).sum() / 3 for own, mask in zip(x.split(response_lengths), loss_masks, strict=True))

    return reduce


async def forgets_some_log_probs(args, sample: Sample) -> float:
    """As of an agent whose second answer came from somewhere else."""
    if sample.index == 1:
        sample.rollout_log_probs = None
    return await even_tokens(args, sample)
