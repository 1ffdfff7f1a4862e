"""DAPO's rule, by the reward `dapo`."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import compute_score

__all__ = ["compute_score"]

__getattr__ = attributes_of(__name__)
