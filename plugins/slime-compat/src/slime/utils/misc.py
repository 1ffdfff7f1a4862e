"""Functions by their import path."""

from slime_compat.elsewhere import attributes_of
from slime_compat.functions import SingletonMeta, load_function

__all__ = ["SingletonMeta", "load_function"]

__getattr__ = attributes_of(__name__)
