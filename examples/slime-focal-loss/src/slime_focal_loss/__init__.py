"""The focal loss for slime. Start reading at `plugin.py`."""

__version__ = "0.1.0"
