"""`post` asks the run's own engine where the URL is its router's."""

from slime_compat.elsewhere import attributes_of
from slime_compat.posting import get, post

__all__ = ["get", "post"]

__getattr__ = attributes_of(__name__)
