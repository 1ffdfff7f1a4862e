"""Functions by their import path, as `slime.utils.misc` loads them."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from slime_core.plugins.import_path import resolve


@cache
def load_function(path: str) -> Any:
    """Return the object that an import path such as "my_package.my_module.function" names."""
    return resolve(path)


class SingletonMeta(type):
    """Metaclass of classes of which a process has one object: the first call makes it, all others return it."""

    _instances: ClassVar[dict[type, Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls not in SingletonMeta._instances:
            SingletonMeta._instances[cls] = super().__call__(*args, **kwargs)
        return SingletonMeta._instances[cls]

    @staticmethod
    def clear_instances() -> None:
        """Forget all objects."""
        SingletonMeta._instances.clear()
