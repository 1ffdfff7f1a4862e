"""The learning rate of every step is Megatron's; options of the optimizer that contradict each other are refused."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from slime_core.arguments.groups.optimizer import OptimizerArguments
from slime_core.errors import ArgumentError
from slime_core.training.schedule import Schedule


def schedule(total: int = 20, **options: object) -> Schedule:
    return Schedule.from_args(OptimizerArguments(lr=1.0, **options), total)  # type: ignore[arg-type]


def test_linear_decay_reaches_min_lr_at_the_last_step() -> None:
    rates = [schedule(min_lr=0.2).lr_at(step) for step in (0, 5, 10, 20, 21, 1000)]
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.2, 0.2, 0.2])


def test_cosine_decay_is_halfway_in_the_middle_of_what_follows_the_warm_up() -> None:
    s = schedule(lr_decay_style="cosine", lr_warmup_iters=4, min_lr=0.1)
    assert s.lr_at(12) == pytest.approx(0.55)
    assert s.lr_at(8) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert s.lr_at(20) == pytest.approx(0.1)


def test_warm_up_rises_from_zero_and_can_be_a_fraction() -> None:
    for options in ({"lr_warmup_iters": 4}, {"lr_warmup_fraction": 0.2}):
        s = schedule(lr_decay_style="constant", **options)
        assert [s.lr_at(step) for step in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_a_fraction_is_the_decimal_that_was_given() -> None:
    """0.29 · 100 is 28.999… in floats."""
    for percent in range(1, 100):
        for total in (100, 300, 1000):
            assert (
                schedule(total=total, lr_warmup_fraction=float(f"0.{percent:02}")).warmup_steps
                == percent * total // 100
            )


def test_lr_decay_iters_replaces_the_length_of_the_run() -> None:
    s = schedule(total=20, lr_decay_iters=10, lr_warmup_fraction=0.2)
    assert (s.warmup_steps, s.lr_at(6), s.lr_at(15)) == (2, pytest.approx(0.5), 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_warmup_iters": 2, "lr_warmup_fraction": 0.1},
        {"lr_warmup_iters": 5, "lr_decay_iters": 5},
        {"lr": 1e-5, "min_lr": 1e-4},
        {"log_probs_chunk_size": 0},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="Value error"):
        OptimizerArguments(**options)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ArgumentError, match="--lr-warmup-iters is 30, but the whole schedule has 20 steps"):
        schedule(total=20, lr_warmup_iters=30)
