"""The contract kit catches what breaks a contract, says what to do, and lets everything of slime's own pass."""

from __future__ import annotations

import gc
import re
import threading
import unittest
from collections.abc import Iterator

import pytest
from broken_components import BROKEN
from broken_training import backend
from good_components import ABLE, MADE, component_of, good_loss, good_reward

from slime_core.cli import main
from slime_core.contracts.kind import Kind
from slime_core.contracts.kinds import KINDS
from slime_core.contracts.options import reads_options
from slime_core.errors import ArgumentError, DataError, PluginError
from slime_core.plugins import Plugins
from slime_core.testing import (
    ContractError,
    EchoEngine,
    check_component,
    inspect_component,
    sample,
)
from slime_core.testing.behaviour import CHECKS
from slime_core.testing.checkpoint import chat_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # broken components leave files open


@pytest.fixture(scope="module", autouse=True)
def _left_open_files_are_closed_here() -> Iterator[None]:
    yield
    gc.collect()  # so that no test of another module is told of them


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_that_keeps_its_contract_passes_every_check(kind):
    found = inspect_component(kind, "good", component_of(kind), Plugins())
    assert [(f.check, f.why) for f in found if f.status != "ok" and f.check != "is documented"] == []
    assert len(found) == 3 + len(CHECKS[kind])


@pytest.mark.parametrize("kind", ABLE)
def test_a_component_with_further_abilities_that_keep_their_contracts_passes_every_check(kind):
    component = ABLE[kind]() if kind == "train_backend" else ABLE[kind]
    found = inspect_component(kind, "able", component, Plugins(), options=["--offload"])
    assert [(f.check, f.why) for f in found if f.status != "ok" and f.check != "is documented"] == []


@pytest.mark.parametrize(
    ("kind", "component", "promise", "advice", "options"),
    [(*broken[:4], broken[4:]) for broken in BROKEN],
    ids=[f"{b[0]}-{b[2]}-{i}" for i, b in enumerate(BROKEN)],
)
def test_a_broken_promise_is_caught_with_advice(kind, component, promise, advice, options):
    component = component() if kind in MADE else component
    with pytest.raises(ContractError) as error:
        check_component(kind, component, options=options)
    (line,) = [text for text in str(error.value).splitlines() if f"should keep this promise: {promise}" in text]
    assert re.search(advice, line), line


def test_a_backend_that_stays_in_its_process_group_is_caught():
    import torch.distributed as dist

    def set_up(self, setup, *given):
        setup(self, *given)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    try:
        with pytest.raises(ContractError, match=r"in a torch.distributed process group; call destroy_process_group in"):
            check_component("train_backend", backend("setup", set_up)())
    finally:
        dist.destroy_process_group()


def test_every_check_has_a_component_that_fails_it():
    promises = {(kind, (check.__doc__ or "").split("\n")[0]) for kind in KINDS for check in CHECKS[kind]}
    caught = {(k, p) for k, p in promises for kind, _, promise, *_ in BROKEN if kind == k and p.startswith(promise)}
    assert promises - caught == set()


# ------------------------------------------------------------------------------------------- examples and refusals


def picky_reward(args, sample):
    """Wants a dict as label."""
    if not isinstance(sample.label, dict):
        raise DataError("the label is no dict.")
    return float(sample.label["n"])


EXAMPLES = {"known_reward": [sample(label={"n": 1})]}


def test_a_component_that_refuses_the_inputs_of_the_kit_is_asked_for_examples_and_tried_on_those():
    with pytest.raises(ContractError, match=r"refused the kit's own samples .*: the label is no dict") as error:
        check_component("reward", picky_reward)
    assert "EXAMPLES = {'picky_reward': […]} in " in str(error.value)
    check_component("reward", picky_reward, examples=[sample(label={"n": 1})])
    check_component("reward", picky_reward, name="known_reward")
    with pytest.raises(ContractError, match="it raised KeyError: 'n'"):
        check_component("reward", picky_reward, examples=[sample(label={})])


def test_a_wrong_signature_is_found_before_anything_is_called():
    with pytest.raises(
        ContractError, match=r"does not take the parameter 'sample'.*See slime_core.contracts.reward.reward"
    ):
        check_component("reward", lambda args: 1 / 0)


def test_a_component_without_a_docstring_is_not_documented():
    with pytest.raises(ContractError, match="it has no docstring; say in a sentence what it does"):
        check_component("reward", good_reward)


def test_an_unknown_kind_offers_the_nearest_one():
    with pytest.raises(PluginError, match=r"no kind 'rewards'. Did you mean 'reward'\?"):
        check_component("rewards", good_reward)


def test_options_reach_the_component_as_in_a_run():
    def wide_filter(args, samples, **kwargs):
        """Wants groups as large as the run makes them."""
        return args.n_samples_per_prompt == 4 or "no"

    check_component("dynamic_filter", wide_filter, options=["--n-samples-per-prompt", "4"])
    with pytest.raises(ContractError):
        check_component("dynamic_filter", wide_filter)


def test_an_option_that_does_not_exist_is_not_taken_for_a_fault_of_the_component(capsys):
    assert main(["plugins", "check", "slime-rewards", "--sedd", "3"]) == 2
    assert "There is no option --sedd. Did you mean '--seed'?" in capsys.readouterr().err


def test_what_needs_an_option_is_skipped_until_it_is_given():
    def needy_filter(args, samples, **kwargs):
        """Wants large groups."""
        if args.n_samples_per_prompt < 4:
            raise ArgumentError("the filter needs --n-samples-per-prompt 4 or more.")
        return True

    with pytest.raises(unittest.SkipTest, match=r"needs --n-samples-per-prompt 4 or more. Options may follow: slime"):
        check_component("dynamic_filter", needy_filter)
    check_component("dynamic_filter", needy_filter, options=["--n-samples-per-prompt", "4"])


def test_what_needs_a_missing_package_is_skipped_with_the_reason(monkeypatch):
    documented = lambda args, inputs: good_loss(args, inputs)  # noqa: E731
    documented.__doc__ = "Negative log-likelihood."
    monkeypatch.setattr("slime_core.testing.small_run.find_spec", lambda name: None)
    with pytest.raises(unittest.SkipTest, match="needs torch, which is not installed; pip install torch"):
        check_component("loss", documented)


def test_a_check_that_hangs_fails_and_those_after_it_are_left_out():
    released = threading.Event()

    def hanging(args, sample):
        """Waits."""
        released.wait(60)
        return 0.0

    try:
        found = inspect_component("reward", "hanging", hanging, Plugins(), time_limit=0.2)
    finally:
        released.set()
    assert [(f.check, f.status, f.hangs) for f in found[3:]] == [
        ("returns one finite number, or a dict, for each sample", "failed", True)
    ]
    assert "it did not come to an end within 0.2 s. It is in " in found[-1].why
    assert (
        "allow it more: slime plugins check --time-limit SECONDS, or time_limit=… in check_component" in found[-1].why
    )


# ------------------------------------------------------------------------- what components say about themselves


def test_a_kind_without_checks_of_its_own_is_compared_with_its_contract_alone(monkeypatch):
    def greet(args, name):
        """Say hello."""

    def shout(args, name, loudness):
        """Say hello."""

    monkeypatch.setitem(KINDS, "greeting", Kind("greeting", "slime_greetings", greet, ("--greeting",)))
    check_component("greeting", greet)
    with pytest.raises(ContractError, match="requires a parameter 'loudness' that nothing passes"):
        check_component("greeting", shout)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        (("tis_clipp",), r"'tis_clipp' is neither an option nor a group of options. Did you mean 'tis_clip'\?"),
        (("MathArgument",), r"'MathArgument' is neither .* Did you mean 'MathArguments'\?"),
        (("tis_clip?use_tiss",), r"'use_tiss' is neither .* Did you mean 'use_tis'\?"),
    ],
)
def test_a_declaration_of_an_option_that_does_not_exist_fails_with_the_nearest_one(declared, problem):
    @reads_options("lr", *declared)
    def accepting(args, samples, **kwargs):
        """Keep everything."""
        return True

    with pytest.raises(ContractError, match=f"keep this promise: declares options that exist. But {problem}") as error:
        check_component("dynamic_filter", accepting)
    assert "Repair it: in reads_options=(…) of its Lazy, or in @reads_options(…)" in str(error.value)


def test_names_that_nearly_are_abilities_or_marks_are_found():
    class Engine(EchoEngine):
        """Counts."""

        def take_metric(self):
            return {}

    def loss(args, inputs):
        """Negative log-likelihood."""
        return good_loss(args, inputs)

    loss.slime_read = lambda args: {"entropy"}
    for kind, component, problem in [
        ("engine", Engine, "has 'take_metric', which nothing calls; did it mean 'take_metrics'"),
        ("loss", loss, "has 'slime_read', which nothing calls; did it mean 'slime_reads'"),
    ]:
        with pytest.raises(ContractError, match=problem) as error:
            check_component(kind, component)
        assert "Rename it" in str(error.value)


def test_the_tokenizer_of_the_kit_says_back_what_it_reads():
    text = "<|im_start|>user\nGrüße, 你好 🙂\n<|im_end|>"
    ids = chat_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert chat_tokenizer().decode(ids) == text
    assert len(ids) == len("user\nGrüße, 你好 🙂\n".encode()) + 2
