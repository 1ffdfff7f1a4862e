"""Sees to it that the import name `slime` is this distribution's. Called when the plugin is loaded, and when `slime` is imported.

slime itself has the same import name. Where it is installed, two distributions write into one folder, so this one refuses to
work. Where merely its sources lie on the path, such as in the current folder, this distribution's `slime` is imported.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib import metadata
from pathlib import Path

from slime_core.errors import PluginError

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parent.parent / "slime"
"""Where this distribution's `slime` lies."""


def require_alone() -> None:
    """Raise `PluginError` if slime itself is installed, or has been imported in this process."""
    try:
        installed = metadata.distribution("slime")
    except metadata.PackageNotFoundError:
        pass
    else:
        raise PluginError(
            f"slime-compat provides the import name 'slime', and so does slime {installed.version}, which is installed "
            f"({installed.locate_file('')}). Remove one of the two: `pip uninstall slime` to run hook files of slime here, or "
            "`pip uninstall slime-compat` to run them with slime. Then install the one that stays again: both write into the "
            "folder slime."
        )
    loaded = getattr(sys.modules.get("slime"), "__file__", None)
    if "slime" in sys.modules and (loaded is None or Path(loaded).resolve().parent != FOLDER):
        raise PluginError(
            f"slime-compat provides the import name 'slime', but {loaded or 'another package'} was imported under this name "
            "before. Take the folder that holds it off PYTHONPATH, or remove slime-compat."
        )


def take_the_name() -> None:
    """Have `import slime` give this distribution's package in this process, whatever lies on the path before it.

    Raises:
        PluginError: slime itself is installed, or has been imported.
    """
    require_alone()
    if "slime" in sys.modules:
        return
    found = importlib.util.find_spec("slime")
    if found is not None and found.origin and Path(found.origin).resolve().parent == FOLDER:
        return
    if found is not None:
        where = found.origin or ", ".join(found.submodule_search_locations or ())
        logger.info("The import name slime is that of slime-compat; %s is not used.", where)
    spec = importlib.util.spec_from_file_location(
        "slime", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    if spec is None or spec.loader is None:
        raise PluginError(f"The folder {FOLDER} of slime-compat is gone; install slime-compat again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["slime"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["slime"]
        raise
