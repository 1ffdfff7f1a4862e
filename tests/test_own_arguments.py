"""Functions of somebody's own may set attributes on the arguments that they are given; the run's arguments stay as they are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.own_arguments import own_arguments


@pytest.fixture
def resolved(tiny_model: Any) -> Callable[[], Any]:
    """The arguments of one run more in this process."""
    words = ["--hf-checkpoint", str(tiny_model), "--prompt-data", "rows.jsonl", "--num-rollout", "1"]
    return lambda: resolve(Namespace(Plugins()), [*words, "--rollout-batch-size", "2"], env={}).args


@pytest.fixture
def run_args(resolved: Callable[[], Any]) -> Any:
    return resolved()


def called(function: Callable[..., Any], *args: Any, distribution: str = "") -> Any:
    selected = Selected[Any](
        "data_source", "f", function, "import path", "--data-source-path", distribution=distribution
    )
    return selected(*args)


def test_what_a_function_sets_is_not_set_on_the_arguments_of_the_run(run_args: Any) -> None:
    before = run_args.model_dump()

    def function(args: Any) -> Any:
        args.seed, args.tokenizer = 12345, object()
        return args

    args = called(function, run_args)
    assert args.seed == 12345
    assert run_args.model_dump() == before
    assert run_args.seed != 12345
    assert not hasattr(run_args, "tokenizer")
    with pytest.raises(Exception, match="frozen"):
        run_args.seed = 1


def test_options_begin_with_the_value_of_the_run_in_each_call_and_new_names_stay(run_args: Any) -> None:
    def function(args: Any) -> Any:
        seen = (args.seed, getattr(args, "calls", 0))
        args.seed, args.calls = args.seed + 1, getattr(args, "calls", 0) + 1
        return seen

    assert [called(function, run_args) for _ in range(3)] == [(run_args.seed, count) for count in range(3)]


def test_another_run_in_this_process_begins_without_what_functions_of_one_have_set(resolved: Any) -> None:
    one, other = resolved(), resolved()
    own_arguments(one).a_cache = {}
    assert own_arguments(one).a_cache == {}
    assert not hasattr(own_arguments(other), "a_cache")


def test_two_calls_at_the_same_time_read_what_they_have_set_themselves(run_args: Any) -> None:
    one, other = own_arguments(run_args), own_arguments(run_args)
    one.sample, other.sample = 1, 2
    deep = copy.deepcopy(one)
    assert (one.sample, other.sample, deep.sample) == (1, 2, 1)
    deep.sample = 3
    assert (one.sample, deep.seed) == (1, run_args.seed)
    assert own_arguments(one) is one
    del deep.sample
    assert deep.sample == 3  # the last one that was set anywhere


def test_wherever_the_arguments_stand_among_those_of_a_call_they_can_be_changed(run_args: Any) -> None:
    def function(rollout_id: int, args: Any) -> Any:
        args.mine = rollout_id
        return args.mine

    assert called(function, 7, run_args) == 7


def test_a_name_that_nobody_has_set_is_an_error_that_says_so(run_args: Any) -> None:
    with pytest.raises(AttributeError, match="no option 'tokeniser' in this run"):
        _ = own_arguments(run_args).tokeniser
    assert getattr(own_arguments(run_args), "tokeniser", None) is None


def test_components_of_plugins_are_given_the_arguments_of_the_run_themselves(run_args: Any) -> None:
    assert called(lambda args: args, run_args, distribution="slime-losses") is run_args


def test_lists_and_tables_of_options_are_copies_too(run_args: Any) -> None:
    def function(args: Any) -> None:
        args.prompt_data.append("another.jsonl")

    called(function, run_args)
    assert run_args.prompt_data == ["rows.jsonl"]


def test_arguments_can_be_sent_to_a_process_that_does_not_have_their_class(run_args: Any) -> None:
    args = own_arguments(run_args)
    args.mine = 3
    received = pickle.loads(pickle.dumps(args))
    assert (received.mine, received.prompt_data) == (3, ["rows.jsonl"])


def test_a_function_that_sets_an_option_is_told_once_that_the_run_goes_by_its_own(run_args: Any, caplog: Any) -> None:
    def function(args: Any) -> None:
        args.rollout_batch_size, args.mine = 999, 1

    for _ in range(2):
        called(function, run_args)
    assert [record.getMessage() for record in caplog.records] == [
        "A function has set args.rollout_batch_size to 999. That is its own: the run goes by its own --rollout-batch-size, 2."
    ]
