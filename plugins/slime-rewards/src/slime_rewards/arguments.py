"""The options of the rewards. `--rm-url` is called as in slime."""

from __future__ import annotations

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option


class MathArguments(ArgumentGroup):
    """Grading of mathematics"""

    math_verify_workers: int = option(
        2, "Processes that compare answers which need algebra.", ge=1, affects_result=False
    )
    math_verify_timeout: float = option(
        2.0,
        "Seconds of processor time for comparing one answer; one that takes longer counts as wrong and costs its process.",
        gt=0,
    )


class ReasoningGymArguments(ArgumentGroup):
    """Grading of reasoning-gym tasks"""

    reasoning_gym_workers: int = option(2, "Processes that grade answers to tasks.", ge=1, affects_result=False)
    reasoning_gym_timeout: float = option(
        10.0,
        "Seconds of processor time for grading one answer; one that takes longer counts as wrong and costs its process.",
        gt=0,
    )


class RemoteArguments(ArgumentGroup):
    """Remote reward"""

    rm_url: str | None = option(
        None,
        "Where to POST the JSON object with prompt, response and label; the service answers with the reward. A user and a password "
        "in it are shown nowhere; env:NAME takes the URL from an environment variable.",
        secret=True,
    )
    rm_patience: float = option(
        300.0,
        "Seconds that a service which cannot be reached is waited for, before that counts as a failure.",
        ge=0,
        affects_result=False,
    )


class RemoteRunArguments(RunArguments, RemoteArguments):
    """The run's options with those of `remote_rm`, for type checkers."""
