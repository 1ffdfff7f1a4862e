"""What hook files import from `slime.backends.megatron_utils`."""

from slime_compat.elsewhere import attributes_of

__getattr__ = attributes_of(__name__)
