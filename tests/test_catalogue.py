"""What is not installed: messages name the distribution that brings it, from a catalogue that is up to date."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import Stage
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import FIRST_PARTY
from slime_core.plugins.discovery import discover

ROOT = Path(__file__).parent.parent


@pytest.fixture
def core_alone() -> Plugins:
    """The plugins of a process in which slime-core is the only installed distribution."""
    return Plugins([info for info in discover() if info.distribution == "slime-core"])


def test_the_catalogue_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "generate_catalogue.py"))
    stored = (ROOT / "slime_core" / "plugins" / "catalogue.json").read_text()
    assert script["catalogue"]() == stored, "out of date; run: python scripts/generate_catalogue.py"
    assert set(script["distributions"]()) == FIRST_PARTY


@pytest.mark.parametrize(
    ("kind", "name", "distribution"),
    [
        ("engine", "sglang", "slime-engine-sglang"),
        ("loss", "sft_loss", "slime-losses"),
        ("rollout", "rl", "slime-rollout-sglang"),
        ("rollout", "slime.rollout.sft_rollout.generate_rollout", "slime-rollout-sft"),
        ("reward", "boxed_f1", "slime-rewards"),
        ("tracker", "wandb", "slime-trackers"),
    ],
)
def test_an_unknown_component_names_the_distribution_that_brings_it(
    core_alone: Plugins, kind: str, name: str, distribution: str
) -> None:
    with pytest.raises(
        PluginError, match=rf"There is no {kind} named .* {distribution} brings it: pip install {distribution}\."
    ) as caught:
        core_alone.select(kind, name)
    assert "Did you mean" not in str(caught.value)
    assert "Python looked in" not in str(caught.value)


def test_an_unknown_option_names_the_distribution_that_declares_it(core_alone: Plugins) -> None:
    for flag in ("--use-wandb", "--no-use-wandb", "--wandb-dir=here"):
        with pytest.raises(ArgumentError, match=r"slime-trackers brings it: pip install slime-trackers\."):
            resolve(Namespace(core_alone), [flag])
    values, (error,) = Stage("r.yaml", {"sglang_mem_fraction_static": 0.5}).read(Namespace(core_alone))
    assert values == {}
    assert "slime-engine-sglang brings it: pip install slime-engine-sglang." in str(error)


def test_an_unknown_command_names_the_distribution_that_brings_it(
    core_alone: Plugins, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("slime_core.plugins.registry.discover", lambda: core_alone.infos)
    assert main(["data", "convert"]) == 2
    expected = "there is no command 'data'. slime-rollout-sft brings it: pip install slime-rollout-sft."
    assert expected in capsys.readouterr().err


def test_installing_is_no_advice_for_what_is_installed_and_does_not_work() -> None:
    plugins = Plugins()
    for info in plugins.infos:
        if info.distribution == "slime-trackers":
            info.status, info.reason = "broken", "ImportError: no such module"
    with pytest.raises(PluginError, match="There is no tracker named 'wandb'") as caught:
        plugins.select("tracker", "wandb")
    assert "pip install" not in str(caught.value)
    assert "ImportError: no such module" in str(caught.value)


def test_a_mistyped_name_gets_the_nearest_one(core_alone: Plugins) -> None:
    with pytest.raises(PluginError, match="Did you mean 'global'") as caught:
        core_alone.select("data_source", "globl")
    assert "pip install" not in str(caught.value)
