"""What slime promises to plugins that it does not know: their options, markers, abilities and names work like its own."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.cli.main import main
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import Rewards, reward_caller, score
from slime_core.run.plan import make_plan
from slime_core.sample import Sample

HEAD = """
from slime_core import Lazy, hookimpl
from slime_core.contracts.options import ArgumentGroup, option, reads_options
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch) -> Install:
    """`install(code, name="open_pack")`: a distribution with one plugin, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str, name: str = "open_pack") -> None:
        (tmp_path / f"{name}.py").write_text(HEAD + textwrap.dedent(code))
        monkeypatch.delitem(sys.modules, name, raising=False)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[slime]\n{name} = {name}\n")

    return write


@pytest.fixture
def sft(tiny_model, chat_rows, tmp_path) -> list[str]:
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    flags += ["--rollout-batch-size", "4", "--num-rollout", "1", "--run-dir", str(tmp_path / "run")]
    return [*flags, "--rollout-function-path", "sft", "--loss-type", "sft_loss"]


def notes(words: list[str]) -> list[str]:
    """The notes of the plan that these words make."""
    plugins = Plugins()
    plan = make_plan(resolve(Namespace(plugins), words, env={}), plugins)
    plan.close()
    return plan.notes


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
def test_an_option_that_a_loss_of_somebody_else_declares_has_an_effect_under_it(install, sft, loss):
    install(LOSSES)
    clipped = [*sft, "--eps-clip", "0.3"]
    assert about("--eps-clip", [*clipped, "--loss-type", loss]) == ""
    told = about("--eps-clip", clipped)
    assert "--eps-clip has no effect: it is read by the loss" in told
    assert "the loss 'declared' or the loss 'decorated', which this run does not use." in told


def test_what_a_loss_does_not_declare_is_reported_under_it(install, sft):
    install(LOSSES)
    assert "which this run does not use" in about("--eps-clip-high", [*sft, "--eps-clip-high", "0.3", "--loss-type", "declared"])  # fmt: skip


@pytest.mark.parametrize("loss", ["silent", "open_pack.silent"])
def test_a_component_that_declares_nothing_may_read_what_those_of_its_kind_declare(install, sft, loss):
    install(LOSSES)
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


def test_a_loss_may_declare_whole_groups_and_conditions(install, sft):
    install(OPTIONS)
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


def test_an_option_that_nobody_declares_is_never_reported(install, sft):
    install(OPTIONS)
    for loss in ("it", "sft_loss", "policy_loss"):
        assert about("--nobodys", [*sft, "--loss-type", loss, "--nobodys", "2"]) == ""


# --------------------------------------------------------------------------------------------------- failure policies

WITH_POLICY = ("reward", "generator", "dynamic_filter", "sample_filter", "all_samples_process")


@pytest.mark.parametrize("kind", WITH_POLICY)
def test_kinds_whose_failures_a_run_can_survive_have_a_policy(sft, kind):
    assert main(["check", *sft, "--failure-policy", f"{kind}:retries=1"]) == 0


@pytest.mark.parametrize("kind", ["loss", "train_backend", "rollout", "data_source", "tracker"])
def test_a_policy_for_another_kind_is_refused_and_the_kinds_that_have_one_are_named(sft, capsys, kind):
    assert main(["check", *sft, "--failure-policy", f"{kind}:retries=1"]) == 2
    message = capsys.readouterr().err
    assert f"when a {kind} fails, the run ends; there is no other policy for it. There is one for " in message
    named = message.partition("There is one for ")[2].partition(".")[0]
    assert set(named.split(", ")) == set(WITH_POLICY)


# -------------------------------------------------------------------------------------------------- pluggy's markers


def test_specname_names_the_hook_of_a_function_that_is_called_otherwise(install, tmp_path, sft):
    install(
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


def test_observers_that_try_to_be_first_or_last_are(install):
    for name, marker in {"a_last": "trylast=True", "b": "", "c": "", "d_first": "tryfirst=True"}.items():
        install(
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
def test_a_marker_that_cannot_work_sets_the_plugin_aside_and_says_what_to_do(install, sft, capsys, code, says):
    install(code)
    assert (
        main(["train", *sft, "--loss-type", "policy_loss", "--rollout-function-path", "rl", "--rm-type", "mine"]) == 1
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
def test_a_name_that_nearly_is_that_of_an_ability_is_noted(install, sft, words, says):
    install(NEAR_MISSES)
    assert says in notes([*sft, *words])


def test_names_that_are_right_or_of_ones_own_are_not_noted(install, sft):
    install(NEAR_MISSES)
    assert not [note for note in notes([*sft, "--data-source-path", "open_pack.Exact"]) if "nothing calls" in note]
    assert not [note for note in notes(sft) if "nothing calls" in note]


# ----------------------------------------------------------------------------------------- what is caught, and whose it is


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (
            "LossOutputs(inputs.reduce(-inputs.log_probs), {'p': 0.5})",
            "It returned 0.5 (float) as the metric 'p'; expected a tensor with one number, built with inputs.reduce or inputs.measured.",
        ),
        ("LossOutputs(0.5)", "It returned 0.5 (float) as the loss; expected a tensor with one number"),
        ("LossOutputs(inputs.log_probs)", "as the loss; expected a tensor with one number"),
        ("inputs.reduce(-inputs.log_probs)", "(Tensor); expected a LossOutputs."),
    ],
)
def test_what_a_loss_returns_wrongly_is_the_losses_fault(install, sft, capsys, returned, says):
    install(
        f"""
        from slime_core.contracts.loss import LossOutputs
        def it(args, inputs): return {returned}
        @hookimpl
        def slime_losses(): return {{"it": it}}
        """
    )
    assert main(["train", *sft, "--loss-type", "it"]) == 1
    told = capsys.readouterr().err.partition("slime train: ")[2].splitlines()
    assert says in told[0]
    assert told[1].strip() == "raised in the loss 'it' of open_pack (open_pack 1.0), chosen by --loss-type"


ROLLOUT = """
from dataclasses import replace
from slime_core.sample import RolloutOutput, Status

def finished(sample, **changes):
    fields = dict(tokens=[5, 6, 7], response_length=2, reward=0.0, status=Status.COMPLETED)
    return replace(sample, **{{**fields, **changes}})

def it(args, rollout_id, data_source, evaluation=False):
    groups = [[finished(s, {changes}) for s in group] for group in data_source.get_samples(args.rollout_batch_size)]
    return {result}

@hookimpl
def slime_rollouts(): return {{"it": it}}
"""


@pytest.mark.parametrize("changes", ["loss_mask=[]", "loss_mask=[], response_length=3"])
def test_an_empty_mask_of_a_response_is_refused_at_the_boundary(install, sft, chat_rows, capsys, changes):
    install(ROLLOUT.format(changes=changes, result="RolloutOutput(groups)"))
    assert main(["train", *sft, "--rollout-function-path", "it"]) == 1
    message = capsys.readouterr().err
    assert f"The rollout returned a bad sample 0 ({chat_rows}:1): loss_mask has 0 entries, but response_length is " in message  # fmt: skip
    assert "returned by the rollout 'it' of open_pack (open_pack 1.0)" in message


@pytest.mark.parametrize("result", ["RolloutOutput([], generations=groups[0])", "RolloutOutput(groups)"])
def test_a_sample_of_an_evaluation_must_say_to_which_set_it_belongs(install, sft, chat_rows, capsys, result):
    install(ROLLOUT.format(changes="", result=result))
    words = ["--eval-function-path", "it", "--eval-prompt-data", "few", f"{chat_rows}@[0:2]", "--eval-interval", "1"]
    assert main(["train", *sft, *words]) == 1
    message = capsys.readouterr().err
    assert "The evaluation returned sample 0 " in message
    assert "whose metadata['dataset'] is None; expected the name of its set." in message
    assert "returned by the rollout 'it' of open_pack (open_pack 1.0)" in message
    assert "Traceback" not in message


# ---------------------------------------------------------------------------------------------------- rewards in a box

BOXED_REWARDS = """
def length(args, sample): return float(len(sample.response))
async def lengths(args, samples): return [float(len(sample.response)) for sample in samples]
def boxed_length(args, sample): return -1.0

@hookimpl
def slime_rewards(): return {"length": length, "lengths": lengths, "whole": length, "boxed_whole": boxed_length}
"""
ANSWER = "It is \\boxed{1234}."


def scored(name: str, rm_type: str | None = None) -> float:
    """The reward of `ANSWER` by `--rm-type`, or by a row that names another."""
    plugins, words = Plugins(), ["--hf-checkpoint", "m", "--prompt-data", "d", "--rollout-batch-size", "1"]
    args = resolve(Namespace(plugins), [*words, "--num-rollout", "1", "--rm-type", name], env={}).args
    sample = Sample(index=0, response=ANSWER, metadata={"rm_type": rm_type} if rm_type else {})
    chosen = plugins.select("reward", name)
    assert asyncio.run(Rewards(args, plugins, chosen, None).score([sample]))
    if rm_type is None:
        assert asyncio.run(score(reward_caller(args, chosen), args, [sample])) == [sample.reward]
    return sample.reward


def test_every_reward_can_be_asked_about_the_last_box_alone(install):
    install(BOXED_REWARDS)
    whole = float(len(ANSWER))
    assert (scored("length"), scored("boxed_length")) == (whole, 4.0)
    assert (scored("lengths"), scored("boxed_lengths")) == (whole, 4.0)
    assert scored("boxed_whole") == -1.0, "a reward that is called so"
    assert (scored("open_pack.length"), scored("boxed_open_pack.length")) == (whole, 4.0)
    assert scored("boxed_open_pack:length") == 4.0


def test_a_module_that_is_called_so_is_no_box(install):
    install(BOXED_REWARDS, "boxed_pack")
    assert scored("boxed_pack.length") == float(len(ANSWER))
    assert scored("boxed_boxed_pack.length") == 4.0


def test_a_row_may_ask_for_the_box_too(install):
    install(BOXED_REWARDS)
    assert scored("length", rm_type="boxed_length") == 4.0
    assert scored("boxed_length", rm_type="length") == float(len(ANSWER))
    assert scored("length", rm_type="boxed_open_pack.length") == 4.0


def test_a_boxed_reward_that_does_not_exist_is_named(sft, capsys):
    words = ["--rollout-function-path", "rl", "--rollout-engine", "local", "--rm-type", "boxed_exact_mach"]
    assert main(["check", *sft, *words]) == 1
    message = capsys.readouterr().err
    assert "There is no reward named 'exact_mach' for --rm-type. Did you mean 'exact_match'?" in message


# ------------------------------------------------------------------------------------------------- the end of a run

CLOSING = """
from pathlib import Path
from slime_core.data import GlobalDataSource
from slime_core.testing import EchoEngine
from slime_torch.backend import TorchBackend

def note(args, what):
    with (Path(args.prompt_data[0]).parent / "closed").open("a") as file:
        file.write(what + "\\n")

class Source(GlobalDataSource):
    def close(self): note(self.args, "source")

class Stuck(Source):
    def get_samples(self, num_samples): raise OSError("the line is dead")

class Backend(TorchBackend):
    def __init__(self, args):
        super().__init__(args)
        self.own = args
    def close(self):
        super().close()
        note(self.own, "backend")

class Late(Backend):
    def setup(self, loss, total_steps, role="actor"): raise OSError("no model")

class NoReference(Backend):
    def setup(self, loss, total_steps, role="actor"):
        if role == "reference":
            raise OSError("no reference")
        super().setup(loss, total_steps, role)

class Broken(TorchBackend):
    def __init__(self, args): raise OSError("no backend")

class NoEngine(EchoEngine):
    def __init__(self, args): raise OSError("no engine")

class NoTracker:
    def __init__(self, args, run_dir, config): raise OSError("no server")
    def log(self, metrics, step): ...
    def close(self, error): ...
"""


@pytest.fixture
def rows(chat_rows, tmp_path) -> Path:
    """The rows in a folder of their own, in which the components note that they were closed."""
    path = tmp_path / "rows" / "rows.jsonl"
    path.parent.mkdir()
    path.write_bytes(chat_rows.read_bytes())
    return path


SOURCE, BACKEND = ["--data-source-path", "open_pack.Source"], ["--train-backend", "open_pack.Backend"]


@pytest.mark.parametrize(
    ("words", "status", "closed"),
    [
        ([], 0, ["backend", "source"]),
        (["--data-source-path", "open_pack.Stuck"], 1, ["backend", "source"]),
        (["--train-backend", "open_pack.Late"], 1, ["backend", "source"]),
        (["--train-backend", "open_pack.Broken"], 1, ["source"]),
        (["--rollout-engine", "open_pack.NoEngine"], 1, ["source"]),
        (["--tracker", "open_pack.NoTracker"], 1, ["source"]),
        (["--use-kl-loss", "--loss-type", "policy_loss"], 0, ["backend", "backend", "source"]),
        (
            ["--use-kl-loss", "--loss-type", "policy_loss", "--train-backend", "open_pack.NoReference"],
            1,
            ["backend", "backend", "source"],
        ),
    ],
    ids=["ends", "rollout", "setup", "backend", "engine", "tracker", "reference", "no reference"],
)
def test_what_a_run_opened_is_closed_once_however_it_ends(install, sft, rows, words, status, closed):
    install(CLOSING)
    assert main(["train", *sft, "--prompt-data", str(rows), *SOURCE, *BACKEND, *words]) == status
    assert sorted((rows.parent / "closed").read_text().split()) == closed


def test_what_was_opened_for_a_run_that_does_not_start_is_closed_too(install, sft, rows, tmp_path):
    install(CLOSING)
    words = [*sft, "--prompt-data", str(rows), *SOURCE]
    assert main(["check", *words]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages:\n- {lr: 0.1}\n- {failure_policy: loss:retries=1}\n")
    assert main(["train", str(recipe), *words]) == 2
    place = words.index("--num-rollout")
    assert main(["train", *words[:place], *words[place + 2 :], "--num-epoch", "1", "--rollout-batch-size", "99"]) == 2
    assert (rows.parent / "closed").read_text().split() == ["source"] * 3
