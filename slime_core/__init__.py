"""slime_core: one loop that gets samples, trains on them and hands the weights back. Everything else is a plugin."""

import pluggy

from slime_core.lazy import Lazy

__all__ = ["Lazy", "__version__", "hookimpl"]

__version__ = "0.1.0"

hookimpl = pluggy.HookimplMarker("slime")
