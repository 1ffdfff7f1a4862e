"""Whether options get along: `python -m benchmarks.combinations`, on a CPU.

Thousands of pairs of options meet in no test. Here a tiny model is trained with options drawn at random; the run is done again from each
of its checkpoints, and once with an option turned over that must not change a number. What is left behind is compared bit for bit:
weights, optimizer and random states, data source, metrics. A run may also be refused, in a sentence. A traceback, a difference, or a
resumed run that fails is a fault: its command is printed, without the options that are not needed for it, and the status is 1.

tests/test_combinations.py tries a few in every test run.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any

from benchmarks.run_state import differences
from slime_core.arguments import RunArguments
from slime_core.cli import main as slime
from slime_core.run.checkpoints import write_latest
from slime_core.sample import Sample, Status
from slime_core.testing.checkpoint import tiny_checkpoint
from slime_core.whole_file import write_whole
from slime_rollout_sglang.partial import fresh

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.contracts.data import DataSource
    from slime_core.contracts.engine import Generates

ROLLOUTS = 4

COMMON = """
--micro-batch-size 1|2|3
--use-dynamic-batch-size --max-tokens-per-gpu 60|200|900
--calculate-per-token-loss
--num-steps-per-rollout 2
--optimizer adam|adamw|sgd
--lr-decay-style constant|linear|cosine
--lr-warmup-iters 1|3
--lr-warmup-fraction 0.3
--lr-decay-iters 3
--min-lr 0.001
--clip-grad 0|0.1
--weight-decay 0.1
--rollout-shuffle
--data-source-path streaming --shuffle-buffer-size 3
--prompt-data-weights 1
--async-save
--save-total-limit 2
--save-hf {folder}/hf
--log-probs-chunk-size -1|7
--lora-rank 2 --lora-dropout 0.0|0.3 --target-modules all-linear|q_proj
--freeze-params-name-list embed|layers.0|norm
--only-train-params-name-list layers.1|mlp
--reset-optimizer-states
--gradient-checkpointing
--bf16
--fp8-format e4m3|hybrid --fp8-recipe tensorwise|delayed|blockwise --fp8-emulation
--seed 1|2
--rollout-seed 1|2
--global-batch-size 2|4|8
--adam-beta2 0.9
--sgd-momentum 0.0|0.9
--lora-alpha 8
--record-samples 0|50
--malformed-row skip
--save-debug-rollout-data {folder}/dump/{{rollout_id}}
--save-debug-train-data {folder}/dump/trained_{{rollout_id:03d}}
--eval-interval 1|2|3 --eval-prompt-data held {folder}/rows.jsonl@[0:6]
--early-stopping-patience 1|2 --early-stopping-keep last|best --early-stopping-metric loss|reward
--skip-eval-before-train
"""
OF_SFT = """
--num-workers 1
--over-long-sample truncate|skip
--rollout-max-context-len 200
--eval-generate 3 --rollout-engine local --rm-type final_answer --eval-max-response-len 4
"""
OF_RL = """
--advantage-estimator grpo|gspo|cispo|dr_grpo|rloo|reinforce_plus_plus|reinforce_plus_plus_baseline|ppo
--loss-type policy_loss|gspo|cispo
--constant-length-loss
--use-rollout-logprobs
--use-tis --custom-tis-function-path tis|icepop|sequence_tis|geometric_mask
--get-mismatch-metrics
--use-kl-loss --kl-loss-coef 0|0.1 --kl-loss-type k1|k2|k3|low_var_kl
--kl-coef 0.1
--entropy-coef 0.01
--use-opsm --opsm-delta 0.001
--use-unbiased-kl
--normalize-advantages
--disable-rewards-normalization
--disable-grpo-std-normalization
--update-weights-interval 2
--keep-old-actor
--ref-update-interval 2
--rollout-temperature 0.7|1.3
--rollout-top-p 0.9
--rollout-top-k 5
--rollout-stop a b c d e f g h
--dynamic-sampling-filter-path check_reward_nonzero_std|check_reward_nonzero_std_with_fallback
--over-sampling-batch-size 4|6
--dynamic-sampling-order finished|prompt
--partial-rollout
--mask-offpolicy-in-partial-rollout
--rollout-function-path fully_async --max-staleness 0
--rollout-sample-hook-path benchmarks.combinations.look
--rollout-data-postprocess-path benchmarks.combinations.leave_as_it_is
--no-share-prompts
--no-skip-zero-advantages
--custom-reward-post-process-path dapo_overlong --overlong-buffer-len 3
--eps-clip-high 0.28
--eps-clip-c 3.0
--critic-lr 0.001
--num-critic-only-steps 1
--n-samples-per-eval-prompt 2
--eval-temperature 0|0.5
--rollout-max-context-len 80
--eps-clip 0.01
--gamma 0.9
--lambd 0.9
--tis-clip 1.01
--log-passrate
--log-multi-turn
--max-dynamic-sampling-rounds 1|2
--custom-generate-function-path benchmarks.combinations.in_two_turns
--rollout-sample-filter-path benchmarks.combinations.without_one
--rollout-all-samples-process-path benchmarks.combinations.once_more
--custom-pg-loss-reducer-function-path benchmarks.combinations.means_of_samples
--rollout-stop-token-ids 65 66 67 68
--rollout-max-prompt-len 60
--local-max-running-requests 1|3
--local-max-total-tokens 300|900
--local-decoding rows|pages
"""
SFT = "--rollout-function-path sft --loss-type sft_loss --disable-compute-advantages-and-returns"
RL = (
    "--apply-chat-template --rollout-engine local --label-key label --n-samples-per-prompt 2|3 --rollout-max-response-len 3|30 "
    "--custom-rm-path benchmarks.combinations.reward"
)
TURNED_OVER = ("--async-save", "--gradient-checkpointing")
"""Options of which runs with and without them must have the same numbers."""

ANSWER = (79, 75, 10)
"""The tokens with which `in_two_turns` answers the model."""
LONGEST_S = 0.003
"""How long a reward or a hook takes at most, which must not matter."""

Option = list[str]


async def reward(args: RunArguments, sample: Sample) -> float:
    """A reward that varies within a group, after a while that is another one each time."""
    await asyncio.sleep(SystemRandom().random() * LONGEST_S)
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 7 for token in response) / 10 - 0.5


def look(args: RunArguments, sample: Sample) -> Sample:
    """A sample hook that counts how often it saw a sample, after a while that is another one each time."""
    time.sleep(SystemRandom().random() * LONGEST_S)
    sample.metadata = {**sample.metadata, "seen": sample.metadata.get("seen", 0) + 1}
    return sample


def leave_as_it_is(args: RunArguments, rollout_id: int, rollout_data: dict[str, Any]) -> None:
    """A postprocess hook that changes nothing."""


async def in_two_turns(
    args: RunArguments, sample: Sample, sampling_params: dict[str, Any], engine: Generates
) -> Sample:
    """A generate function that answers the model once. What an abort has cut off begins anew."""
    prompt = sample.tokens[: len(sample.tokens) - sample.response_length]
    turn = await engine.generate(prompt, sampling_params)
    made, mask, log_probs, text = list(turn.tokens), [1] * len(turn.tokens), list(turn.log_probs), turn.text
    if turn.finish_reason != "abort":
        made, mask, log_probs = [*made, *ANSWER], [*mask, *(0 for _ in ANSWER)], [*log_probs, *(0.0 for _ in ANSWER)]
        turn = await engine.generate([*prompt, *made], sampling_params)
        made, mask, log_probs = [*made, *turn.tokens], [*mask, *(1 for _ in turn.tokens)], [*log_probs, *turn.log_probs]
    return sample.changed(
        tokens=[*prompt, *made],
        response_length=len(made),
        loss_mask=mask,
        rollout_log_probs=log_probs,
        response=text + turn.text,
        status={"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}[turn.finish_reason],
    )


def without_one(args: RunArguments, groups: list[list[Sample]]) -> None:
    """A filter that leaves a sample out of training."""
    groups[0][0].remove_sample = True


def once_more(args: RunArguments, all_samples: list[list[Sample]], data_source: DataSource) -> None:
    """A hook that gives the prompt of the first group to the buffer."""
    data_source.add_samples([[fresh(sample) for sample in all_samples[0]]])


def means_of_samples(
    total_lengths: list[int], response_lengths: list[int], loss_masks: list[Tensor], calculate_per_token_loss: bool
) -> Callable[[Tensor], Tensor]:
    """A reducer that adds up the means of the samples."""

    def reduced(values: Tensor) -> Tensor:
        parts = values.split(response_lengths)
        return sum(
            ((part * mask).sum() / mask.sum().clamp(min=1) for part, mask in zip(parts, loss_masks, strict=True)),
            start=values.new_zeros(()),
        )

    return reduced


def drawn(r: Random, table: str, share: float, folder: Path) -> Iterator[Option]:
    """Options of a table, each with this probability, with one of the values that it lists."""
    for line in table.strip().splitlines():
        if r.random() < share:
            yield [r.choice(word.split("|")).format(folder=folder) for word in line.split()]


def combination(seed: int, folder: Path) -> tuple[str, list[Option]]:
    """The command and the options of a run: those that every run has come first."""
    r = Random(seed)
    share, is_sft = r.choice((0.1, 0.2, 0.35)), r.random() < 0.3
    fixed = (
        f"--hf-checkpoint {folder}/model --prompt-data {folder}/rows.jsonl --input-key messages --rollout-batch-size 4 --lr 0.003 "
        f"--num-rollout {ROLLOUTS} --save-interval 1"
    )
    options = [*([r.choice(word.split("|")) for word in line.split()] for line in (fixed, SFT if is_sft else RL))]
    options += drawn(r, COMMON, share, folder)
    options += drawn(r, OF_SFT if is_sft else OF_RL, share, folder)
    return r.choice(("train", "train", "train-async")), options


def prepare(folder: Path) -> None:
    """Write the model and its rows into a folder."""
    (folder / "model").mkdir()
    tiny_checkpoint(folder / "model")
    rows = []
    for n in range(20):
        asked, answer = f"What is {n} plus {n + 1}?{' Think.' * (n % 6)}", f"It is {2 * n + 1}. {'Easy. ' * (n % 4)}"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rows.append(json.dumps({"messages": messages, "label": str(2 * n + 1)}) + "\n")
    write_whole(folder / "rows.jsonl", "".join(rows))


def start(command: str, options: list[Option], save: Path) -> tuple[bool, str]:
    """Run slime in this process, from the newest checkpoint in the folder. Returns whether it succeeded, and what it said."""
    words = [command, *(word for option in options for word in option), "--save", str(save), "--load", str(save)]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = slime(words)
        except SystemExit as exit:
            status = exit.code if isinstance(exit.code, int) else 1
    return status == 0, said.getvalue()


def forget(save: Path, after: str) -> None:
    """Remove the checkpoints of a run that are newer than this one."""
    for checkpoint in save.glob("iter_*"):
        if checkpoint.name > after:
            shutil.rmtree(checkpoint)
    write_latest(save / after)


def attempt(command: str, options: list[Option], folder: Path) -> str:
    """Try a combination: "same", "refused", or what is wrong."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    succeeded, said = start(command, options, work / "whole")
    if "Traceback" in said:
        return f"traceback: {said[-1500:]}"
    if not succeeded:
        return "refused"
    names = sorted(checkpoint.name for checkpoint in (work / "whole").glob("iter_*"))
    for name in names[:-1]:
        rest = Path(shutil.copytree(work / "whole", work / f"from {name}", symlinks=True))
        forget(rest, name)
        succeeded, said = start(command, options, rest)
        if not succeeded:
            return f"cannot be resumed from {name}: {said[-500:]}"
        if found := differences(work / "whole", rest):
            return f"resumed from {name}: {'; '.join(found[:3])}"
    for option in TURNED_OVER:
        others = [other for other in options if other != [option]]
        others = others if len(others) < len(options) else [*options, [option]]
        succeeded, said = start(command, others, work / option)
        found = differences(work / "whole", work / option) if succeeded else []
        if found := [phrase for phrase in found if "/state.json/arguments/" not in phrase]:
            return f"{option} turned over: {'; '.join(found[:3])}"
    return "same"


def is_fault(outcome: str) -> bool:
    """Whether an outcome is none of those that may be."""
    return outcome not in ("same", "refused")


def needed(command: str, options: list[Option], folder: Path) -> list[Option]:
    """The options without which a combination is no fault, those that every run has among them."""
    left, is_smaller = list(options), True
    while is_smaller:
        is_smaller = False
        for option in left[2:]:
            fewer = [other for other in left if other is not option]
            if is_fault(attempt(command, fewer, folder)):
                left, is_smaller = fewer, True
    return left


def search(seeds: Iterator[int], folder: Path, until: float) -> Counter[str]:
    """Try a combination for each seed until that moment of `time.monotonic`; print faults. Returns how often what came of them."""
    counted: Counter[str] = Counter()
    for seed in seeds:
        if time.monotonic() > until:
            break
        command, options = combination(seed, folder)
        outcome = attempt(command, options, folder)
        counted["fault" if is_fault(outcome) else outcome] += 1
        if is_fault(outcome):
            few = needed(command, options, folder)
            words = shlex.join([word for option in few for word in option])
            print(f"FAULT of seed {seed}: {outcome}\n    slime {command} {words}", flush=True)
    return counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="after these no further combination is begun (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the first combination; each has the next one (0)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="combinations-") as name:
        prepare(Path(name))
        counted = search(count(asked.seed), Path(name), time.monotonic() + 60 * asked.minutes)
    print(f"{sum(counted.values())} combinations from seed {asked.seed}: {dict(counted)}")
    return int(counted["fault"] > 0)


if __name__ == "__main__":
    sys.exit(main())
