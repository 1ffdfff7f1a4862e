"""What people see when a plugin is faulty: one message that names the plugin, its distribution and what to do.

Each fault is a real installed distribution (a module and its metadata on the path). No fault disturbs a run that does
not select what is broken.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from plugin_faults import FAULTS, PICK_LOSS, Fault, loss

from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import Caller, policies
from slime_core.rollout.rewards import score
from slime_core.sample import Sample


@pytest.fixture
def install(install_plugin) -> Callable[[Fault], None]:
    """Install the plugin `faulty` of the distribution faulty-pack 1.2 with a fault."""

    def write(fault: Fault) -> None:
        code = textwrap.dedent(fault.more.get("source", "")) + "\n" + fault.code
        install_plugin(code, "faulty", "faulty-pack", "1.2", fault.requires, fault.entry)

    return write


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_in_one_message_and_disturbs_nobody_else(name, install, sft, chat_rows, capsys):
    fault = FAULTS[name]
    install(fault)
    assert main(["train", *sft, *(flag.format(rows=chat_rows) for flag in fault.flags)]) in (1, 2)
    message = capsys.readouterr().err
    for part in (*fault.names, *fault.says):
        assert part in message, message
    assert "slime_core/cli" not in message
    assert main(["check", *sft]) == 0


def test_an_observer_that_raises_is_silenced_with_a_warning(install, sft, caplog):
    code = "@hookimpl\ndef slime_rollout_finished(rollout_id): raise ValueError(f'nosy {rollout_id}')"
    install(Fault(code, [], []))
    assert main(["train", *sft, "--num-rollout", "2"]) == 0
    warnings = [r.getMessage() for r in caplog.records if "faulty" in r.getMessage()]
    assert len(warnings) == 1
    assert (
        "The hook slime_rollout_finished of the plugin faulty (faulty-pack 1.2) raised ValueError: nosy 0."
        in warnings[0]
    )


def test_a_plugin_that_is_off_but_selected_is_named(install, sft, monkeypatch, capsys):
    install(Fault(loss("def it(args, inputs): ..."), PICK_LOSS, []))
    for off in (["--disable-plugin", "faulty"], ["--disable-plugin", "faulty-pack"], ["--no-third-party"]):
        assert main(["check", *sft, *PICK_LOSS, *off]) == 1
        message = capsys.readouterr().err
        assert "There is no loss named 'it'" in message
        assert "Plugins that are off: " in message
        assert "faulty (faulty-pack 1.2): " in message
    monkeypatch.setenv("SLIME_PLUGINS", "-faulty")
    assert main(["check", *sft, *PICK_LOSS]) == 1
    assert "SLIME_PLUGINS" in capsys.readouterr().err


def test_an_unknown_plugin_cannot_be_switched(sft, capsys):
    assert main(["check", *sft, "--disable-plugin", "trakers"]) == 1
    assert "There is no plugin 'trakers' to switch on or off. Did you mean 'trackers'?" in capsys.readouterr().err


def test_the_first_mistake_costs_less_than_a_second(install, sft, tmp_path):
    install(FAULTS["missing argument"])
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from slime_core.cli import main; sys.exit(main())"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "train", *sft, *PICK_LOSS], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1
    assert "does not fit --loss-type" in done.stderr
    assert "| torch" not in done.stderr, "validation must not wait for torch"
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert computed < 3, "seconds of computing; far above the one it should take, to forgive a busy machine"


def test_a_worker_with_other_plugins_refuses_to_start():
    ours = Plugins()
    ours.require_same(ours.fingerprint(), "the driver")
    theirs = {**ours.fingerprint(), "slime-losses": "9.9", "extra-pack": "1.0"}
    with pytest.raises(PluginError) as error:
        ours.require_same(theirs, "the driver")
    assert "extra-pack is 1.0 there and not loaded here; slime-losses is 9.9 there and 0.1.0 here" in str(error.value)


SLIME_HOOKS = """
import torch
def check_reward_nonzero_std(args, samples, **kwargs):
    rewards = [sample.reward for sample in samples]
    return torch.tensor(rewards, dtype=torch.float).std() > 0.0

def pop_first(args, rollout_id, buffer, num_samples):
    num_to_pop = min(len(buffer), num_samples)
    samples = buffer[:num_to_pop]
    del buffer[:num_to_pop]
    return samples

async def my_reward(args, sample, **kwargs):
    return float(sample.response == sample.label)
"""


def test_slimes_own_hook_functions_run_unchanged(tmp_path, monkeypatch):
    (tmp_path / "slime_hooks.py").write_text(SLIME_HOOKS)
    monkeypatch.syspath_prepend(tmp_path)
    plugins = Plugins()
    keep = plugins.select("dynamic_filter", "slime_hooks.check_reward_nonzero_std")
    assert keep(None, [Sample(reward=0.0), Sample(reward=1.0)])
    assert not keep(None, [Sample(reward=1.0), Sample(reward=1.0)])
    buffer = [[Sample(index=i)] for i in range(3)]
    popped = plugins.select("buffer_pop", "slime_hooks.pop_first")(None, 0, buffer, 2)
    assert ([g[0].index for g in popped], [g[0].index for g in buffer]) == ([0, 1], [2])
    scoring = Caller(plugins.select("reward", "slime_hooks.my_reward"), policies([])["reward"])
    args = SimpleNamespace(group_rm=False, custom_rm_path=None)
    assert asyncio.run(score(scoring, args, [Sample(response="4", label="4"), Sample(response="5", label="4")])) == [
        1.0,
        0.0,
    ]


def test_options_of_a_plugin_disappear_with_it(install):
    code = "class G(ArgumentGroup):\n    'G'\n    spice: int = option(1, 'How hot it is.')\n@hookimpl\ndef slime_argument_groups(): return [G]"
    assert "spice" not in Namespace(Plugins()).options
    install(Fault(code, [], []))
    assert "spice" in Namespace(Plugins()).options


OPTIONS = """
class G(ArgumentGroup):
    "G"
    {}

@hookimpl
def slime_argument_groups(): return {}
"""
OBSERVER = "\n@hookimpl\ndef slime_run_started(): print(__name__, 'watches')\n"

UNUSABLE = {
    "of_slime": (OPTIONS.format("lr: float = option(1.0, 'x')", "[G]"), "Two distributions define the option --lr: slime-core"),
    "taken": (OPTIONS.format("shared_words: int = option(1, 'x')", "[G]"), "Two distributions define the option --shared-words: good"),
    "untyped": (OPTIONS.format("some_words: dict = option({}, 'x')", "[G]"), "The type of its option --some-words (G) is "),
    "no_list": (OPTIONS.format("no_words: int = option(1, 'x')", "G"), "expected a list of subclasses of slime_core"),
    "unimported": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "unmarked": ("def slime_rewards(): return {}", "without the decorator @slime_core.hookimpl; add it"),
}  # fmt: skip


@pytest.fixture
def unusable(install_plugin) -> None:
    """Installs one plugin for each of `UNUSABLE`, which nothing of a run chooses, and one that is good."""
    install_plugin(OPTIONS.format("shared_words: int = option(1, 'x')", "[G]") + OBSERVER, "good")
    for name, (code, _) in UNUSABLE.items():
        install_plugin(code + OBSERVER, name)


@pytest.mark.parametrize("command", ["check", "train", "check what is wrong", "train what is wrong"])
def test_a_run_names_each_plugin_once_that_it_does_without(command, unusable, sft, capsys):
    command, *wrong = command.split(maxsplit=1)
    assert main([command, *sft, *(["--num-rollout", "-1"] if wrong else [])]) == (2 if wrong else 0)
    printed = "".join(capsys.readouterr())
    for name, (_, reason) in UNUSABLE.items():
        (told,) = [line for line in printed.splitlines() if f"plugin {name} ({name} 1.0)" in line]
        assert "failed to load and is left out: " in told
        assert reason in told
        assert told.endswith(f". `slime plugins --why {name}` tells all.")
        assert ".." not in told
        assert f"{name} watches" not in printed
    assert "plugin good (" not in printed
    assert ("good watches" in printed) == (command == "train" and not wrong)


def test_slime_plugins_knows_what_a_run_does_without(unusable, capsys):
    assert main(["plugins", "--json"]) == 0
    rows = {row["plugin"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["good"]["status"] == "loaded"
    for name, (_, reason) in UNUSABLE.items():
        assert rows[name]["status"] == "broken"
        assert reason in rows[name]["reason"]
        assert main(["plugins", "--why", name]) == 0
        first, *story = capsys.readouterr().out.splitlines()
        assert first.startswith(f"{name} ({name} 1.0): broken, ")
        assert reason in first
        assert "Traceback (most recent call last):" in story


def test_components_of_a_plugin_whose_options_cannot_be_used_are_not_listed(install_plugin, capsys):
    install_plugin(OPTIONS.format("lr: float = option(1.0, 'x')", "[G]") + loss("def it(args, inputs): ..."))
    assert main(["plugins", "--components"]) == 0
    assert "open_pack" not in capsys.readouterr().out
