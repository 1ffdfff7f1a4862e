"""`record`: keeps a bounded sample of the rollouts that are trained on. Called in every training rank.

The first rank keeps the samples of all; each of the others those whose log-probs it alone knows. A report puts them together.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.arguments.derived import derived
from slime_core.data.image_processor import Processor
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import SampleError, SlimeError
from slime_core.sample import Sample, reward_of
from slime_core.training.token_numbers import Numbers, TokenNumbers
from slime_report.recording import FOLDER, GROUPS, SAMPLES
from slime_report.recording.bounded_log import BoundedLog, drop_from
from slime_report.recording.choice import Candidate, choose
from slime_report.recording.pictures import image_rows
from slime_report.recording.rows import BYTES_PER_TOKEN, Kept, TokenTexts, group_rows, less, prompt_id, sample_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_report.arguments import RecordedRunArguments

ALWAYS = 32
"""So many rollouts are recorded whatever it takes; from then on `SHARE` of the run's time may be spent."""
SHARE = 0.005
LOOKED_AT = 20_000
"""Tokens of a rollout whose log-probs are looked at to choose samples by them."""
_LOG_PROBS = ("trainer_log_probs", "old_log_probs", "log_probs", "rollout_log_probs")
_ROLLOUTS_AT_LEAST = 8
"""For so many rollouts there is room, however long the samples are."""

_recorders: dict[Path, Recorder] = {}


def begin(run_dir: Path, first: int) -> None:
    """A run starts in this process with this rollout, before its training ranks do: what is known of an earlier one in the same folder
    counts for nothing, nor does what any of its ranks has recorded of later rollouts, also where there are fewer ranks now."""
    _recorders.pop(run_dir, None)
    for path in [*(run_dir / FOLDER).glob(SAMPLES), *(run_dir / FOLDER).glob(GROUPS)]:
        drop_from(path, first)


def record(args: RecordedRunArguments, rollout_id: int, tokens: TokenNumbers) -> None:
    """Keep samples of a rollout, if it is one of those that are recorded."""
    if not args.record_samples:
        return
    run_dir = Path(derived(args.run_dir))
    if run_dir not in _recorders:
        _recorders.clear()
        _recorders[run_dir] = Recorder(args, run_dir / FOLDER, int(os.environ.get("RANK", "0")))
    _recorders[run_dir].record(rollout_id, tokens)


class Recorder:
    """Records the rollouts of one run in one training rank.

    Args:
        rank: 0 keeps all samples that are chosen, and the groups.
    """

    def __init__(self, args: RecordedRunArguments, folder: Path, rank: int) -> None:
        self._args, self._rank = args, rank
        limit, count = args.record_limit, args.record_samples
        self._samples = BoundedLog(folder / SAMPLES.replace("*", str(rank)), limit)
        self._groups = BoundedLog(folder / GROUPS, limit // 4) if rank == 0 else None
        self._longest = max(32, limit // (_ROLLOUTS_AT_LEAST * count * BYTES_PER_TOKEN))
        self._known: set[str] = set()
        self._texts: TokenTexts | None = None
        self._started, self._spent, self._recorded = time.perf_counter(), 0.0, 0

    def record(self, rollout_id: int, tokens: TokenNumbers) -> None:
        """Keep samples and groups of a rollout, if it is one of those that are recorded and there is time for it."""
        started = time.perf_counter()
        if self._recorded >= ALWAYS and self._spent > SHARE * (started - self._started):
            return
        samples, rewards = tokens.samples, self._rewards(tokens)
        if self._groups is not None and self._groups.wants(rollout_id):
            row = group_rows(samples, rewards)
            if row is not None:
                self._groups.add([{"rollout": rollout_id, **row}])
        if self._samples.wants(rollout_id):
            self._keep(rollout_id, tokens, rewards)
            self._recorded += 1
        self._spent += time.perf_counter() - started

    def _keep(self, rollout_id: int, tokens: TokenNumbers, rewards: Sequence[float | None]) -> None:
        candidates = self._candidates(rollout_id, tokens, rewards)
        chosen = choose(candidates, self._args.record_samples, frozenset(self._known), rollout_id)
        if self._texts is None:
            self._texts = TokenTexts(_tokenizer(self._args.hf_checkpoint))
        rows = []
        for place, why in chosen.items():
            numbers = tokens.of(place)
            if self._rank and "log_probs" not in numbers:
                continue
            sample = tokens.samples[place]
            kept = Kept.of_sample(sample, self._longest)
            row = sample_row(sample, numbers, self._trainer(numbers), self._texts, kept)
            if sample.images:
                row["images"] = image_rows(sample, kept, self._processor(), self._longest * BYTES_PER_TOKEN // 2)
            rows.append({"rollout": rollout_id, "place": place, **row, "reward": rewards[place], "why": why})
            self._known.add(row["prompt"])
        self._samples.add(rows)

    def _processor(self) -> Processor | None:
        """What the checkpoint makes of images; None where it reads none."""
        args = self._args
        try:
            return processor_of(args)
        except SlimeError:
            return None

    def _candidates(self, rollout_id: int, tokens: TokenNumbers, rewards: Sequence[float | None]) -> list[Candidate]:
        """All samples of a rollout. The log-probs of some of them are looked at, up to a number of tokens."""
        losses: dict[int, float] = {}
        differences: dict[int, float] = {}
        places, left = list(range(len(tokens.samples))), LOOKED_AT
        for place in random.Random(rollout_id).sample(places, len(places)):
            left -= tokens.samples[place].response_length
            if left < 0:
                break
            numbers = tokens.of(place, *_LOG_PROBS)
            trainer, engine = self._trainer(numbers), numbers.get("rollout_log_probs")
            if trainer and (known := [value for value in trainer if value is not None]):
                losses[place] = -sum(known) / len(known)
                if apart := [abs(value) for value in less(trainer, engine) or () if value is not None]:
                    differences[place] = sum(apart) / len(apart)
        return [
            Candidate(
                place,
                sample.group_index if sample.group_index is not None else place,
                rewards[place],
                losses.get(place),
                differences.get(place),
                prompt_id(sample),
            )
            for place, sample in enumerate(tokens.samples)
        ]

    def _trainer(self, numbers: dict[str, Numbers]) -> Numbers | None:
        """The trainer's log-probs under the weights before training or, where nobody has found them, before the step."""
        names = ["trainer_log_probs", *([] if self._args.use_rollout_logprobs else ["old_log_probs"]), "log_probs"]
        for name in names:
            if any(numbers.get(name, ())):  # those of a sample that was not computed are all 0
                return numbers[name]
        return None

    def _rewards(self, tokens: TokenNumbers) -> list[float | None]:
        """The rewards of all samples; None where they count for nothing: without advantages, and in fine-tuning, where each prompt has one
        sample with a reward of 0."""
        found = [self._reward(sample) for sample in tokens.samples]
        alone = len({sample.group_index for sample in tokens.samples}) == len(found)
        counts = "advantages" in tokens.columns and not (alone and not any(found))
        return found if counts else [None] * len(found)

    def _reward(self, sample: Sample) -> float | None:
        try:
            return reward_of(sample, self._args.reward_key)
        except SampleError:
            return None


def _tokenizer(checkpoint: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint; None where it has none that can be loaded."""
    try:
        return load_tokenizer(checkpoint)
    except SlimeError:
        return None
