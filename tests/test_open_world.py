"""What slime promises to plugins that it does not know: their options, markers and abilities work like its own."""

from __future__ import annotations

import sys

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.run.plan import Plan, make_plan
from slime_core.sample import Sample


def planned(words: list[str]) -> Plan:
    """The plan that these words make."""
    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words, env={}), plugins)
    plan.close()
    return plan


def notes(words: list[str]) -> list[str]:
    """The notes of that plan."""
    return planned(words).notes


def about(flag: str, words: list[str]) -> str:
    """The notes that speak of an option; nothing when it has an effect."""
    return " ".join(note for note in notes(words) if note.startswith(f"{flag} "))


# ----------------------------------------------------------------------------------------------- options that are read

LOSSES = """
def declared(args, inputs): ...

@reads_options("eps_clip")
def decorated(args, inputs): ...

def silent(args, inputs): ...

@hookimpl
def slime_losses():
    return {
        "declared": Lazy("open_pack:declared", "reads one option", reads_options=("eps_clip",)),
        "decorated": decorated,
        "silent": silent,
    }
"""


@pytest.mark.parametrize("loss", ["declared", "decorated", "open_pack.decorated"])
def test_an_option_that_a_loss_of_somebody_else_declares_has_an_effect_under_it(install_plugin, sft, loss):
    install_plugin(LOSSES)
    clipped = [*sft, "--eps-clip", "0.3"]
    assert about("--eps-clip", [*clipped, "--loss-type", loss]) == ""
    told = about("--eps-clip", clipped)
    assert "--eps-clip has no effect: it is read by the loss" in told
    assert "the loss 'declared' or the loss 'decorated', which this run does not use." in told


def test_what_a_loss_does_not_declare_is_reported_under_it(install_plugin, sft):
    install_plugin(LOSSES)
    assert "which this run does not use" in about("--eps-clip-high", [*sft, "--eps-clip-high", "0.3", "--loss-type", "declared"])  # fmt: skip


@pytest.mark.parametrize("loss", ["silent", "open_pack.silent"])
def test_a_component_that_declares_nothing_may_read_what_those_of_its_kind_declare(install_plugin, sft, loss):
    install_plugin(LOSSES)
    words = [*sft, "--loss-type", loss]
    assert about("--eps-clip", [*words, "--eps-clip", "0.3"]) == ""
    assert about("--entropy-coef", [*words, "--entropy-coef", "0.1"]) == ""
    assert "which this run does not use" in about("--rollout-top-p", [*words, "--rollout-top-p", "0.5"])


OPTIONS = """
class SpiceArguments(ArgumentGroup):
    "Spices"
    spice: int = option(1, "How much of it.")
    herbs: int = option(1, "How many of them.")

class OtherArguments(ArgumentGroup):
    "Others"
    hot: bool = option(False, "Whether it is hot.")
    sauce: int = option(1, "How much of it.")
    cold_sauce: int = option(1, "How much of it, when it is not hot.")
    nobodys: int = option(1, "Read by an observer, perhaps.")

def it(args, inputs): ...

@hookimpl
def slime_argument_groups(): return [SpiceArguments, OtherArguments]

@hookimpl
def slime_losses():
    return {"it": Lazy("open_pack:it", "reads", reads_options=("SpiceArguments", "hot", "sauce?hot", "cold_sauce?!hot"))}
"""


def test_a_loss_may_declare_whole_groups_and_conditions(install_plugin, sft):
    install_plugin(OPTIONS)
    words = [*sft, "--loss-type", "it"]
    for flag in ("--spice", "--herbs"):
        assert about(flag, [*words, flag, "2"]) == ""
        assert about(flag, [*sft, flag, "2"]) == (
            f"{flag} has no effect: it is read by the loss 'it', which this run does not use."
        )
    assert about("--sauce", [*words, "--sauce", "2"]) == "--sauce has no effect without --hot."
    assert about("--sauce", [*words, "--sauce", "2", "--hot"]) == ""
    assert about("--cold-sauce", [*words, "--cold-sauce", "2"]) == ""
    assert about("--cold-sauce", [*words, "--cold-sauce", "2", "--hot"]) == "--cold-sauce has no effect with --hot."


def test_an_option_that_nobody_declares_is_never_reported(install_plugin, sft):
    install_plugin(OPTIONS)
    for loss in ("it", "sft_loss"):
        assert about("--nobodys", [*sft, "--loss-type", loss, "--nobodys", "2"]) == ""


SILENT = """
from slime_core.data import GlobalDataSource

class Source(GlobalDataSource): ...

def loss(args, inputs): ...

def rollout(args, rollout_id, data_source, evaluation=False, components=None): ...

def reward(args, sample): ...

@hookimpl
def slime_losses(): return {}
"""


def test_what_declares_nothing_brings_the_further_components_that_its_kind_may_call(install_plugin, sft):
    install_plugin(SILENT)
    asked = [*sft, "--custom-rm-path", "open_pack.reward"]
    own_rollout = planned([*asked, "--rollout-function-path", "open_pack.rollout"])
    assert list(own_rollout.components.rollouts.further) == ["reward"]
    for words in (["--loss-type", "open_pack.loss"], ["--data-source-path", "open_pack.Source"]):
        plan = planned([*asked, *words])
        assert "reward" not in {*plan.components.rollouts.further, *plan.components.training.further}


def test_every_component_of_a_run_is_listed_once(install_plugin, sft, capsys):
    install_plugin(SILENT)
    words = ["--rollout-function-path", "open_pack.rollout", "--loss-type", "open_pack.loss"]
    assert main(["check", *sft, *words, "--custom-rm-path", "open_pack.reward"]) == 0
    assert capsys.readouterr().out.count("\n  reward ") == 1


# -------------------------------------------------------------------------------------------------- pluggy's markers


def test_specname_names_the_hook_of_a_function_that_is_called_otherwise(install_plugin, tmp_path, sft):
    install_plugin(
        """
        seen = []
        def mine(args, sample): return 1.0
        @hookimpl(specname="slime_rewards")
        def anything(): return {"mine": mine}
        @hookimpl(specname="slime_run_finished")
        def whatever(error): seen.append(error)
        @hookimpl(optionalhook=True)
        def slime_of_another_version(): ...
        """
    )
    plugins = Plugins()
    (info,) = [info for info in plugins.infos if info.name == "open_pack"]
    assert (info.status, info.hooks) == ("loaded", ["slime_rewards", "slime_run_finished"])
    assert plugins.select("reward", "mine")(None, Sample()) == 1.0
    plugins.notify("slime_run_finished", args=None, error=None)
    assert sys.modules["open_pack"].seen == [None]


def test_observers_that_try_to_be_first_or_last_are(install_plugin):
    for name, marker in {"a_last": "trylast=True", "b": "", "c": "", "d_first": "tryfirst=True"}.items():
        install_plugin(
            f"""
            import collections, sys
            @hookimpl({marker})
            def slime_run_finished(error): error.append("{name}")
            """,
            name,
        )
    order: list[str] = []
    Plugins().notify("slime_run_finished", args=None, error=order)
    assert order == ["d_first", "b", "c", "a_last"]


REWARD = "def mine(args, sample): return 1.0\n"


GENERATES = ["--rollout-engine", "local", "--apply-chat-template"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            REWARD + "@hookimpl(tryfirst=True)\ndef slime_rewards(): return {'mine': mine}",
            "It marks slime_rewards with tryfirst or trylast, but components are chosen by name and never by order; leave it out.",
        ),
        (
            REWARD + "@hookimpl(trylast=True)\ndef slime_rewards(): return {'mine': mine}",
            "It marks slime_rewards with tryfirst or trylast",
        ),
        (
            REWARD + "@hookimpl(wrapper=True)\ndef slime_rewards(): return {**(yield), 'mine': mine}",
            "there is nothing to wrap; leave wrapper and hookwrapper out.",
        ),
        (
            REWARD + "@hookimpl\ndef slime_rewards(): return {'mine': mine}\n"
            "@hookimpl(hookwrapper=True)\ndef slime_run_finished(error): yield",
            "It marks slime_run_finished as a wrapper, but slime calls every implementation of slime_run_finished by itself",
        ),
        (
            REWARD + "@hookimpl\ndef slime_rewards(): return {'mine': mine}\n"
            "@hookimpl(specname='slime_rewards')\ndef others(): return {}",
            "It implements slime_rewards 2 times (others, slime_rewards); put them into one.",
        ),
    ],
    ids=["tryfirst", "trylast", "wrapper", "hookwrapper", "twice"],
)
def test_a_marker_that_cannot_work_sets_the_plugin_aside_and_says_what_to_do(install_plugin, sft, capsys, code, says):
    install_plugin(code)
    assert (
        main(
            [
                "train",
                *sft,
                "--loss-type",
                "policy_loss",
                "--rollout-function-path",
                "rl",
                "--rm-type",
                "mine",
                *GENERATES,
            ]
        )
        == 1
    )
    message = capsys.readouterr().err
    assert "There is no reward named 'mine' for --rm-type." in message
    assert "Plugins that failed to load: open_pack (open_pack 1.0): " in message
    assert says in message
    assert main(["check", *sft]) == 0


# ------------------------------------------------------------------------------------- abilities that nearly are there

NEAR_MISSES = """
from slime_core.data import GlobalDataSource
from slime_core.sample import RolloutOutput
from slime_core.testing import EchoEngine
from slime_torch.backend import TorchBackend

class MyEngine(EchoEngine):
    def weigth_sender(self): ...
    def take_metric(self): ...

class MySource(GlobalDataSource):
    def metric(self): ...

class MyBackend(TorchBackend):
    def on_load(self): ...

def my_rollout(args, rollout_id, data_source, evaluation=False, engine=None): ...
my_rollout.slime_engine_usage = "evaluation"

class Exact(GlobalDataSource):
    def metrics(self): return {}
    def matrix(self): ...
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rollout-engine", "open_pack.MyEngine"], "the engine MyEngine has 'weigth_sender', which nothing calls; did it mean 'weight_sender'?"),
        (["--rollout-engine", "open_pack.MyEngine"], "the engine MyEngine has 'take_metric', which nothing calls; did it mean 'take_metrics'?"),
        (["--data-source-path", "open_pack.MySource"], "the data_source MySource has 'metric', which nothing calls; did it mean 'metrics'?"),
        (["--train-backend", "open_pack.MyBackend"], "the train_backend MyBackend has 'on_load', which nothing calls; did it mean 'onload'?"),
        (
            ["--rollout-function-path", "open_pack.my_rollout"],
            "the rollout my_rollout has 'slime_engine_usage', which nothing calls; did it mean 'slime_engine_use'?",
        ),
    ],
)  # fmt: skip
def test_a_name_that_nearly_is_that_of_an_ability_is_noted(install_plugin, sft, words, says):
    install_plugin(NEAR_MISSES)
    assert says in notes([*sft, *words])


def test_names_that_are_right_or_of_ones_own_are_not_noted(install_plugin, sft):
    install_plugin(NEAR_MISSES)
    assert not [note for note in notes([*sft, "--data-source-path", "open_pack.Exact"]) if "nothing calls" in note]
    assert not [note for note in notes(sft) if "nothing calls" in note]
