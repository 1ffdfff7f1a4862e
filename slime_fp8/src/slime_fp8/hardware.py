"""Which GPU computes which recipe, as NVIDIA documents it. Imports no torch, so that a run is refused before anything is
loaded."""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.contracts.precision import Hardware

Version = tuple[int, int]

ADA, HOPPER, BLACKWELL = (8, 9), (9, 0), (10, 0)
"""Compute capabilities of L40S and RTX 4090, of H100 and H200, and of B200."""


@dataclass(frozen=True)
class Needs:
    """What a recipe needs.

    Attributes:
        first: the lowest compute capability that can compute it.
        below: the lowest one after it that cannot any more.
        cuda: the lowest version of CUDA that can.
    """

    first: Version
    below: Version | None = None
    cuda: Version | None = None


NEEDS = {
    "tensorwise": Needs(ADA),
    "delayed": Needs(ADA),
    "blockwise": Needs(HOPPER, cuda=(12, 9)),
    "mxfp8": Needs(BLACKWELL, below=(12, 0), cuda=(12, 8)),
}


def refusal(recipe: str, hardware: Hardware) -> str:
    """Say why hardware cannot compute a recipe of `NEEDS`; "" if it can."""
    needs = NEEDS[recipe]
    text = f"{recipe} needs compute capability {_shown(needs.first)}"
    text += f" or higher, but below {_shown(needs.below)}" if needs.below else " or higher"
    if hardware.capability is None:
        return f"{text}; {hardware.name} has no FP8 arithmetic."
    if hardware.capability < needs.first or (needs.below is not None and hardware.capability >= needs.below):
        return f"{text}; {hardware.name} has {_shown(hardware.capability)}."
    if needs.cuda is not None and (hardware.cuda is None or hardware.cuda < needs.cuda):
        found = "none" if hardware.cuda is None else _shown(hardware.cuda)
        return f"{recipe} needs CUDA {_shown(needs.cuda)} or newer; torch was built with {found}."
    return ""


def without_hardware(recipe: str, why: str, hardware: Hardware) -> str:
    """The error of a run that wants a recipe of hardware that cannot compute it."""
    possible = [name for name in NEEDS if name != recipe and not refusal(name, hardware)]
    other = f"or --fp8-recipe {' or '.join(possible)}, which {hardware.name} can compute; " if possible else ""
    return (
        f"--fp8-recipe {recipe}: {why} Give --fp8-emulation, which rounds numbers in the same way on any device and is slower than "
        f"no FP8; {other}or leave --fp8-format out."
    )


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
