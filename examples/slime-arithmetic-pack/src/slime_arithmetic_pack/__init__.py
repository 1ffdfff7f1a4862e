"""A reward and two filters for one arithmetic project. Start reading at `plugin.py`."""
