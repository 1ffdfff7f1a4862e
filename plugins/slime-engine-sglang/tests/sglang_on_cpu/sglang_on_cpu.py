"""Lets SGLang be imported on a machine without a GPU, where two packages that it imports have no build: `sgl_kernel`
and `torchvision`. Nothing of theirs is used there: SGLang takes its plain torch code, and models of text see no images.

`scripts/test-sglang.sh` puts this file into the environment, with a .pth file that imports it.
"""

import enum
import importlib.machinery
import sys
import types


class Absent(types.ModuleType):
    """A module in which everything can be imported, and nothing called."""

    __version__ = "0.4.10"
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith("Mode"):
            members = ["NEAREST", "NEAREST_EXACT", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS", "UNCHANGED"]
            members += ["GRAY", "GRAY_ALPHA", "RGB", "RGB_ALPHA"]
            return self.__dict__.setdefault(name, enum.Enum(name, {member: member.lower() for member in members}))

        def absent(*args, **kwargs):
            raise NotImplementedError(f"{self.__name__}.{name} has no build for a machine without a GPU")

        return absent


class Finder:
    """Finds and makes those modules."""

    def find_spec(self, name, path=None, target=None):
        # SGLang does without the submodules of sgl_kernel where they are missing.
        known = name == "sgl_kernel" or name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
