"""Finding, listing, checking and choosing plugins.

discovery.py   what is installed, read from metadata before anything is imported
catalogue.py   which of slime's own distributions brings a component that is not installed
import_path.py from names to objects
loading.py     imports a plugin and sees whether it is one, or sets it aside
builtin.py     the components that come with the core, as a plugin
registry.py    the plugins of a process; selects components by name
selection.py   a component in use: its calls are named in errors, checked and timed
own_arguments.py  the arguments as somebody's own functions are given them, which may be changed
signatures.py  compares a component with its contract
slime_shapes/  components of slime's own shapes, made to fit the contracts here
sample_changes.py what a component did to samples that it was given
boundaries.py  what a component may not do to the process of the run
watchdog.py    ends calls that block their event loop
clock.py       how long a call has worked, without what it waits for
calls.py       time limits, retries, and what happens when a component fails for good
"""

from slime_core.plugins.discovery import PluginInfo
from slime_core.plugins.registry import Plugins
from slime_core.plugins.selection import Selected

__all__ = ["PluginInfo", "Plugins", "Selected"]
