"""Finding, listing, checking and choosing plugins.

kinds.py       the kinds of components and the options that choose them
discovery.py   what is installed, read from metadata before anything is imported
import_path.py from names to objects
loading.py     imports a plugin and sees whether it is one, or sets it aside
registry.py    the plugins of a process; selects components by name
selected.py    a component in use: its calls are named in errors, checked and timed
signature.py   compares a component with its contract
results.py     compares what a component returns with its contract
calls.py       time limits, retries, and what happens when a component fails for good
"""

from slime_core.plugins.discovery import PluginInfo
from slime_core.plugins.registry import Plugins
from slime_core.plugins.selected import Selected

__all__ = ["PluginInfo", "Plugins", "Selected"]
