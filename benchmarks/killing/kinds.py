"""The kinds of runs that are killed, and the hooks that they call by import path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COMMON = "--rollout-shuffle --lr 1e-3 --weight-decay 0.1 --save-interval 2 --save-total-limit 3 --input-key messages"
SFT = (
    f"{COMMON} --rollout-function-path sft --loss-type sft_loss --calculate-per-token-loss --disable-compute-advantages-and-returns "
    "--num-epoch 2 --rollout-batch-size 4 --global-batch-size 2 --lr-decay-style cosine --lr-warmup-iters 2 --eval-interval 3"
)
RL = (
    f"{COMMON} --rollout-engine local --apply-chat-template --custom-rm-path benchmarks.killing.kinds.even_tokens --rollout-batch-size 3 "
    "--n-samples-per-prompt 3 --rollout-max-response-len 10 --num-rollout 8 --num-steps-per-rollout 3 --eval-interval 3 "
    "--eval-max-response-len 6"
)


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        commands: of slime; each start takes one of them. Their results must be the same.
        flags: of it.
        export: the folder that `--save-hf` names.
        kills: how many, if the command line does not say.
        shows: a metric that is not zero in all rollouts, or else the runs do not do what the kind is about.
    """

    commands: tuple[str, ...]
    flags: str
    export: str = "hf"
    kills: int = 10
    shows: str = ""


KINDS = {
    "sft": Kind(("train", "train-async"), SFT, export="hf-{rollout_id}", kills=100),
    "grpo": Kind(("train",), RL, kills=40),
    "one step off": Kind(("train-async",), RL),
    # Older weights than those that are trained would come and go with the clock: only without them are two runs equal.
    "fully async": Kind(("train-async",), f"{RL} --rollout-function-path fully_async --max-staleness 0"),
    "partial": Kind(
        ("train-async",),
        f"{RL} --partial-rollout --mask-offpolicy-in-partial-rollout --over-sampling-batch-size 5 "
        f"--rollout-max-response-len 24 --rollout-stop {' '.join('abcdefghijklmnopqrstuvwxyz')} "
        "--dynamic-sampling-filter-path benchmarks.killing.kinds.in_half_of_the_groups",
        shows="rollout/buffered_tokens_put_back",
    ),
    "lora": Kind(("train", "train-async"), f"{SFT} --lora-rank 4 --lora-dropout 0.1"),
    "early stopping": Kind(
        ("train", "train-async"),
        f"{SFT} --num-epoch 6 --lr 0.1 --lr-decay-style constant --eval-interval 1 --early-stopping-patience 3 "
        "--early-stopping-keep best --save-total-limit 1",
    ),
    "async save": Kind(("train", "train-async"), f"{SFT} --async-save"),
    "two ranks": Kind(("train",), f"{SFT} --ray-address local --actor-num-gpus-per-node 2"),
}


async def even_tokens(args: Any, sample: Any) -> float:
    """A reward: the share of even token ids in the response, which varies within a group."""
    response = sample.tokens[len(sample.tokens) - sample.response_length :]
    return sum(token % 2 == 0 for token in response) / max(1, len(response))


def in_half_of_the_groups(args: Any, samples: list[Any], **more: Any) -> bool:
    """A dynamic filter: keeps groups with even numbers."""
    return samples[0].group_index % 2 == 0
