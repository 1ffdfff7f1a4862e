"""Calls of other people's functions: failure policies, time limits, and what is told when one returns something wrong."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.cli import main
from slime_core.contracts.loss import LossInputs
from slime_core.errors import PluginError
from slime_core.plugins import Plugins, Selected
from slime_core.plugins.calls import Caller, policies
from slime_core.rollout.rewards import score
from slime_core.sample import Sample
from slime_core.testing.advantage_inputs import advantage_inputs


def caller(
    definition: str, tmp_path: Path, monkeypatch, policy: str = "reward:timeout=0.3,retries=0,on_failure=raise"
) -> Caller:
    module = f"reward_{abs(hash((definition, policy)))}"
    (tmp_path / f"{module}.py").write_text("import asyncio, time\n" + definition)
    monkeypatch.syspath_prepend(tmp_path)
    selected = Plugins([]).select("reward", f"{module}.it", "--custom-rm-path")
    return Caller(selected, policies([policy])["reward"])


ARGS: Any = SimpleNamespace(group_rm=False, custom_rm_path=None)
SAMPLES = [Sample(index=3, metadata={"slime": {"source": "rows.jsonl:4"}}), Sample(index=4)]


@pytest.mark.parametrize(
    ("definition", "says"),
    [
        ("async def it(args, sample): raise KeyError('answer')", "KeyError: 'answer' ("),
        ("def it(args, sample): raise KeyError('answer')", "KeyError: 'answer' ("),
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
    limit = 0.3 if "sleep" in definition else 60  # a busy machine may be slow to call the others
    failing = caller(definition, tmp_path, monkeypatch, f"reward:timeout={limit},retries=0,on_failure=raise")
    with pytest.raises(PluginError) as error:
        asyncio.run(score(failing, ARGS, SAMPLES))
    message = str(error.value)
    assert says in message
    assert f"The reward '{failing.selected.name}' of import path for sample 3 (rows.jsonl:4)" in message
    assert "choose another with --custom-rm-path" in message
    assert failing.failures >= 1


ASYNC = """
import functools

async def plain(args, sample):
    await asyncio.sleep(0.001)
    return 1.0

async def group(args, samples):
    await asyncio.sleep(0.001)
    return [1.0 for sample in samples]

def decorated(function):
    @functools.wraps(function)
    def called(*args, **kwargs):
        return function(*args, **kwargs)
    return called

class Judge:
    async def __call__(self, args, sample):
        return await plain(args, sample)
"""


@pytest.mark.parametrize(
    "form", ["plain", "decorated(plain)", "Judge()", "lambda args, sample: plain(args, sample)", "decorated(group)"]
)
def test_an_async_reward_is_awaited_in_whatever_form_it_comes(form, tmp_path, monkeypatch):
    """The usual decorators make a plain function of an async one."""
    for policy in ("reward:timeout=5,retries=0,on_failure=raise", "reward:retries=0,on_failure=raise"):
        scoring = caller(f"{ASYNC}\nit = {form}\n", tmp_path, monkeypatch, policy)
        samples = SAMPLES if "group" in form else SAMPLES[:1]
        assert asyncio.run(score(scoring, ARGS, samples)) == [1.0] * len(samples)


def test_a_dropped_reward_is_counted_and_the_others_go_on(tmp_path, monkeypatch):
    code = "def it(args, sample): return 1.0 if sample.index == 4 else 1 / 0"
    dropping = caller(code, tmp_path, monkeypatch, "reward:retries=1,backoff=0,on_failure=drop")
    assert repr(asyncio.run(score(dropping, ARGS, SAMPLES[:1]))) == "DROPPED"
    assert asyncio.run(score(dropping, ARGS, SAMPLES[1:])) == [1.0]
    assert dropping.metrics() == {"hooks/reward/failures": 2, "hooks/reward/timeouts": 0, "hooks/reward/dropped": 1}
    assert (dropping.calls, dropping.selected.timings.take()["perf/hooks/reward/calls"]) == (2, 3)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_plain_function_that_ends_after_its_time_ends_in_silence(tmp_path, monkeypatch):
    others = set(threading.enumerate())
    for code in ("def it(args, sample): time.sleep(0.5); return 1.0", "def it(args, sample): time.sleep(0.5); 1 / 0"):
        slow = caller(code, tmp_path, monkeypatch)
        with pytest.raises(PluginError, match="did not answer within"):
            asyncio.run(score(slow, ARGS, SAMPLES[:1]))
        with pytest.raises(PluginError, match="did not answer within"):
            slow.call(None, SAMPLES[0])
        for thread in [t for t in set(threading.enumerate()) - others if t.name == "plugin-call"]:
            thread.join(5)


def test_a_retry_may_succeed(tmp_path, monkeypatch):
    code = "seen = []\nasync def it(args, sample):\n    seen.append(1)\n    return 2.0 if len(seen) == 3 else 1 / 0"
    retrying = caller(code, tmp_path, monkeypatch, "reward:retries=2,backoff=0.01,on_failure=raise")
    assert asyncio.run(score(retrying, ARGS, SAMPLES[:1])) == [2.0]
    assert (retrying.calls, retrying.failures, retrying.dropped) == (1, 2, 0)


def test_a_failure_names_the_line_of_the_components_own_file(tmp_path, monkeypatch, caplog):
    code = (
        "import json\n\ndef it(args, sample):\n    return json.loads('{')\n"  # raised in the library, called in line 5
    )
    dropping = caller(code, tmp_path, monkeypatch, "reward:retries=1,backoff=0.01,on_failure=drop")
    assert repr(asyncio.run(score(dropping, ARGS, SAMPLES[:1]))) == "DROPPED"
    again, dropped = caplog.messages
    assert re.search(r"is tried again: JSONDecodeError: .* \(.*/reward_\d+\.py:5\)\.$", again)
    assert re.search(r"is dropped: JSONDecodeError: .* \(.*/reward_\d+\.py:5\)\.$", dropped)


@pytest.mark.parametrize("items", [1, 5, 40])
def test_of_many_failures_the_first_are_told_and_the_others_counted(items, tmp_path, monkeypatch, caplog):
    code = f"def it(args, sample): return 1 / 0  # {items}"
    dropping = caller(code, tmp_path, monkeypatch, "reward:retries=2,backoff=0,on_failure=drop,abort_after=none")
    for number in range(items):
        assert repr(dropping.call(None, SAMPLES[0], item=f"sample {number}")) == "DROPPED"
    told = {words: [m for m in caplog.messages if words in m] for words in ("is tried again", "is dropped")}
    assert [len(found) for found in told.values()] == [min(5, 2 * items), min(5, items)]
    ends = {words: [m.split(" Further ones are ")[1] for m in found if "Further" in m] for words, found in told.items()}
    assert ends["is tried again"] == (["counted in the metric hooks/reward/failures."] if items > 2 else [])
    assert ends["is dropped"] == (["counted in the metric hooks/reward/dropped."] if items >= 5 else [])
    assert dropping.metrics() == {
        "hooks/reward/failures": 3 * items,
        "hooks/reward/timeouts": 0,
        "hooks/reward/dropped": items,
    }


def test_too_many_drops_in_a_row_end_the_run(tmp_path, monkeypatch):
    dropping = caller(
        "def it(args, sample): 1 / 0", tmp_path, monkeypatch, "reward:retries=0,on_failure=drop,abort_after=3"
    )
    for _ in range(2):
        assert repr(dropping.call(None, SAMPLES[0], item="sample 3")) == "DROPPED"
    with pytest.raises(PluginError, match="It was the failure number 3 in a row, so the run ends"):
        dropping.call(None, SAMPLES[0], item="sample 3")


def test_what_is_wrong_with_a_row_is_not_tried_again(tmp_path, monkeypatch, caplog):
    code = (
        "from slime_core.errors import DataError\ndef it(args, sample): raise DataError(f'{sample.name} has no label.')"
    )
    dropping = caller(code, tmp_path, monkeypatch, "reward:retries=3,backoff=9,on_failure=drop")
    assert repr(asyncio.run(score(dropping, ARGS, SAMPLES[:1]))) == "DROPPED"
    assert dropping.failures == 1
    assert "failed and is dropped: sample 3 (rows.jsonl:4) has no label." in caplog.text


def test_samples_of_one_group_are_one_failure_in_a_row(tmp_path, monkeypatch):
    policy = "reward:retries=0,on_failure=drop,abort_after=3"
    dropping = caller("def it(args, sample): return sample.reward / 0", tmp_path, monkeypatch, policy)
    for number in range(2):
        group = [Sample(index=i, group_index=number, reward=1.0) for i in range(24)]
        assert repr(asyncio.run(score(dropping, ARGS, group))) == "DROPPED"
    assert dropping.dropped == 48
    with pytest.raises(PluginError, match="It was the failure number 3 in a row, so the run ends"):
        asyncio.run(score(dropping, ARGS, [Sample(index=0, group_index=2, reward=1.0)]))


@pytest.mark.parametrize(
    ("work", "done"),
    [
        ("async def it(args, sample):\n    with waiting(): await asyncio.sleep(1.5)\n    return 1.0", True),
        ("def it(args, sample):\n    with waiting(): time.sleep(1.5)\n    return 1.0", True),
        (
            "async def it(args, sample):\n    with waiting(): await asyncio.sleep(0.1)\n    await asyncio.sleep(60)",
            False,
        ),
        ("def it(args, sample):\n    with waiting(): time.sleep(0.1)\n    time.sleep(60)", False),
    ],
)
def test_waiting_for_a_turn_is_not_the_time_of_the_work(work, done, tmp_path, monkeypatch):
    code = f"from slime_core.plugins.clock import waiting\n{work}"
    timed = caller(code, tmp_path, monkeypatch, "reward:timeout=1,retries=0,on_failure=drop")
    found = asyncio.run(score(timed, ARGS, SAMPLES[:1]))
    assert (found == [1.0], timed.timeouts) == (done, 0 if done else 1)
    if "async" not in work:
        assert (timed.call(None, SAMPLES[0]) == 1.0) == done


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
            "expected a tensor of weights, a dict of metrics and, where tokens are rejected, a tensor of those kept",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.loss_mask, {}, inputs.loss_mask[1:]",
            (None, loss_inputs_of(3)),
            "a tensor of shape (2,) as kept tokens; expected a tensor of shape (3,), one for each token",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.loss_mask[1:], {}",
            (None, loss_inputs_of(3)),
            "a tensor of shape (2,) as weights; expected a tensor of shape (3,), one for each token",
        ),
        (
            "importance_weight",
            "def it(args, inputs): return inputs.log_probs.exp(), {}",
            (None, loss_inputs_of(3)),
            "weights with a gradient; expected them detached",
        ),
        ("importance_weight", "def it(args, inputs): return 1.0, {}", (None, loss_inputs_of(3)), "1.0 (float) as weights"),
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
def test_a_wrong_failure_policy_is_refused_before_the_run(setting, says, sft, capsys):
    assert main(["check", *sft, "--failure-policy", setting]) == 2
    assert says in capsys.readouterr().err


WITH_POLICY = ("reward", "generator", "sample_hook", "dynamic_filter", "sample_filter", "all_samples_process")


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


ADVANTAGE_INPUTS = replace(advantage_inputs(), log_probs=None, raw_rewards=None)
LOSS_INPUTS = LossInputs(*(torch.ones(2),) * 5)
READS_REF = "from slime_core.contracts.loss import reads\n@reads(lambda args: {'ref_log_probs'})\n"


@pytest.mark.parametrize(
    ("kind", "definition", "inputs", "hint"),
    [
        ("loss", "def it(args, i): return i.log_probs - i.ref_log_probs", LOSS_INPUTS, "ref_log_probs"),
        ("loss", "def it(args, i): return i.entropy.mean()", LOSS_INPUTS, "entropy"),
        ("loss", "def helps(i): return i.returns.exp()\ndef it(args, i): return helps(i)", LOSS_INPUTS, "returns"),
        ("loss", "def it(args, i): return None + 1", LOSS_INPUTS, ""),
        ("loss", "def it(args, i): return i.entropy['x' + 1]", LOSS_INPUTS, ""),
        ("loss", READS_REF + "def it(args, i): return i.log_probs - i.ref_log_probs", LOSS_INPUTS, ""),
        ("advantage", "def it(args, inputs): return inputs.log_probs * 2", ADVANTAGE_INPUTS, "old_log_probs"),
        ("advantage", "def it(args, inputs): return inputs.raw_rewards * 2", ADVANTAGE_INPUTS, ""),
    ],
)
def test_a_loss_that_fails_on_an_input_that_it_does_not_declare_is_told_what_to_declare(
    kind, definition, inputs, hint, tmp_path, monkeypatch
):
    (tmp_path / "undeclared.py").write_text(definition)
    monkeypatch.syspath_prepend(tmp_path)
    selected = Plugins([]).select(kind, "undeclared.it")
    with pytest.raises((TypeError, AttributeError)) as error:
        selected(SimpleNamespace(), inputs)
    *hints, signed = error.value.__notes__
    assert signed.startswith(f"raised in the {kind} 'undeclared.it'")
    assert len(hints) == bool(hint)
    assert all(f"given None for {hint}, as it does not say that it reads it" in told for told in hints)
    assert all(told.endswith(f"reads(lambda args: {{'{hint}'}}).") for told in hints)
