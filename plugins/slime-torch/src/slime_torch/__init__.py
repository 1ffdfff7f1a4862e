"""The torch train backend of slime: trains any Hugging Face causal language model on packed rows."""

__version__ = "0.1.0"
