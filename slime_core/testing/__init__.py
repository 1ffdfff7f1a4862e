"""The contract kit: does a component keep its contract? For the tests of plugins, and behind `slime plugins check`.

    from slime_core.testing import check_component, check_distribution, sample

    def test_my_package_keeps_its_contracts():
        check_distribution("my-package")                      # everything that the installed package provides

    def test_my_reward_keeps_its_contract():
        check_component("reward", my_reward, examples=[sample(label={"answer": 7})])

The kit calls components with small realistic inputs and compares what happens with `slime_core.contracts`. A component
that cannot use the kit's own inputs brings some of its own: `examples=[…]`, or, so that `slime plugins check` finds
them too, `EXAMPLES = {"component name": […]}` in the module that defines it. What an example is depends on the kind:
a converter's is a row, that of a reward or a generator a `Sample`, that of a filter a group, that of a loss mask a
list of messages.

    kit.py               `check_component` and `check_distribution`
    findings.py          what a check found
    time_limit.py        gives up on what hangs
    plugin.py            the checks of a plugin itself
    declarations.py      the checks of what a component says about itself
    behaviour/           the checks of what components do, one file per group of kinds
    small_run.py         the arguments that components are called with
    subject.py           one component under test
    inputs.py            samples, groups, rows and loss inputs to try components on
    advantage_inputs.py  the signals of a small rollout, for advantage estimators
    checkpoint.py        a tokenizer and a model small enough to be made on the spot
    engine.py            an inference engine without a model
"""

from slime_core.testing.advantage_inputs import advantage_inputs
from slime_core.testing.checkpoint import chat_tokenizer, tiny_checkpoint
from slime_core.testing.engine import EchoEngine
from slime_core.testing.findings import Finding
from slime_core.testing.inputs import group, groups, loss_inputs, sample
from slime_core.testing.kit import (
    Part,
    check_component,
    check_distribution,
    inspect_component,
    parts_of,
    raise_for,
)
from slime_core.testing.subject import ContractError
from slime_core.testing.time_limit import TIME_LIMIT

__all__ = [
    "TIME_LIMIT",
    "ContractError",
    "EchoEngine",
    "Finding",
    "Part",
    "advantage_inputs",
    "chat_tokenizer",
    "check_component",
    "check_distribution",
    "group",
    "groups",
    "inspect_component",
    "loss_inputs",
    "parts_of",
    "raise_for",
    "sample",
    "tiny_checkpoint",
]
