"""The hook by which a run finds this distribution. Loading it makes `slime` this distribution's import name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slime_compat.own_name import take_the_name
from slime_core import hookimpl

if TYPE_CHECKING:
    from slime_core.contracts.options import ArgumentGroup

take_the_name()


@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    from slime_compat.attributes import SlimeAttributes

    return [SlimeAttributes]
