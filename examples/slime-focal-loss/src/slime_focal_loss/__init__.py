"""The focal loss for slime. Start reading at `plugin.py`."""
