"""The reward and the filters, chosen as a run chooses them: by name, checked against their contracts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.readers import options_read
from slime_core.errors import DataError
from slime_core.plugins import Plugins
from slime_core.sample import Sample, Status
from slime_core.testing import check_distribution

ARGS = SimpleNamespace(arithmetic_format_credit=0.1, arithmetic_solved_from=0.25, arithmetic_solved_to=0.75)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def test_the_package_keeps_its_contracts():
    check_distribution("slime-arithmetic-pack")


@pytest.mark.parametrize(
    ("response", "label", "reward"),
    [
        ("2 and 3 are 5.\nAnswer: 5", "5", 1.0),
        ("answer: -5.", -5, 1.0),
        ("Answer: 0.5\n", "1/2", 1.0),
        ("Answer: 6", "5", 0.1),
        ("Answer: 1/0", "5", 0.0),
        ("Answer: 5 or 6", "5", 0.0),
        ("Answer: 5\nNo, wait.", "5", 0.0),
        ("5", "5", 0.0),
        ("", "5", 0.0),
    ],
)
def test_the_reward_looks_at_the_answer_line_and_credits_the_format(plugins, response, label, reward):
    arithmetic = plugins.select("reward", "arithmetic")
    assert arithmetic(ARGS, Sample(response=response, label=label)) == reward


@pytest.mark.parametrize("label", [None, "five", "1/0"])
def test_a_label_that_is_no_number_is_an_error_that_names_the_sample(plugins, label):
    sample = Sample(index=7, response="Answer: 5", label=label, metadata={"slime": {"source": "sums.jsonl:8"}})
    with pytest.raises(DataError, match=r"label of sample 7 \(sums.jsonl:8\) is"):
        plugins.select("reward", "arithmetic")(ARGS, sample)


@pytest.mark.parametrize(
    ("rewards", "answer"),
    [
        ([0.1, 0.0, 0.1, 0.0], (False, "too_hard")),
        ([1.0, 0.0, 0.1, 0.0], (True, "middling")),
        ([1.0, 1.0, 1.0, 0.1], (True, "middling")),
        ([1.0, 1.0, 1.0, 1.0], (False, "too_easy")),
    ],
)
def test_the_group_filter_keeps_middling_difficulty(plugins, rewards, answer):
    middling = plugins.select("dynamic_filter", "arithmetic_middling")
    assert middling(ARGS, [Sample(reward=reward) for reward in rewards]) == answer


def test_the_sample_filter_leaves_out_what_was_cut_off_and_nothing_else(plugins):
    cut, whole = Sample(status=Status.TRUNCATED), Sample(status=Status.COMPLETED)
    plugins.select("sample_filter", "arithmetic_cut_off")(ARGS, [[cut, whole]])
    assert (cut.remove_sample, whole.remove_sample) == (True, False)


def test_every_option_of_the_pack_is_read_by_one_of_its_components(plugins):
    namespace = Namespace(plugins)
    readers = {
        name: component.name
        for component in plugins.all_components()
        if component.plugin.distribution == "slime-arithmetic-pack"
        for name in options_read(component.reads_options, namespace.model)
    }
    own = [o.name for o in namespace.options.values() if o.distribution == "slime-arithmetic-pack"]
    assert {name: readers.get(name) for name in own} == {
        "arithmetic_format_credit": "arithmetic",
        "arithmetic_solved_from": "arithmetic_middling",
        "arithmetic_solved_to": "arithmetic_middling",
    }
