"""What this distribution gives to slime. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_core import Lazy, hookimpl

if TYPE_CHECKING:
    from slime_core.arguments import ArgumentGroup


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_rewards.arguments import MathArguments, ReasoningGymArguments, RemoteArguments

    return [MathArguments, ReasoningGymArguments, RemoteArguments]


@hookimpl
def slime_commands() -> dict[str, Lazy]:
    return {
        "tasks": Lazy("slime_rewards.tasks_command:main", "write data of procedural tasks for training and evaluation")
    }


@hookimpl
def slime_rewards() -> dict[str, Lazy]:
    return {
        "exact_match": Lazy("slime_rewards.exact_match:exact_match", "1 when response and label are the same text"),
        "final_answer": Lazy(
            "slime_rewards.final_answer:final_answer", "1 when the final number of the response equals the label's"
        ),
        "f1": Lazy("slime_rewards.f1:f1", "share of words that response and label have in common (SQuAD)"),
        "gpqa": Lazy("slime_rewards.gpqa:gpqa", "1 when the chosen letter is the right one"),
        "math": Lazy("slime_rewards.math:math", "1 when the answer is mathematically equal to the label"),
        "deepscaler": Lazy("slime_rewards.math:deepscaler", "the same for the box that follows </think>"),
        "dapo": Lazy("slime_rewards.dapo:dapo", "1 or -1 for the last 'Answer: …' line; needs --reward-key score"),
        "reasoning_gym": Lazy("slime_rewards.gym:reasoning_gym", "the scorer of the row's task; see slime tasks"),
        "remote_rm": Lazy("slime_rewards.remote:remote_rm", "what the service at --rm-url answers"),
        "random": Lazy("slime_rewards.random_reward:random", "1 or 0 by chance: a control"),
        "boxed_math": Lazy("slime_rewards.math:boxed_math", r"math, where only a \boxed{…} counts"),
        **{
            f"boxed_{name}": Lazy(f"slime_rewards.boxed:boxed_{name}", rf"{name} of what the last \boxed{{…}} holds")
            for name in ("exact_match", "f1", "final_answer", "gpqa", "remote_rm")
        },
    }
