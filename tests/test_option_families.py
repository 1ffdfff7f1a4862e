"""Options that another program defines: declared when somebody sets one, and then like any other."""

from __future__ import annotations

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import Stage
from slime_core.arguments.resolve import resolve
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

ASKED: list[list[str]] = []


class Family(ArgumentGroup):
    """Has one option of its own"""

    families = {"other_": f"{__name__}:declare"}  # noqa: RUF012

    other_number: int = option(1, "An option of slime's.")


def declare(names: list[str]) -> type[ArgumentGroup]:
    ASKED.append(names)
    if names != ["other_speed"]:
        raise ArgumentError(f"The other program has no {names[0]}.")

    class Declared(ArgumentGroup):
        """Options of the other program"""

        other_speed: float | None = option(None, "How fast.")

    return Declared


@pytest.fixture
def namespace() -> Namespace:
    ASKED.clear()
    found = Namespace(Plugins())
    found._add(Family, "mine")
    return found


BASE = ["--hf-checkpoint", "m", "--prompt-data", "d", "--rollout-batch-size", "1", "--num-rollout", "1"]


def test_a_family_is_asked_only_when_somebody_sets_one_of_its_options(namespace):
    assert not hasattr(resolve(namespace, BASE).args, "other_speed")
    assert ASKED == []


def test_such_an_option_is_typed_and_has_a_source_like_any_other(namespace):
    resolved = resolve(namespace, [*BASE, "--other-speed", "2.5", "--other-number", "3"])
    assert (resolved.args.other_speed, resolved.args.other_number) == (2.5, 3)
    assert resolved.provenance["other_speed"] == "command line"
    assert resolve(namespace, [*BASE, "--other-speed=3"]).args.other_speed == 3.0
    assert ASKED == [["other_speed"]]
    with pytest.raises(ArgumentError, match="--other-speed: given 'fast'"):
        resolve(namespace, [*BASE, "--other-speed", "fast"])


def test_a_recipe_may_set_it(namespace):
    resolved = resolve(namespace, BASE, Stage("r.yaml", {"other-speed": 4}))
    assert resolved.args.other_speed == 4.0
    assert resolved.provenance["other_speed"] == "recipe r.yaml"


def test_what_the_family_does_not_have_is_an_error(namespace):
    with pytest.raises(ArgumentError, match="The other program has no other_weight"):
        resolve(namespace, [*BASE, "--other-weight", "2"])


def test_arguments_that_were_resolved_elsewhere_can_be_made_again(namespace):
    """As in a worker process, which gets them as plain data."""
    plain = resolve(namespace, [*BASE, "--other-speed", "2.5"]).args.model_dump()
    again = Namespace(Plugins())
    again._add(Family, "mine")
    again.admit(plain)
    assert again.model(**plain).other_speed == 2.5
