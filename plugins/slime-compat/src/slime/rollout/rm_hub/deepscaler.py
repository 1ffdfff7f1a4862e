"""The reward `deepscaler`."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import get_deepscaler_rule_based_reward

__all__ = ["get_deepscaler_rule_based_reward"]

__getattr__ = attributes_of(__name__)
