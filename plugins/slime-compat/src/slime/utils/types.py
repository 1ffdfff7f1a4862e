"""`Sample` is slime-core's own: there is one class of samples."""

from slime_compat.elsewhere import attributes_of
from slime_core.sample import Sample

__all__ = ["Sample"]

__getattr__ = attributes_of(__name__)
