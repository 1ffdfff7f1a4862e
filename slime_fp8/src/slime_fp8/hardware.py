"""Which GPU computes which recipe. As far as NVIDIA documents it; nothing here has run on one."""

from __future__ import annotations

from slime_core.contracts.precision import Hardware

Version = tuple[int, int]

HOPPER, BLACKWELL = (9, 0), (10, 0)
"""Compute capabilities of H100 and H200, and of B200."""


def refusal(
    recipe: str, hardware: Hardware, first: Version, below: Version | None = None, cuda: Version | None = None
) -> str:
    """Say why hardware cannot compute a recipe; "" if it can.

    Args:
        recipe: its name.
        first: the lowest compute capability that can.
        below: the lowest one after it that cannot any more.
        cuda: the lowest version of CUDA that can.
    """
    needs = f"{recipe} needs compute capability {_shown(first)}"
    needs += f" or higher, but below {_shown(below)}" if below else " or higher"
    if hardware.capability is None:
        return f"{needs}; {hardware.name} has no FP8 arithmetic, so there the recipe is emulated."
    if hardware.capability < first or (below is not None and hardware.capability >= below):
        return f"{needs}; {hardware.name} has {_shown(hardware.capability)}."
    if cuda is not None and (hardware.cuda is None or hardware.cuda < cuda):
        found = "none" if hardware.cuda is None else _shown(hardware.cuda)
        return f"{recipe} needs CUDA {_shown(cuda)} or newer; torch was built with {found}."
    return ""


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
