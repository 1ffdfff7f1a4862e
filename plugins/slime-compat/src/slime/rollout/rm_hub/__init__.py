"""Rewards by the rewards of this run's plugins."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import (
    compute_gpqa_reward,
    f1_score,
    get_deepscaler_rule_based_reward,
    grade_answer_verl,
)
from slime_compat.grading import (
    compute_score as compute_score_dapo,
)
from slime_compat.grading import (
    extract_answer as extract_boxed_answer,
)
from slime_compat.scoring import async_rm, batched_async_rm, remote_rm

__all__ = [
    "async_rm",
    "batched_async_rm",
    "compute_gpqa_reward",
    "compute_score_dapo",
    "extract_boxed_answer",
    "f1_score",
    "get_deepscaler_rule_based_reward",
    "grade_answer_verl",
    "remote_rm",
]

__getattr__ = attributes_of(__name__)
