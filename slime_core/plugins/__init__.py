"""Finding, listing, checking and choosing plugins.

kinds.py      the kinds of components and the options that choose them
discovery.py  what is installed, read from metadata before anything is imported
registry.py   loads plugins one by one, isolates broken ones, selects components by name
signature.py  compares a component with its contract
"""

from slime_core.plugins.discovery import PluginInfo
from slime_core.plugins.registry import Plugins, Selected

__all__ = ["PluginInfo", "Plugins", "Selected"]
