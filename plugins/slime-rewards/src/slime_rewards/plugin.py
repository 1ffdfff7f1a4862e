"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rewards.arguments import MathArguments, ReasoningGymArguments, RemoteArguments

    return [MathArguments, ReasoningGymArguments, RemoteArguments]


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {
        "tasks": Lazy("slime_rewards.tasks_command:main", "write data of procedural tasks for training and evaluation")
    }


_CHECKS = {
    **{name: name for name in ("exact_match", "final_answer", "f1", "gpqa", "dapo")},
    **{name: name for name in ("math", "boxed_math", "deepscaler", "math_verify")},
    "remote_rm": "remote",
}
"""What checks a run with a reward before it starts, by the reward's name."""


@hookimpl
def slime_rewards() -> dict[str, Lazy]:
    def reward(target: str, summary: str, *reads: str) -> Lazy:
        check = _CHECKS.get(target.partition(":")[2], "")
        return Lazy(
            f"slime_rewards.{target}", summary, reads_options=reads, check=check and f"slime_rewards.checks:{check}"
        )

    return {
        "exact_match": reward("exact_match:exact_match", "1 when response and label are the same text"),
        "final_answer": reward(
            "final_answer:final_answer", "1 when the final number of the response equals the label's"
        ),
        "f1": reward("f1:f1", "share of words that response and label have in common (SQuAD)"),
        "gpqa": reward("gpqa:gpqa", "1 when the chosen letter is the right one"),
        "math": reward("math:math", r"1 when the answer, \boxed{…} or stated, is the label", "MathArguments"),
        "deepscaler": reward("math:deepscaler", "the same for the box that follows </think>", "MathArguments"),
        "boxed_math": reward("math:boxed_math", r"math, where only a \boxed{…} counts", "MathArguments"),
        "math_verify": reward(
            "math:math_verify",
            "1 when an answer can be found that is mathematically equal to the label",
            "MathArguments",
        ),
        "dapo": reward("dapo:dapo", "1 or -1 for the last 'Answer: …' line; needs --reward-key score"),
        "reasoning_gym": reward(
            "gym:reasoning_gym", "the scorer of the row's task; see slime tasks", "ReasoningGymArguments"
        ),
        "remote_rm": reward("remote:remote_rm", "what the service at --rm-url answers", "RemoteArguments"),
        "random": reward("random_reward:random", "1 or 0 by chance: a control"),
    }
