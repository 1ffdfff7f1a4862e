"""The embedded inference engine: continuous batching on any Hugging Face causal language model, in this process."""

__version__ = "0.1.0"
