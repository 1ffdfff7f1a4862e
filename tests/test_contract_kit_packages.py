"""The contract kit on whole distributions: plugins, options, observers, and the commands that it is behind."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from good_components import good_rollout

from slime_core import hookspecs
from slime_core.cli import main
from slime_core.contracts.kinds import OBSERVERS
from slime_core.contracts.options import reads_options
from slime_core.testing import (
    ContractError,
    check_component,
    check_distribution,
)
from slime_core.testing.behaviour.observers import TOLD


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """`distribution(code)` installs "sour" 1.0, whose plugin module has `code`, until the test is over."""

    def install(code: str) -> Path:
        (tmp_path / "sour.py").write_text("from slime_core import Lazy, hookimpl\n" + textwrap.dedent(code))
        info = tmp_path / "sour-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sour\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[slime]\nsour = sour\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path

    return install


SOUR = """
    import numpy
    from slime_core.contracts.options import ArgumentGroup

    class SourArguments(ArgumentGroup):
        sourness: int = 3

    def sour(args, sample):
        "Says no."
        return "no"

    @hookimpl
    def slime_argument_groups(): return [SourArguments]

    @hookimpl
    def slime_rewards(): return {"sour": Lazy("sour:sour"), "gone": Lazy("sour:gone", "was here")}
"""


def test_everything_of_a_distribution_is_checked_and_every_problem_is_listed(distribution):
    distribution(SOUR)
    with pytest.raises(ContractError) as error:
        check_distribution("sour")
    for part, advice in [
        (
            "plugin sour",
            "sour imports numpy, pydantic, so that every `slime` command waits for it; name components with",
        ),
        ("plugin sour", "there is no help text for sourness, SourArguments; give every option and its group one"),
        ("reward sour", 'give its Lazy one: Lazy("…", summary="what it does")'),
        ("reward sour", "It returned 'no' (str); expected a number"),
        ("reward gone", "check the name in"),
    ]:
        assert any(line.startswith(f"The {part} ") and advice in line for line in str(error.value).splitlines()), advice


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("@hookimpl\ndef slime_rewardz(): return {}", "unknown hook 'slime_rewardz'"),
    ],
)
def test_a_plugin_that_does_not_load_fails_with_the_reason(distribution, code, why):
    distribution(code)
    with pytest.raises(ContractError, match="should keep this promise: loads and implements known hooks") as error:
        check_distribution("sour")
    assert why in str(error.value)


OBSERVER = "\n".join(
    f"@hookimpl\ndef {hook}({', '.join(inspect.signature(getattr(hookspecs, hook)).parameters)}): SEEN.append(locals())"
    for hook in OBSERVERS
)


def test_every_observer_is_called_once_as_a_small_run_would(distribution):
    distribution("SEEN = []\n" + OBSERVER)
    check_distribution("sour")
    seen = sys.modules["sour"].SEEN
    assert len(seen) == len(OBSERVERS) == len(TOLD)
    for hook, told in zip(TOLD, seen, strict=True):
        assert told.keys() == inspect.signature(getattr(hookspecs, hook)).parameters.keys()
        assert told["args"].rollout_batch_size == 2


def test_a_plugin_whose_options_cannot_be_used_fails_with_the_reason(distribution):
    distribution(SWEET.replace("DECLARED", "None").replace("sweetness", "lr"))
    with pytest.raises(ContractError, match=r"Two distributions define the option --lr: slime-core .* and sour"):
        check_distribution("sour")


def test_an_observer_that_raises_fails_with_what_it_raised(distribution):
    distribution("@hookimpl\ndef slime_train_step_finished(metrics): metrics['reward']")
    with pytest.raises(ContractError, match="takes slime_train_step_finished\\. But it raised KeyError"):
        check_distribution("sour")


def test_the_command_prints_a_table_and_fails_when_something_fails(distribution, capsys):
    distribution(SOUR)
    assert main(["plugins", "check", "sour"]) == 1
    lines = capsys.readouterr().out.splitlines()
    cells = [re.split(r"  +", line) for line in lines]
    assert ["plugin sour", "failed", "imports nothing heavy"] in cells
    assert ["reward sour", "ok", "imports and fits its contract"] in cells
    assert any(line.strip().startswith("It returned 'no' (str); expected a number") for line in lines)
    assert lines[-1] == "4 ok, 6 failed"


def test_the_command_passes_what_slime_brings(capsys):
    assert main(["plugins", "check", "slime-core"]) == 0
    assert main(["plugins", "check", "slime_rewards"]) == 0
    assert "failed" not in capsys.readouterr().out


def test_a_distribution_without_a_plugin_is_an_error_that_says_where_to_look(capsys):
    assert main(["plugins", "check", "slime-losse"]) == 1
    message = capsys.readouterr().err
    assert "Did you mean 'slime-losses'?" in message
    assert "[project.entry-points.slime]" in message


def test_pytest_checks_a_distribution_that_is_named_on_its_command_line(distribution):
    folder = distribution(SOUR)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--slime-check", "sour"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 1
    assert "3 failed" in done.stdout
    assert "It returned 'no' (str); expected a number" in done.stdout
    done = subprocess.run([*words[:-1], "slime-losse"], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "Did you mean 'slime-losses'?" in done.stderr) == (4, True)


def test_the_pytest_plugin_costs_other_projects_next_to_nothing():
    code = "import pytest, sys; before = set(sys.modules); import slime_core.cli.pytest_plugin; "
    code += "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = {"slime_core", "slime_core.lazy", "slime_core.cli", "slime_core.cli.pytest_plugin"}
    assert set(done.stdout.split()) <= {"pluggy", *own}


# ------------------------------------------------------------------------------------------ options that are read


SWEET = """
    def sweet(args, sample):
        "As sweet as --sweetness says."
        return float(args.sweetness)

    @hookimpl
    def slime_argument_groups():
        from slime_core.contracts.options import ArgumentGroup, option

        class SweetArguments(ArgumentGroup):
            "Sweetness"
            sweetness: int = option(3, "How sweet rewards are.")

        return [SweetArguments]

    @hookimpl
    def slime_rewards():
        return {"sweet": Lazy("sour:sweet", "likes all", reads_options=DECLARED)}
"""


def test_an_option_of_a_plugin_that_is_read_and_not_declared_is_found(distribution):
    distribution(SWEET.replace("DECLARED", '("lr",)'))
    with pytest.raises(ContractError, match="it reads --sweetness and does not declare to") as error:
        check_distribution("sour")
    assert "reads no option of a plugin that it does not declare" in str(error.value)


@pytest.mark.parametrize("declared", ['("sweetness",)', '("SweetArguments?rm_type",)', "None"])
def test_what_is_declared_may_be_read_and_one_that_declares_nothing_may_read_all(distribution, declared):
    distribution(SWEET.replace("DECLARED", declared))
    check_distribution("sour")


def test_what_a_component_is_given_may_read_options_of_its_own(distribution):
    @reads_options("rm_type")
    def scoring_rollout(args, rollout_id, data_source, evaluation=False, *, components):
        """Score every sample."""
        output = good_rollout(args, rollout_id, data_source, evaluation)
        for made in output.samples:
            made.reward = components.further["reward"](args, made)
        return output

    distribution(SWEET.replace("DECLARED", '("sweetness",)'))
    check_component("rollout", scoring_rollout, options=["--rm-type", "sweet"])
