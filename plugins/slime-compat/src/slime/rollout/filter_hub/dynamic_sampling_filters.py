"""slime's dynamic filters."""

from slime_compat.elsewhere import attributes_of
from slime_compat.filtering import check_reward_nonzero_std, check_reward_nonzero_std_with_fallback

__all__ = ["check_reward_nonzero_std", "check_reward_nonzero_std_with_fallback"]

__getattr__ = attributes_of(__name__)
