"""Tokenizers and processors."""

from slime_compat.elsewhere import attributes_of
from slime_compat.tokenizers import load_processor, load_tokenizer

__all__ = ["load_processor", "load_tokenizer"]

__getattr__ = attributes_of(__name__)
