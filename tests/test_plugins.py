"""Plugins are listed, isolated, chosen by name, and checked before anything runs."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import sysconfig
import textwrap
import timeit
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from slime_core import Lazy, hookspecs
from slime_core.contracts.kinds import KINDS
from slime_core.contracts.loss import LossOutputs
from slime_core.errors import PluginError
from slime_core.plugins import PluginInfo, Plugins, Selected
from slime_core.plugins.discovery import Switches
from slime_core.plugins.selection import raised_in


def plugin(tmp_path: Path, monkeypatch, name: str, code: str, requires_core: str = "") -> PluginInfo:
    (tmp_path / f"{name}.py").write_text("from slime_core import Lazy, hookimpl\n" + textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    return PluginInfo(name, f"dist-{name}", "1.2", name, requires_core)


LOSS = """
    def my_loss(args, inputs): return inputs
    @hookimpl
    def slime_losses(): return {"my_loss": my_loss}
"""


def test_a_component_is_chosen_by_name_by_alias_and_by_import_path(tmp_path, monkeypatch):
    info = plugin(
        tmp_path,
        monkeypatch,
        "chosen",
        """
        def my_loss(args, inputs): return inputs
        @hookimpl
        def slime_losses(): return {"mine": Lazy("chosen:my_loss", aliases=("old.name",))}
        """,
    )
    plugins = Plugins([info])
    by_name, by_alias = plugins.select("loss", "mine"), plugins.select("loss", "old.name")
    assert by_name.target is by_alias.target
    assert by_alias.name == "mine"
    assert by_name.origin == "chosen (dist-chosen 1.2)"
    assert plugins.select("loss", "chosen.my_loss").origin == "import path"
    assert plugins.select("loss", "chosen:my_loss").target is by_name.target


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("@hookimpl\ndef slime_lossez(): return {}", "unknown hook 'slime_lossez'. Did you mean 'slime_losses'?"),
        (
            "@hookimpl\ndef slime_losses(wrong): return {}",
            "Its slime_losses takes the parameter 'wrong', which nothing passes. It may take none",
        ),
        (
            "@hookimpl\ndef slime_run_started(rundir): ...",
            "takes the parameter 'rundir', which nothing passes. Did you mean 'run_dir'? It may take args, run_dir",
        ),
        ("@hookimpl\ndef slime_losses(): raise ValueError('sour')", "ValueError: sour"),
        ("@hookimpl\nasync def slime_run_finished(): pass", "Its slime_run_finished is async, and would never run"),
        ("@hookimpl\ndef slime_run_started(args): yield", "Its slime_run_started is a generator, and would never run"),
        ("@hookimpl\nasync def slime_run_started(): yield", "is an async generator, and would never run"),
        ("@hookimpl\ndef slime_losses(): return {'a': Lazy('m:f', aliases=('x.y'))}", "aliases is the text 'x.y'"),
        ("@hookimpl\ndef slime_losses(): return {'a': Lazy('m:f', reads_options='lr')}", "expected a tuple: ('lr',)"),
    ],
)
def test_a_broken_plugin_is_set_aside_with_its_reason_and_stops_nobody_else(tmp_path, monkeypatch, code, reason):
    bad = plugin(tmp_path, monkeypatch, "bad", code)
    good = plugin(tmp_path, monkeypatch, "good", LOSS)
    for order in ([bad, good], [good, bad]):
        plugins = Plugins(order)
        assert (bad.status, good.status) == ("broken", "loaded")
        assert reason in bad.reason
        assert "Traceback" in bad.traceback
        assert plugins.select("loss", "my_loss").target
    with pytest.raises(PluginError) as error:
        Plugins([bad, good]).select("loss", "sour_loss")
    assert "There is no loss named 'sour_loss' for --loss-type" in str(error.value)
    assert f"Plugins that failed to load: bad (dist-bad 1.2): {bad.reason}" in str(error.value)


def test_a_plugin_for_another_core_is_not_even_imported(tmp_path, monkeypatch):
    info = plugin(tmp_path, monkeypatch, "future", "raise SystemExit('imported')", requires_core=">=99")
    Plugins([info])
    assert info.status == "broken"
    assert "It needs slime-core >=99, but slime-core" in info.reason


def test_two_components_with_one_name_are_an_error_that_names_both(tmp_path, monkeypatch):
    infos = [plugin(tmp_path, monkeypatch, name, LOSS) for name in ("first", "second")]
    with pytest.raises(PluginError) as error:
        Plugins(infos).select("loss", "my_loss")
    said = str(error.value)
    assert "Two plugins provide a loss named 'my_loss': first (dist-first 1.2) and second (dist-second 1.2)" in said
    assert "switch one off with --disable-plugin dist-second." in said


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("def it(args): ...", "it does not take the parameter 'inputs'"),
        ("def it(inputs, args): ...", "parameter 'args' is number 2, expected number 1"),
        ("def it(args, inputs, more): ...", "it requires a parameter 'more' that nothing passes"),
        ("async def it(args, inputs): ...", "it is async, expected a plain function"),
        ("it = 5", "it is a int, expected a function loss(args"),
    ],
)
def test_a_wrong_signature_is_found_when_the_component_is_chosen(tmp_path, monkeypatch, definition, message):
    plugin(tmp_path, monkeypatch, "shape", definition)
    with pytest.raises(PluginError, match="does not fit --loss-type") as error:
        Plugins([]).select("loss", "shape.it")
    assert message in str(error.value)


def test_a_function_may_leave_out_a_parameter_that_has_a_default_only_if_it_takes_keywords(tmp_path, monkeypatch):
    code = "def ok(args, rollout_id, data_source, **kw): ...\ndef bad(args, rollout_id, data_source): ..."
    plugin(tmp_path, monkeypatch, "partly", code)
    assert Plugins([]).select("rollout", "partly.ok")
    with pytest.raises(PluginError, match="does not take the parameter 'evaluation'"):
        Plugins([]).select("rollout", "partly.bad")


def test_a_class_must_have_every_method_of_its_contract(tmp_path, monkeypatch):
    plugin(tmp_path, monkeypatch, "half", "class It:\n    def __init__(self, args, run_dir, config): ...")
    with pytest.raises(PluginError, match=r"it has no method close.*it has no method log"):
        Plugins([]).select("tracker", "half.It")


def test_an_exception_says_which_component_raised_it(tmp_path, monkeypatch):
    plugin(tmp_path, monkeypatch, "raises", "def it(args, inputs): raise KeyError('x')")
    with pytest.raises(KeyError) as error:
        Plugins([]).select("loss", "raises.it")(None, None)
    assert error.value.__notes__ == ["raised in the loss 'raises.it' of import path, chosen by --loss-type"]


def test_messages_name_the_option_that_chose_the_component(tmp_path, monkeypatch):
    plugin(tmp_path, monkeypatch, "chosen_by", "def it(args, sample): 1 / 0\ndef no(sample): ...")
    plugins, option = Plugins([]), "--custom-rm-path"
    with pytest.raises(ZeroDivisionError) as error:
        plugins.select("reward", "chosen_by.it", option)(None, None)
    assert error.value.__notes__ == ["raised in the reward 'chosen_by.it' of import path, chosen by --custom-rm-path"]
    for name, says in [
        ("it", "There is no reward named 'it' for --custom-rm-path."),
        ("chosen_by.no", "does not fit --custom-rm-path: it does not take the parameter 'args'"),
        (
            "chosen_by.lost",
            f"--custom-rm-path, cannot be imported: chosen_by ({tmp_path}/chosen_by.py) has no 'lost'; check the name",
        ),
        ("nowhere.it", "The reward 'nowhere.it' of import path, chosen by --custom-rm-path, cannot be imported"),
    ]:
        with pytest.raises(PluginError) as error:
            plugins.select("reward", name, option)
        assert says in str(error.value)
        assert "--rm-type" not in str(error.value)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, behind everything else on the path: a package that gives a function the name of its module, and files."""
    package = tmp_path / "reexporting"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .reward import reward\n")
    (package / "reward.py").write_text("def reward(args, sample): return 1.0\n")
    (package / "inner" / "__init__.py").write_text("import no_such_module\n")
    for name in ("code", "plainly_named"):
        (tmp_path / f"{name}.py").write_text("def score(args, sample): return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith(("reexporting", "plainly_named"))]:
        del sys.modules[name]


@pytest.mark.parametrize(
    "path",
    ["reexporting.reward", "reexporting:reward", "reexporting.reward.reward", "reexporting.reward:reward"],
)
def test_an_import_path_is_read_as_python_reads_an_import(path, project):
    assert Plugins([]).select("reward", path, "--custom-rm-path").target(None, None) == 1.0


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("reexporting.lost", "reexporting ({}/reexporting/__init__.py) has no 'lost'; check the name"),
        ("reexporting:lost", "reexporting ({}/reexporting/__init__.py) has no 'lost'; check the name"),
        ("reexporting.inner", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("reexporting.inner.score", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("code.score", "code.py, which hides ./code.py; rename that) has no 'score'"),
        ("code:score", "code.py, which hides ./code.py; rename that) has no 'score'"),
        ("plainly_named.lost", "plainly_named ({}/plainly_named.py) has no 'lost'"),
        ("./plainly_named.py:score", "is the path of a file; write 'plainly_named.score'"),
        ("{}/plainly_named.py:score", "is the path of a file; write 'plainly_named.score'"),
        ("plainly_named.py:score", "is the path of a file; write 'plainly_named.score'"),
        ("./plainly_named.py", "is the path of a file; write 'plainly_named.NAME'"),
    ],
)
def test_an_import_path_that_leads_nowhere_says_what_was_read(path, says, project):
    with pytest.raises(PluginError) as error:
        Plugins([]).select("reward", path.format(project), "--custom-rm-path")
    assert says.format(project) in str(error.value)


def test_a_module_that_is_not_found_is_reported_with_the_folders_that_were_searched(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as error:
        Plugins([]).select("reward", "no_such_project.rewards.it", "--custom-rm-path")
    assert f"No module named 'no_such_project'. Python looked in {tmp_path}, " in str(error.value)
    assert "go to the folder that holds it, add that to PYTHONPATH, or install it" in str(error.value)
    assert f"{sysconfig.get_path('stdlib')}," not in str(error.value)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import json\nfoo + 1", "NameError: name 'foo' is not defined ({}:2)."),
        ("def own():\n    return 1 / 0\nown()", "ZeroDivisionError: division by zero ({}:2)."),
        ("import json\njson.loads('{')", "({}:2)."),
        ("import no_such_package", "No module named 'no_such_package' ({}:1). Python looked in "),
        ("def it(:", "SyntaxError: invalid syntax (failing_file.py, line 1)."),
        ('raise ModuleNotFoundError("Leave it out.")', "ModuleNotFoundError: Leave it out ({}:1)."),
        ("raise SystemExit(3)", "Importing failing_file raised "),
    ],
)
@pytest.mark.parametrize("path", ["failing_file.it", "failing_file:it"])
def test_a_module_that_fails_while_it_is_imported_is_told_with_the_line_and_not_as_one_that_is_missing(
    path, code, says, tmp_path, monkeypatch
):
    (tmp_path / "failing_file.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as error:
        Plugins([]).select("reward", path, "--custom-rm-path")
    assert says.format(tmp_path / "failing_file.py") in str(error.value)
    assert "There is no reward named" not in str(error.value)


def test_of_a_module_that_was_made_by_hand_no_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_by_hand", ModuleType("made_by_hand"))
    with pytest.raises(PluginError, match="cannot be imported: made_by_hand has no 'it'"):
        Plugins([]).select("reward", "made_by_hand.it", "--custom-rm-path")
    with pytest.raises(PluginError, match=r"'made_by_hand' is not a package. .* There is no reward named"):
        Plugins([]).select("reward", "made_by_hand.inner.it", "--custom-rm-path")


def test_calls_are_counted_and_timed_by_kind_and_observer_until_they_are_taken(tmp_path, monkeypatch):
    code = """
        import asyncio, time
        def my_loss(args, inputs):
            time.sleep(0.02)
            return LossOutputs(torch.tensor(0.0))
        def failing(args, inputs): 1 / 0
        async def my_reward(args, sample):
            await asyncio.sleep(0.02)
            return 1.0
        @hookimpl
        def slime_losses(): return {"my_loss": my_loss, "failing": failing}
        @hookimpl
        def slime_rewards(): return {"my_reward": my_reward}
        @hookimpl
        def slime_run_finished(error): time.sleep(0.02)
        """
    plugins = Plugins(
        [
            plugin(
                tmp_path,
                monkeypatch,
                "timed",
                "import torch\nfrom slime_core.contracts.loss import LossOutputs\n" + textwrap.dedent(code),
            )
        ]
    )

    async def score():
        reward = plugins.select("reward", "my_reward")
        return await asyncio.gather(*(reward(None, None) for _ in range(3)))

    for _ in range(2):
        plugins.select("loss", "my_loss").bind(importance_weight=None)(None, None)
        with pytest.raises(ZeroDivisionError):
            plugins.select("loss", "failing")(None, None)
        asyncio.run(score())
        plugins.notify("slime_run_finished", args=None, error=None)
        taken = plugins.take_timings()
        calls = {name: value for name, value in taken.items() if name.endswith("/calls")}
        assert calls == {
            "perf/hooks/loss/calls": 2.0,
            "perf/hooks/reward/calls": 3.0,
            "perf/hooks/slime_run_finished/calls": 1.0,
        }
        assert 0.02 <= taken["perf/hooks/loss/seconds"] < 1
        assert 0.06 <= taken["perf/hooks/reward/seconds"] < 3, "three calls of 0.02 s at the same time"
        assert 0.02 <= taken["perf/hooks/slime_run_finished/seconds"] < 1
        assert plugins.take_timings() == {}


def test_every_method_of_a_class_component_is_timed_and_named_in_what_it_raises(tmp_path, monkeypatch):
    code = """
        class Engine:
            def __init__(self, args): self._args = args
            async def generate(self, input_ids, sampling_params, request_id=None):
                await self.abort()
            async def abort(self, request_ids=None): raise OSError("the server is gone")
            def update_weights(self, weights, version): return list(weights)
            def close(self): ...
            def own(self): raise OSError("not of the contract")
        @hookimpl
        def slime_engines(): return {"mine": Engine}
        """
    plugins = Plugins([plugin(tmp_path, monkeypatch, "methods", code)])
    engine = plugins.select("engine", "mine")(None)
    assert engine.update_weights(iter([1, 2]), version=3) == [1, 2]
    with pytest.raises(OSError, match="the server is gone") as error:
        asyncio.run(engine.generate([], {}))
    note = "raised in abort of the engine 'mine' of methods (dist-methods 1.2), chosen by --rollout-engine"
    assert error.value.__notes__ == [note], "said once, where it happened"
    with pytest.raises(OSError, match="not of the contract") as error:
        engine.own()
    assert not hasattr(error.value, "__notes__")
    taken = {name: value for name, value in plugins.take_timings().items() if name.endswith("/calls")}
    assert taken == {
        f"perf/hooks/engine{method}/calls": 1.0 for method in ("", ".abort", ".generate", ".update_weights")
    }


def test_no_call_is_lost_when_threads_add_and_take_timings_together(tmp_path, monkeypatch):
    plugins = Plugins(
        [
            plugin(
                tmp_path,
                monkeypatch,
                "busy",
                "def good(args, sample): return 1.0\n@hookimpl\ndef slime_rewards(): return {'good': good}",
            )
        ]
    )
    reward, found = plugins.select("reward", "good"), 0.0
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(lambda: [reward(None, None) for _ in range(2000)]) for _ in range(4)]
        while not all(future.done() for future in work):
            found += plugins.take_timings().get("perf/hooks/reward/calls", 0.0)
    assert found + plugins.take_timings().get("perf/hooks/reward/calls", 0.0) == 8000


def test_being_named_checked_and_timed_costs_a_call_microseconds():
    outputs = LossOutputs(torch.tensor(0.0), {"p": torch.tensor(1.0), "kl": torch.tensor(0.5)})
    selected = Selected("loss", "it", lambda args, inputs: outputs, "a test", "--loss-type")
    best = min(timeit.repeat(lambda: selected(None, None), number=1000, repeat=20)) / 1000
    assert best < 50e-6, "a loss takes a hundred times longer than the few microseconds that it should be"


def test_an_error_that_names_its_component_can_go_to_another_process(tmp_path, monkeypatch):
    plugin(tmp_path, monkeypatch, "travels", "def it(args, inputs): raise KeyError('x')")
    with pytest.raises(KeyError) as error:
        Plugins([]).select("loss", "travels.it")(None, None)
    arrived = pickle.loads(pickle.dumps(error.value))
    assert raised_in(arrived) == raised_in(error.value)
    assert raised_in(arrived)[0].kind == "loss"
    assert arrived.__notes__ == error.value.__notes__


def test_switches_take_names_in_every_spelling_that_pip_takes():
    for name in ("slime-losses", "Slime_Losses", "slime.losses", "LOSSES"):
        plugins = Plugins(switches=Switches(disabled=(name,)))
        assert [i.name for i in plugins.infos if i.status == "disabled"] == ["losses"]
    with pytest.raises(PluginError, match="There is no plugin 'slime-loses' to switch on or off"):
        Plugins(switches=Switches(disabled=("slime-loses",)))


def test_observers_run_in_order_and_are_given_what_they_ask_for(tmp_path, monkeypatch):
    code = "seen = []\n@hookimpl\ndef slime_run_finished(error): seen.append(error)"
    infos = [plugin(tmp_path, monkeypatch, name, code) for name in ("watcher", "other")]
    Plugins(infos).notify("slime_run_finished", args="a", error=None)
    assert sys.modules["watcher"].seen == sys.modules["other"].seen == [None]


def test_an_observer_that_takes_any_keywords_is_told_everything(tmp_path, monkeypatch):
    code = "seen = {}\n@hookimpl\ndef slime_run_finished(**kwargs): seen.update(kwargs)"
    Plugins([plugin(tmp_path, monkeypatch, "curious", code)]).notify("slime_run_finished", args="a", error=None)
    assert sys.modules["curious"].seen == {"args": "a", "error": None}


def test_an_observer_that_returns_something_to_be_awaited_is_told_of(tmp_path, monkeypatch, caplog):
    code = """
        import functools
        async def later(error): raise AssertionError("it ran")
        @hookimpl
        def slime_run_finished(error): return later(error)
        """
    Plugins([plugin(tmp_path, monkeypatch, "postponing", code)]).notify("slime_run_finished", args="a", error=None)
    assert "It returned something to be awaited, and nobody does that" in caplog.text


def test_plugins_are_told_apart_by_their_distribution(tmp_path, monkeypatch, caplog):
    """Nothing keeps two of them from having entry points of one name, that of the core among them."""
    code = "seen = []\n@hookimpl\ndef slime_run_finished(error):\n    seen.append(error)\n"
    good = plugin(tmp_path, monkeypatch, "good_observer", code)
    bad = plugin(tmp_path, monkeypatch, "bad_observer", code + "    raise ValueError('sour')")
    for info in (good, bad):
        info.name = "report"
    plugins = Plugins([bad, good])
    for _ in range(2):
        plugins.notify("slime_run_finished", args="a", error=None)
    assert [len(sys.modules[name].seen) for name in ("bad_observer", "good_observer")] == [1, 2]
    assert "--disable-plugin dist-bad_observer" in caplog.text
    bad.name = "core"
    assert Switches(only=("torch",)).verdict(bad)
    assert not Switches(only=("torch",)).verdict(PluginInfo("core", "slime_core", "1", "slime_core.plugin"))


def test_an_unknown_name_offers_the_nearest_one():
    with pytest.raises(PluginError, match=r"no loss named 'sft_los' for --loss-type. Did you mean 'sft_loss'\?"):
        Plugins().select("loss", "sft_los")


def test_every_component_of_every_installed_plugin_keeps_its_contract():
    plugins = Plugins()
    assert [i.label for i in plugins.infos if i.status != "loaded"] == []
    for kind in KINDS:
        for name, provided in plugins.components(kind).items():
            assert plugins.select(kind, name).target is not None
            assert provided.summary, f"{kind} {name} has no summary"


def test_every_hook_is_documented_and_every_provider_has_a_kind():
    hooks = {n: f for n, f in vars(hookspecs).items() if n.startswith("slime_")}
    for name, function in hooks.items():
        assert len(function.__doc__ or "") > 40, name
    providers = {kind.hook for kind in KINDS.values()} | {"slime_argument_groups"}
    observers = {n for n, f in hooks.items() if f.__annotations__["return"] == "None"}
    assert providers | observers == set(hooks)


def test_plugins_are_listed_as_json():
    done = subprocess.run([sys.executable, "-m", "slime_core", "plugins", "--json"], capture_output=True, text=True)
    rows = json.loads(done.stdout)
    assert {"core", "losses", "rollout-sft", "torch"} <= {row["plugin"] for row in rows}
    assert {row["status"] for row in rows} == {"loaded"}


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["-c", "import slime_core"], set()),
        (["-m", "slime_core", "--help"], set()),
        (["-m", "slime_core", "plugins"], {"pydantic"}),  # sees whether the options of plugins can be used
    ],
)
def test_starting_loads_nothing_heavy(words, needed):
    done = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert loaded & {"torch", "transformers", "ray", "numpy", "pydantic", "pyarrow", "wandb", "tensorboard"} == needed


def test_a_lazy_component_is_not_imported_by_listing(tmp_path, monkeypatch):
    info = plugin(
        tmp_path, monkeypatch, "lazy", "@hookimpl\ndef slime_losses(): return {'gone': Lazy('no_such_module:it', 'x')}"
    )
    plugins = Plugins([info])
    assert plugins.components("loss")["gone"].value == Lazy("no_such_module:it", "x")
    with pytest.raises(
        PluginError, match=r"The loss 'gone' of lazy \(dist-lazy 1.2\), chosen by --loss-type, cannot be imp"
    ):
        plugins.select("loss", "gone")
