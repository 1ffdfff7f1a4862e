"""What hook files import from `slime.backends`."""

from slime_compat.elsewhere import attributes_of

__getattr__ = attributes_of(__name__)
