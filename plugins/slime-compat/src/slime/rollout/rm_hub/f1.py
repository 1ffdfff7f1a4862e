"""The reward `f1`."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import f1_score

__all__ = ["f1_score"]

__getattr__ = attributes_of(__name__)
