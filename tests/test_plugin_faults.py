"""What people see when a plugin is faulty: one message that names the plugin, its distribution and what to do.

Each fault is a real installed distribution (a module and its metadata on the path). No fault disturbs a run that does
not select what is broken.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.arguments.namespace import Namespace
from slime_core.cli.main import main
from slime_core.errors import PluginError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.calls import Caller, policies
from slime_core.rollout.rewards import score
from slime_core.sample import Sample

HEAD = "from slime_core import Lazy, hookimpl\nfrom slime_core.contracts.options import ArgumentGroup, option\n"


@dataclass
class Fault:
    """A faulty plugin, how a run selects it, and what the person sees.

    Attributes:
        code: of the plugin module `faulty`, of the distribution faulty-pack 1.2.
        flags: what makes a run select it.
        says: parts of the message, besides the names of plugin and distribution.
        names: "faulty (faulty-pack 1.2)" unless the plugin cannot be known.
    """

    code: str
    flags: list[str]
    says: list[str]
    requires: str = "slime-core>=0.1"
    entry: str = "faulty"
    names: tuple[str, ...] = ("faulty (faulty-pack 1.2)",)
    more: dict[str, str] = field(default_factory=dict)


def loss(definition: str) -> str:
    return f"{definition}\n@hookimpl\ndef slime_losses(): return {{'it': it}}"


def rollout(body: str) -> str:
    return f"def it(args, rollout_id, data_source, evaluation=False): {body}\n@hookimpl\ndef slime_rollouts(): return {{'it': it}}"


def tracker(methods: str) -> str:
    return f"class it:\n{textwrap.indent(textwrap.dedent(methods), '    ')}\n@hookimpl\ndef slime_trackers(): return {{'it': it}}"


def provided(hook: str, definition: str) -> str:
    return f"{textwrap.dedent(definition)}\n@hookimpl\ndef {hook}(): return {{'it': it}}"


ADVANTAGE = "from slime_core.contracts.advantage import AdvantageOutputs\ndef it(args, inputs): return "
PICK_ADVANTAGE, PICK_REWARDS = ["--advantage-estimator", "it"], ["--custom-reward-post-process-path", "it"]
PICK_CONVERTER, PICK_LOG = (
    ["--custom-convert-samples-to-train-data-path", "it"],
    ["--custom-rollout-log-function-path", "it"],
)
PICK_LOSS, PICK_ROLLOUT, PICK_TRACKER = ["--loss-type", "it"], ["--rollout-function-path", "it"], ["--tracker", "it"]
GOOD_TRACKER = (
    "def __init__(self, args, run_dir, config): ...\ndef log(self, metrics, step): ...\ndef close(self, error): ..."
)

FAULTS = {
    "missing argument": Fault(
        loss("def it(args): ..."),
        PICK_LOSS,
        ["does not fit --loss-type: it does not take the parameter 'inputs'", "slime_core.contracts.loss.loss"],
    ),
    "extra argument": Fault(
        loss("def it(args, inputs, more): ..."), PICK_LOSS, ["it requires a parameter 'more' that nothing passes"]
    ),
    "renamed argument": Fault(
        loss("def it(args, batch): ..."),
        PICK_LOSS,
        ["does not take the parameter 'inputs'", "requires a parameter 'batch'"],
    ),
    "arguments in another order": Fault(
        loss("def it(inputs, args): ..."), PICK_LOSS, ["parameter 'args' is number 2, expected number 1"]
    ),
    "async where sync is expected": Fault(
        loss("async def it(args, inputs): ..."), PICK_LOSS, ["it is async, expected a plain function"]
    ),
    "wrong annotation": Fault(
        loss("def it(args, inputs: str): ..."), PICK_LOSS, ["parameter 'inputs' is annotated str, expected LossInputs"]
    ),
    "wrong return annotation": Fault(
        loss("def it(args, inputs) -> float: ..."), PICK_LOSS, ["it is annotated to return float, expected LossOutputs"]
    ),
    "not callable": Fault(loss("it = 5"), PICK_LOSS, ["it is a int, expected a function loss(args"]),
    "import error": Fault(
        "import no_such_module",
        PICK_LOSS,
        ["There is no loss named 'it'", "ModuleNotFoundError: No module named 'no_such_module'"],
    ),
    "syntax error": Fault(
        "def it(:", PICK_LOSS, ["There is no loss named 'it'", "SyntaxError: invalid syntax (faulty.py"]
    ),
    "exit at import": Fault("raise SystemExit('bye')", PICK_LOSS, ["SystemExit: bye"]),
    "misspelt hook": Fault("@hookimpl\ndef slime_lossez(): return {}", PICK_LOSS, ["unknown hook 'slime_lossez'"]),
    "hook with arguments": Fault(
        "@hookimpl\ndef slime_losses(config): return {}",
        PICK_LOSS,
        ["hook 'slime_losses'", "Argument(s) {'config'} are declared"],
    ),
    "hook without decorator": Fault(
        "def slime_losses(): return {}",
        PICK_LOSS,
        ["It defines slime_losses without the decorator @slime_core.hookimpl; add it."],
    ),
    "no hook at all": Fault("x = 1", PICK_LOSS, ["It implements no hook of slime; see slime_core/hookspecs.py"]),
    "provider raises": Fault(
        "@hookimpl\ndef slime_losses(): raise ValueError('sour')", PICK_LOSS, ["ValueError: sour"]
    ),
    "provider returns a list": Fault(
        "@hookimpl\ndef slime_losses(): return ['it']", PICK_LOSS, ["Its slime_losses returned ['it']; expected a dict"]
    ),
    "core too old for it": Fault(
        loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["It needs slime-core >=99, but slime-core 0.1.0 is installed; install versions"],
        requires="slime-core>=99",
    ),
    "entry point to no module": Fault("", PICK_LOSS, ["No module named 'nowhere_at_all'"], entry="nowhere_at_all"),
    "entry point to no attribute": Fault(
        "", PICK_LOSS, ["module 'faulty' has no attribute 'gone'"], entry="faulty:gone"
    ),
    "component in no module": Fault(
        "@hookimpl\ndef slime_losses(): return {'it': Lazy('no_module:it')}",
        PICK_LOSS,
        [
            "The loss 'it' of",
            "cannot be imported: ModuleNotFoundError: No module named 'no_module'",
            "Repair or reinstall it.",
        ],
    ),
    "component is no attribute": Fault(
        "@hookimpl\ndef slime_losses(): return {'it': Lazy('faulty:gone')}",
        PICK_LOSS,
        ["cannot be imported: AttributeError: module 'faulty' has no attribute 'gone'"],
    ),
    "duplicate component": Fault(
        tracker(GOOD_TRACKER).replace("{'it': it}", "{'tensorboard': it}"),
        ["--tracker", "tensorboard"],
        [
            "Two plugins provide a tracker named 'tensorboard'",
            "trackers (slime-trackers 0.1.0)",
            "Uninstall one of the two",
        ],
    ),
    "duplicate option": Fault(
        "class G(ArgumentGroup):\n    'G'\n    lr: float = option(1.0, 'Again.')\n"
        "@hookimpl\ndef slime_argument_groups(): return [G]\n" + loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["Two distributions define the option --lr: slime-core", "and faulty-pack (G)", "rename its option."],
    ),
    "group that is none": Fault(
        "@hookimpl\ndef slime_argument_groups(): return [{'lr': 1}]\n" + loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["Its slime_argument_groups returned [{'lr': 1}]; expected a list of subclasses"],
    ),
    "class without a method": Fault(
        tracker("def __init__(self, args, run_dir, config): ...\ndef log(self, metrics, step): ..."),
        PICK_TRACKER,
        ["does not fit --tracker: it has no method close(self, error"],
    ),
    "raises in constructor": Fault(
        tracker(GOOD_TRACKER.replace("config): ...", "config): raise OSError('no server')")),
        PICK_TRACKER,
        ["OSError: no server", "raised in the tracker 'it' of", "chosen by --tracker", "faulty.py"],
    ),
    "raises at call": Fault(
        rollout("return 1 / 0"),
        PICK_ROLLOUT,
        ["ZeroDivisionError: division by zero", "chosen by --rollout-function-path"],
    ),
    "wrong return type": Fault(
        rollout("return [1]"), PICK_ROLLOUT, ["It returned [1] (list); expected a RolloutOutput."]
    ),
    "returns a coroutine": Fault(
        "async def other(): ...\n" + rollout("return other()"), PICK_ROLLOUT, ["It returned a coroutine; it is async"]
    ),
    "too few samples": Fault(
        "from slime_core.sample import RolloutOutput\n" + rollout("return RolloutOutput([])"),
        PICK_ROLLOUT,
        ["returned 0 groups (0 samples) in rollout 0; expected --rollout-batch-size 4"],
        names=("'it' of faulty (faulty-pack 1.2)",),
    ),
    "samples without tokens": Fault(
        "from slime_core.sample import RolloutOutput, Sample\n"
        + rollout("return RolloutOutput([[Sample(index=i, response_length=2)] for i in range(4)])"),
        PICK_ROLLOUT,
        ["bad sample 0: response_length is 2, but there are 0 tokens"],
    ),
    "changes the arguments": Fault(rollout("args.lr = 5"), PICK_ROLLOUT, ["Instance is frozen", "lr"]),
    "advantages of another shape": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.rewards)"),
        PICK_ADVANTAGE,
        ["It returned advantages of shape (4,); expected a tensor of shape (", "chosen by --advantage-estimator"],
    ),
    "advantages that are NaN": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.loss_mask * float('nan'))"),
        PICK_ADVANTAGE,
        ["It returned advantages that are NaN or Inf, at samples [0, 1, 2, 3] of the rollout"],
    ),
    "returns of another shape": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.loss_mask, inputs.rewards)"),
        PICK_ADVANTAGE,
        ["It returned returns of shape (4,); expected a tensor of shape ("],
    ),
    "advantages without their wrapper": Fault(
        provided("slime_advantages", ADVANTAGE + "inputs.loss_mask.tolist()[:2]"),
        PICK_ADVANTAGE,
        ["It returned [", "(list); expected an AdvantageOutputs."],
    ),
    "estimator with a missing argument": Fault(
        provided("slime_advantages", "def it(inputs): ..."),
        PICK_ADVANTAGE,
        [
            "does not fit --advantage-estimator: it does not take the parameter 'args'",
            "slime_core.contracts.advantage.advantages",
        ],
    ),
    "rewards that got lost": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [s.reward for s in samples], [1.0]"),
        PICK_REWARDS,
        ["It returned 1 rewards to train with for 4 samples; expected one for each, in their order."],
    ),
    "rewards that are NaN": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [0.0] * 4, [float('nan')] * 4"),
        PICK_REWARDS,
        ["It returned nan (float) among the rewards to train with; expected finite numbers."],
    ),
    "rewards without the raw ones": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [0.0] * 4"),
        PICK_REWARDS,
        ["expected a pair of lists: raw rewards, and rewards to train with"],
    ),
    "training data for fewer samples": Fault(
        provided("slime_sample_converters", "def it(args, samples): return {'loss_masks': [[1]]}"),
        PICK_CONVERTER,
        ["It returned [[1]] (list) as 'loss_masks'; expected a list with one entry for each of 4 samples."],
    ),
    "training data that is too short": Fault(
        provided("slime_sample_converters", "def it(args, samples): return {'loss_masks': [[1]] * 4}"),
        PICK_CONVERTER,
        ["It returned 1 loss_masks for sample 0; expected ", "as its response_length is "],
    ),
    "training data that is none": Fault(
        provided("slime_sample_converters", "def it(args, samples): return samples"),
        PICK_CONVERTER,
        ["(list); expected a dict of lists."],
    ),
    "log that answers with a text": Fault(
        provided(
            "slime_rollout_logs",
            "def it(rollout_id, args, samples, rollout_extra_metrics, rollout_time): return 'logged'",
        ),
        PICK_LOG,
        ["It returned 'logged' (str); expected True (it has logged all itself) or False."],
    ),
    "log with the arguments of the evaluation's": Fault(
        provided("slime_rollout_logs", "def it(rollout_id, args, data, extra_metrics): ..."),
        PICK_LOG,
        ["it does not take the parameter 'samples'", "it requires a parameter 'data' that nothing passes"],
    ),
    "correction with a further argument": Fault(
        provided("slime_importance_weights", "def it(args, inputs, bound): ..."),
        ["--custom-tis-function-path", "it"],
        ["does not fit --custom-tis-function-path: it requires a parameter 'bound' that nothing passes"],
    ),
    "engine that cannot be aborted": Fault(
        provided(
            "slime_engines",
            """
            class it:
                def __init__(self, args): ...
                async def generate(self, input_ids, sampling_params, request_id=None): ...
                def update_weights(self, weights, version): ...
                def close(self): ...
            """,
        ),
        ["--rollout-engine", "it"],
        ["does not fit --rollout-engine: it has no method abort(self, request_ids"],
    ),
    "engine that takes weights by a coroutine": Fault(
        provided(
            "slime_engines",
            """
            class it:
                def __init__(self, args): ...
                async def generate(self, input_ids, sampling_params, request_id=None): ...
                async def abort(self, request_ids=None): ...
                async def update_weights(self, weights, version): ...
                def close(self): ...
            """,
        ),
        ["--rollout-engine", "it"],
        ["does not fit --rollout-engine: update_weights: it is async, expected a plain function"],
    ),
    "buffer that gives too much": Fault(
        "def it(args, rollout_id, buffer, num_samples): return [[1], [2]]\n@hookimpl\ndef slime_buffer_pops(): return {'it': it}",
        ["--buffer-filter-path", "it", "--data-source-path", "faulty.Source"],
        ["It returned 2 groups; expected at most 1", "chosen by --buffer-filter-path"],
        more={
            "source": """
            from slime_core.data import GlobalDataSource
            class Source(GlobalDataSource):
                def get_samples(self, num_samples):
                    self._buffer_pop(self.args, 0, [[1], [2]], 1)
            """
        },
    ),
}


def install(folder: Path, fault: Fault) -> None:
    folder.mkdir(exist_ok=True)
    code = HEAD + textwrap.dedent(fault.more.get("source", "")) + "\n" + fault.code + "\n"
    (folder / "faulty.py").write_text(code)
    info = folder / "faulty_pack-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: faulty-pack\nVersion: 1.2\nRequires-Dist: {fault.requires}\n"
    )
    (info / "entry_points.txt").write_text(f"[slime]\nfaulty = {fault.entry}\n")


@pytest.fixture
def words(tiny_model, chat_rows, tmp_path) -> list[str]:
    flags = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"]
    flags += ["--rollout-batch-size", "4", "--num-rollout", "1", "--run-dir", str(tmp_path / "run")]
    return [*flags, "--rollout-function-path", "sft", "--loss-type", "sft_loss"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_in_one_message_and_disturbs_nobody_else(name, words, tmp_path, monkeypatch, capsys):
    fault = FAULTS[name]
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    install(tmp_path / "site", fault)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main(["train", *words, *fault.flags]) in (1, 2)
    message = capsys.readouterr().err
    for part in (*fault.names, *fault.says):
        assert part in message, message
    assert "slime_core/cli" not in message
    assert main(["check", *words]) == 0


def test_an_observer_that_raises_is_silenced_with_a_warning(words, tmp_path, monkeypatch, capsys, caplog):
    code = "@hookimpl\ndef slime_rollout_finished(rollout_id): raise ValueError(f'nosy {rollout_id}')"
    install(tmp_path / "site", Fault(code, [], []))
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert main(["train", *words, "--num-rollout", "2"]) == 0
    warnings = [r.getMessage() for r in caplog.records if "faulty" in r.getMessage()]
    assert len(warnings) == 1
    assert (
        "The hook slime_rollout_finished of the plugin faulty (faulty-pack 1.2) raised ValueError: nosy 0."
        in warnings[0]
    )


def test_a_plugin_that_is_off_but_selected_is_named(words, tmp_path, monkeypatch, capsys):
    install(tmp_path / "site", Fault(loss("def it(args, inputs): ..."), PICK_LOSS, []))
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    for off in (["--disable-plugin", "faulty"], ["--disable-plugin", "faulty-pack"], ["--no-third-party"]):
        assert main(["check", *words, *PICK_LOSS, *off]) == 1
        message = capsys.readouterr().err
        assert "There is no loss named 'it'" in message
        assert "Plugins that are off: " in message
        assert "faulty (faulty-pack 1.2): " in message
    monkeypatch.setenv("SLIME_PLUGINS", "-faulty")
    assert main(["check", *words, *PICK_LOSS]) == 1
    assert "SLIME_PLUGINS" in capsys.readouterr().err


def test_an_unknown_plugin_cannot_be_switched(words, capsys):
    assert main(["check", *words, "--disable-plugin", "trakers"]) == 1
    assert "There is no plugin 'trakers' to switch on or off. Did you mean 'trackers'?" in capsys.readouterr().err


def test_the_first_mistake_costs_less_than_a_second(words, tmp_path, monkeypatch):
    install(tmp_path / "site", FAULTS["missing argument"])
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); from slime_core.cli.main import main; sys.exit(main())"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, "train", *words, *PICK_LOSS], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1
    assert "does not fit --loss-type" in done.stderr
    assert "| torch" not in done.stderr, "validation must not wait for torch"
    computed = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert computed < 3, "seconds of computing; far above the one it should take, to forgive a busy machine"


# ------------------------------------------------------------------------------------------------- rewards at run time


def caller(
    definition: str, tmp_path: Path, monkeypatch, policy: str = "reward:timeout=0.3,retries=0,on_failure=raise"
) -> Caller:
    module = f"reward_{abs(hash((definition, policy)))}"
    (tmp_path / f"{module}.py").write_text("import asyncio, time\n" + definition)
    monkeypatch.syspath_prepend(tmp_path)
    selected = Plugins([]).select("reward", f"{module}.it", "--custom-rm-path")
    return Caller(selected, policies([policy])["reward"])


SAMPLES = [Sample(index=3, metadata={"source": "rows.jsonl:4"}), Sample(index=4)]


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ("async def it(args, sample): raise KeyError('answer')", "KeyError: 'answer'."),
        ("def it(args, sample): raise KeyError('answer')", "KeyError: 'answer'."),
        ("async def it(args, sample): await asyncio.sleep(9)", "It did not answer within 0.3 s."),
        ("def it(args, sample): time.sleep(9)", "It did not answer within 0.3 s."),
        ("def it(args, sample): return float('nan')", "It returned nan; expected a finite number."),
        ("def it(args, sample): return 1e400", "It returned inf; expected a finite number."),
        ("def it(args, sample): return None", "It returned None (NoneType); expected a number"),
        ("def it(args, sample): return 'good'", "It returned 'good' (str); expected a number"),
        ("def it(args, sample): return {}", "It returned an empty dict"),
        ("def it(args, samples): return [1.0]", "It returned 1 rewards for 2 samples"),
        ("async def it(args, samples): return 1.0", "It returned 1.0 (float); expected a list of 2 rewards"),
        ("def it(args, samples): return [1.0, None]", "It returned None (NoneType)"),
    ],
)
def test_a_faulty_reward_names_itself_and_the_sample(definition, says, tmp_path, monkeypatch):
    failing = caller(definition, tmp_path, monkeypatch)
    with pytest.raises(PluginError) as error:
        asyncio.run(score(failing, None, SAMPLES))
    message = str(error.value)
    assert says in message
    assert f"The reward '{failing.selected.name}' of import path for sample 3 (rows.jsonl:4)" in message
    assert "choose another with --custom-rm-path" in message
    assert failing.failures >= 1


def test_a_dropped_reward_is_counted_and_the_others_go_on(tmp_path, monkeypatch):
    code = "def it(args, sample): return 1.0 if sample.index == 4 else 1 / 0"
    dropping = caller(code, tmp_path, monkeypatch, "reward:retries=1,backoff=0,on_failure=drop")
    assert repr(asyncio.run(score(dropping, None, SAMPLES[:1]))) == "DROPPED"
    assert asyncio.run(score(dropping, None, SAMPLES[1:])) == [1.0]
    assert dropping.metrics() == {"hooks/reward/failures": 2, "hooks/reward/timeouts": 0, "hooks/reward/dropped": 1}
    assert (dropping.calls, dropping.selected.timings.take()["perf/hooks/reward/calls"]) == (2, 3)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_plain_function_that_ends_after_its_time_ends_in_silence(tmp_path, monkeypatch):
    for code in ("def it(args, sample): time.sleep(0.5); return 1.0", "def it(args, sample): time.sleep(0.5); 1 / 0"):
        slow = caller(code, tmp_path, monkeypatch)
        with pytest.raises(PluginError, match="did not answer within"):
            asyncio.run(score(slow, None, SAMPLES[:1]))
        with pytest.raises(PluginError, match="did not answer within"):
            slow.call(None, SAMPLES[0])
        for thread in [t for t in threading.enumerate() if t.name == "plugin-call"]:
            thread.join(5)


def test_a_retry_may_succeed(tmp_path, monkeypatch):
    code = "seen = []\nasync def it(args, sample):\n    seen.append(1)\n    return 2.0 if len(seen) == 3 else 1 / 0"
    retrying = caller(code, tmp_path, monkeypatch, "reward:retries=2,backoff=0.01,on_failure=raise")
    assert asyncio.run(score(retrying, None, SAMPLES[:1])) == [2.0]
    assert (retrying.calls, retrying.failures, retrying.dropped) == (1, 2, 0)


def test_too_many_drops_in_a_row_end_the_run(tmp_path, monkeypatch):
    dropping = caller(
        "def it(args, sample): 1 / 0", tmp_path, monkeypatch, "reward:retries=0,on_failure=drop,abort_after=3"
    )
    for _ in range(2):
        assert repr(dropping.call(None, SAMPLES[0], item="sample 3")) == "DROPPED"
    with pytest.raises(PluginError, match="It was the failure number 3 in a row, so the run ends"):
        dropping.call(None, SAMPLES[0], item="sample 3")


def loss_inputs_of(tokens: int) -> Any:
    """As much of `LossInputs` as the checks look at."""
    return SimpleNamespace(loss_mask=torch.ones(tokens), log_probs=torch.zeros(tokens, requires_grad=True))


async def called(selected: Selected, given: tuple[Any, ...]) -> Any:
    result = selected(*given)
    return await result if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize(
    ("kind", "definition", "given", "says"),
    [
        ("generator", "async def it(args, sample, sampling_params): ...", (None, Sample(), {}), "None (NoneType); expected a"),
        ("generator", "async def it(args, sample, sampling_params): return []", (None, Sample(), {}), "[] (list); expected a"),
        ("sample_filter", "def it(args, groups): return groups", (None, [[]]), "expected None: it sets remove_sample"),
        ("dynamic_filter", "def it(args, samples, **kw): return 'yes'", (None, []), "expected True or False"),
        (
            "all_samples_process",
            "def it(args, all_samples, data_source): return all_samples",
            (None, [[]], None),
            "expected None: it looks at the groups, or hands them to the data source",
        ),
        (
            "eval_rollout_log",
            "def it(rollout_id, args, data, extra_metrics): return 1",
            (0, None, {}, {}),
            "1 (int); expected True (it has logged all itself) or False",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.loss_mask",
            (None, loss_inputs_of(3)),
            "expected a pair: a tensor of weights and a dict of metrics",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.loss_mask[1:], {}",
            (None, loss_inputs_of(3)),
            "weights of shape (2,); expected a tensor of shape (3,), one for each token",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.log_probs.exp(), {}",
            (None, loss_inputs_of(3)),
            "weights with a gradient; expected them detached",
        ),
        ("importance_weight", "def it(args, inputs): return 1.0, {}", (None, loss_inputs_of(3)), "weights 1.0 (float)"),
    ],
)  # fmt: skip
def test_what_a_component_returns_wrongly_is_told_with_what_was_expected(
    kind, definition, given, says, tmp_path, monkeypatch
):
    module = f"returns_{abs(hash((kind, definition)))}"
    (tmp_path / f"{module}.py").write_text(definition)
    monkeypatch.syspath_prepend(tmp_path)
    selected = Plugins([]).select(kind, f"{module}.it", "--the-option")
    with pytest.raises(PluginError) as error:
        asyncio.run(called(selected, given))
    assert says in str(error.value)
    assert error.value.__notes__ == [f"raised in the {kind} '{module}.it' of import path, chosen by --the-option"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("rewards:timeout=1", "Did you mean 'reward'?"),
        ("reward", "expected KIND:field=value"),
        ("reward:time_out=1", "there is no field 'time_out'"),
        ("reward:timeout=soon", "timeout cannot be 'soon'"),
        ("reward:retries=-1", "retries cannot be '-1'"),
        ("reward:on_failure=ignore", "on_failure is raise or drop"),
    ],
)
def test_a_wrong_failure_policy_is_refused_before_the_run(setting, says, words, capsys):
    assert main(["check", *words, "--failure-policy", setting]) == 2
    assert says in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ workers, slime's hooks


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
    assert asyncio.run(score(scoring, None, [Sample(response="4", label="4"), Sample(response="5", label="4")])) == [
        1.0,
        0.0,
    ]


def test_options_of_a_plugin_disappear_with_it(tmp_path, monkeypatch):
    code = "class G(ArgumentGroup):\n    'G'\n    spice: int = option(1, 'How hot it is.')\n@hookimpl\ndef slime_argument_groups(): return [G]"
    install(tmp_path / "site", Fault(code, [], []))
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    assert "spice" not in Namespace(Plugins()).options
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert "spice" in Namespace(Plugins()).options
