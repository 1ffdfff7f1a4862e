"""Samples across context-parallel ranks. Hooks are given whole ones here, on every rank, so there is nothing to gather or to cut."""

from slime_compat.elsewhere import attributes_of
from slime_compat.whole import all_gather_with_cp, slice_log_prob_with_cp

__all__ = ["all_gather_with_cp", "slice_log_prob_with_cp"]

__getattr__ = attributes_of(__name__)
