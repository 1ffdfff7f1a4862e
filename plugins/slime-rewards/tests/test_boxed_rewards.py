"""Every reward can be chosen as `boxed_NAME`, and then sees only what the last box of the response holds."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.contracts.reward import BOXED
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import reward_caller, score
from slime_core.sample import Sample
from slime_rewards.plugin import slime_rewards

ARGS = SimpleNamespace(failure_policy=["reward:retries=0,on_failure=raise"], rollout_seed=1)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


def boxed(plugins: Plugins, name: str, *samples: Sample) -> list[Any]:
    """What a run gets that chooses `--rm-type boxed_NAME`."""
    found: Any = asyncio.run(score(reward_caller(ARGS, plugins.select("reward", f"boxed_{name}")), ARGS, samples))
    return found


@pytest.mark.parametrize("name", sorted(set(slime_rewards()) - {"math", "boxed_math"}))
def test_every_reward_can_be_chosen_with_the_prefix(plugins: Plugins, name: str) -> None:
    selected = plugins.select("reward", BOXED + name)
    plain = plugins.select("reward", name)
    assert (selected.prefix, selected.name, selected.target) == (BOXED, name, plain.target)
    assert selected.reads_options == plain.reads_options


@pytest.mark.parametrize(
    ("name", "response", "label", "reward"),
    [
        ("f1", r"the red dog? \boxed{cat}", "red dog", 0.0),
        ("f1", r"cat? \boxed{the red dog}", "red dog", 1.0),
        ("f1", "red dog", "red dog", 0.0),
        ("f1", r"\boxed{red dog", "red dog", 0.0),
        ("exact_match", r"no: \boxed{Paris}", "paris", 1.0),
        ("exact_match", r"\boxed{Rome} no: \boxed{Paris}", "paris", 1.0),
        ("final_answer", r"\boxed{7} not 8", "7", 1.0),
        ("final_answer", "7", "7", 0.0),
        ("final_answer", r"7 \boxed{7 or 8}", "7", 0.0),
        ("gpqa", r"A or \boxed{C}", "C", 1.0),
        ("gpqa", "Answer: C", "C", 0.0),
    ],
)
def test_only_the_box_counts_and_the_response_stays(
    plugins: Plugins, name: str, response: str, label: str, reward: float
) -> None:
    sample = Sample(index=3, response=response, label=label)
    assert boxed(plugins, name, sample) == [reward]
    assert sample.response == response


def test_a_dict_of_numbers_is_handed_on(plugins: Plugins) -> None:
    given = [Sample(response=text, label="7") for text in (r"\boxed{Answer: 7}", "Answer: 7")]
    assert [reward["score"] for reward in boxed(plugins, "dapo", *given)] == [1.0, -1.0]


def test_errors_are_those_of_the_reward(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="The reward 'exact_match' compares with a label, but sample 3 has none"):
        boxed(plugins, "exact_match", Sample(index=3, response=r"\boxed{7}"))


def test_a_reward_of_slime_that_nothing_brings_is_an_error_that_says_how_to_get_it(plugins: Plugins) -> None:
    with pytest.raises(
        PluginError, match=r"no reward named 'ifbench' for --rm-type.*allenai/IFBench.*--custom-rm-path"
    ):
        plugins.select("reward", "ifbench")
