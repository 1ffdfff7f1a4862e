"""The reward `gpqa`."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import compute_gpqa_reward

__all__ = ["compute_gpqa_reward"]

__getattr__ = attributes_of(__name__)
