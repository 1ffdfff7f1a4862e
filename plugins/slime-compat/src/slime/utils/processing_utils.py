"""Tokenizers, processors and images."""

from slime_compat.elsewhere import attributes_of
from slime_compat.images import encode_image_for_rollout_engine
from slime_compat.tokenizers import load_processor, load_tokenizer

__all__ = ["encode_image_for_rollout_engine", "load_processor", "load_tokenizer"]

__getattr__ = attributes_of(__name__)
