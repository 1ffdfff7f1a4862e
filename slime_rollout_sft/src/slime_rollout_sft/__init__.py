"""Supervised fine-tuning for slime: the SFT rollout, loss masks, data converters and the mask preview."""

__version__ = "0.1.0"
