"""A reward and two filters for one arithmetic project. Start reading at `plugin.py`."""

__version__ = "0.1.0"
