"""Lets SGLang be imported on a machine without a GPU, where packages that it imports have no build: `sgl_kernel`, of which nothing
is used there, since SGLang takes its plain torch code; and `torchvision`, of which the part that is written in Python is enough for
images, so that what its build for GPUs lacks here is declared, or all of it where it is not installed.

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


class Declaring:
    """Declares, right before torchvision is imported, the operators that it registers something for; they are never called. And
    lets the operators of `sgl_kernel` that SGLang's code for CPUs names be named."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        if name == "sglang.srt":
            import torch

            kind = type(torch.ops.sgl_kernel)
            known = kind.__getattr__

            def operator(space, name):
                try:
                    return known(space, name)
                except AttributeError:
                    if space.name != "sgl_kernel" or not name.endswith("_cpu"):
                        raise
                    return getattr(Absent("sgl_kernel"), name)

            kind.__getattr__ = operator
        return


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


sys.meta_path.insert(0, Declaring())
sys.meta_path.append(Finder())
