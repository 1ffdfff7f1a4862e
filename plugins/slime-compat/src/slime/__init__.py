"""The import name `slime`, for hook files that were written for slime: its names, with what stands for them here.

slime-compat provides it; `slime_compat` has what is behind the names. A name that is not here says what to use instead. In code
of your own, import `slime_core`.
"""

from slime_compat.elsewhere import attributes_of, tell_of_missing_modules
from slime_compat.own_name import require_alone

require_alone()
tell_of_missing_modules()
__getattr__ = attributes_of(__name__)
