"""Hook functions as they are written for slime: every kind, under the several names that slime's guide, its contract tests and its
own code give to the parameters, in whole runs."""

from __future__ import annotations

import importlib
import json
import math
import re
import statistics
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slime_core.cli import main
from slime_core.contracts.advantage import AdvantageInputs
from slime_core.contracts.loss import LossInputs, Reduce
from slime_core.contracts.rollout_outputs import as_rollout_output, metric_numbers
from slime_core.errors import DataError, PluginError
from slime_core.plugins import Plugins
from slime_core.plugins.slime_shapes.advantages import RolloutData
from slime_core.run.evaluation import metrics_of
from slime_core.run.tracking import read_metrics
from slime_core.sample import RolloutOutput, Sample, Status

NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "generate": {
        "guide": ("args", "sample: Sample", "sampling_params: dict"),
        "contract tests": ("args", "sample: Sample", "sampling_params: dict", "evaluation: bool = False"),
        "own": ("cfg", "item", "params", "evaluation=None"),
    },
    "reward": {
        "guide": ("args", "sample: Sample"),
        "contract tests": ("args", "sample: Sample", "**kwargs"),
        "own": ("cfg", "answer", "max_retries=10"),
    },
    "dynamic_filter": {
        "guide": ("args", "samples: list[Sample]", "**kwargs"),
        "contract tests": ("args", "samples"),
        "own": ("cfg", "group", "threshold=0.0"),
    },
    "buffer_filter": {
        "guide": ("args", "rollout_id", "buffer: list[list[Sample]]", "num_samples: int"),
        "contract tests": ("args", "rollout_id", "buffer", "num_samples"),
        "own": ("cfg", "step", "pool", "count"),
    },
    "sample_filter": {
        "guide": ("args", "samples: list[Sample]"),
        "contract tests": ("args", "groups: list[list[Sample]]"),
        "own": ("cfg", "data"),
    },
    "all_samples": {
        "guide": ("args", "samples: list[list[Sample]]", "data_source"),
        "contract tests": ("args", "all_groups: list[list[Sample]]", "data_source"),
        "own": ("cfg", "everything", "source"),
    },
    "rollout_log": {
        "guide": ("rollout_id", "args", "samples", "rollout_extra_metrics", "rollout_time"),
        "contract tests": ("rollout_id", "args", "samples", "rollout_extra_metrics", "rollout_time"),
        "own": ("step", "cfg", "flat", "extra", "seconds"),
    },
    "eval_log": {
        "guide": ("rollout_id", "args", "data", "extra_metrics"),
        "contract tests": ("rollout_id", "args", "data", "extra_metrics=None"),
        "own": ("step", "cfg", "sets", "extra"),
    },
    "convert": {
        "guide": ("args", "samples: list[Sample] | list[list[Sample]]"),
        "contract tests": ("args", "samples"),
        "own": ("cfg", "flat"),
    },
    "post_process": {
        "guide": ("args", "samples"),
        "contract tests": ("args", "samples"),
        "own": ("cfg", "everything"),
    },
    "advantage": {
        "guide": ("args", "rollout_data"),
        "contract tests": ("args", "rollout_data: dict"),
        "own": ("cfg", "batch"),
    },
    "tis": {
        "guide": ("args", "*", "pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks", "**kwargs"),
        "contract tests": (
            *("args", "*", "pg_loss: torch.Tensor", "train_log_probs: list", "rollout_log_probs: list", "loss_masks: list"),
            *("total_lengths", "response_lengths", "**kwargs"),
        ),
        "own": ("args", "train_log_probs", "rollout_log_probs", "loss_masks", "pg_loss", "**others"),
    },
}  # fmt: skip
"""The parameters of each kind, as three people write them."""

MODULE = """
from dataclasses import dataclass
import torch
from slime_core.sample import Sample
from slime_rollout_sglang.generate import generate as single_turn

seen = {{}}

def note(kind, *found):
    seen.setdefault(kind, []).append(found)

async def generate({generate}, engine=None):
    told = locals().get("evaluation", "not asked")
    note("generate", told, {generate_given[1]}.prompt, sorted({generate_given[2]})[:1])
    return await single_turn({generate_given[0]}, {generate_given[1]}, {generate_given[2]}, engine)

async def reward({reward}):
    {reward_given[0]}.scored = getattr({reward_given[0]}, "scored", 0) + 1
    {reward_given[0]}.rollout_batch_size = 999
    note("reward", {reward_given[1]}.prompt + {reward_given[1]}.response)
    return float({reward_given[1]}.index % 2)

@dataclass
class Verdict:
    keep: bool
    reason: str | None = None

def dynamic_filter({dynamic_filter}):
    note("dynamic_filter", all(isinstance(s, Sample) for s in {dynamic_filter_given[1]}))
    rewards = [s.get_reward_value({dynamic_filter_given[0]}) for s in {dynamic_filter_given[1]}]
    return Verdict(torch.tensor(rewards, dtype=torch.float64).std() > 1e-6)

def buffer_filter({buffer_filter}):
    note("buffer_filter", {buffer_filter_given[1]}, len({buffer_filter_given[2]}), {buffer_filter_given[3]})
    taken = {buffer_filter_given[2]}[:{buffer_filter_given[3]}]
    del {buffer_filter_given[2]}[:{buffer_filter_given[3]}]
    return taken

def sample_filter({sample_filter}):
    note("sample_filter", [len(group) for group in {sample_filter_given[1]}])
    {sample_filter_given[1]}[0][0].remove_sample = True

def all_samples({all_samples}):
    note("all_samples", len({all_samples_given[1]}), {all_samples_given[2]}(0))
    {all_samples_given[0]}.processed_group_count = len({all_samples_given[1]})

def rollout_log({rollout_log}):
    note("rollout_log", {rollout_log_given[0]}, len({rollout_log_given[2]}), isinstance({rollout_log_given[3]}, dict),
         {rollout_log_given[4]} > 0, {rollout_log_given[1]}.scored, {rollout_log_given[1]}.processed_group_count)
    {rollout_log_given[3]}["rollout/own"] = torch.tensor(7.0)
    return False

def eval_log({eval_log}):
    note("eval_log", {eval_log_given[0]}, {{n: len(d["samples"]) for n, d in {eval_log_given[2]}.items()}})
    {eval_log_given[3]}["eval/held/own"] = 8

def convert({convert}):
    samples = {convert_given[1]}
    note("convert", len(samples))
    if {both}:
        return dict(loss_masks=[s.trained_mask for s in samples])
    return dict(
        tokens=[s.tokens for s in samples], response_lengths=[s.response_length for s in samples],
        rewards=torch.tensor([10.0 * s.reward + 3.0 for s in samples]), raw_reward=[s.reward for s in samples],
        truncated=[1 for s in samples], sample_indices=[s.index for s in samples],
        loss_masks=[s.trained_mask for s in samples],
    )

def post_process({post_process}):
    raw = [s.get_reward_value({post_process_given[0]}) for s in {post_process_given[1]}]
    note("post_process", len(raw))
    return [r + 2.0 for r in raw], torch.tensor([5.0 * r + 1.0 for r in raw])

def advantage({advantage}):
    data = {advantage_given[1]}
    note("advantage", data["rewards"], data["response_lengths"])
    data["advantages"] = [r * torch.ones(n) for r, n in zip(data["rewards"], data["response_lengths"])]
    data["returns"] = data["advantages"]

def tis({tis}):
    ratio = torch.exp(torch.cat(train_log_probs) - torch.cat(rollout_log_probs))
    note("tis", len(loss_masks))
    return pg_loss * ratio.clamp(max=2.0), loss_masks, dict(tis=ratio.clone().detach())
"""


CHOSEN = {"convert": "--custom-convert-samples-to-train-data-path", "post_process": "--custom-reward-post-process-path"}


@pytest.mark.parametrize(
    ("author", "makes_rewards", "rewards", "raw_reward"),
    [
        ("guide", ["convert"], {3.0, 13.0}, 0.5),
        ("contract tests", ["post_process"], {1.0, 6.0}, 2.5),
        ("own", ["convert", "post_process"], {1.0, 6.0}, 2.5),
    ],
)
def test_hooks_of_slime_run_unchanged_whatever_their_parameters_are_called(
    author, makes_rewards, rewards, raw_reward, tiny_model, tmp_path, monkeypatch, caplog
):
    module = f"hooks_of_{author.replace(' ', '_')}"
    parts: dict[str, Any] = {"both": len(makes_rewards) == 2}
    for kind, by_author in NAMES.items():
        parts[kind] = ", ".join(by_author[author])
        parts[f"{kind}_given"] = [name.split(":")[0].split("=")[0].strip() for name in by_author[author]]
    (tmp_path / f"{module}.py").write_text(MODULE.format(**parts))
    monkeypatch.syspath_prepend(tmp_path)
    rows = tmp_path / "rows.jsonl"
    chats = [[{"role": "user", "content": f"What is {n} plus 1?"}] for n in range(12)]
    rows.write_text("".join(json.dumps({"messages": chat, "label": "1"}) + "\n" for chat in chats))
    words = [
        *(
            "--hf-checkpoint",
            str(tiny_model),
            "--prompt-data",
            str(rows),
            "--input-key",
            "messages",
            "--label-key",
            "label",
        ),
        *("--apply-chat-template", "--rollout-engine", "local", "--rollout-max-response-len", "5", "--lr", "1e-3"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--num-rollout", "2", "--micro-batch-size", "4"),
        *("--over-sampling-batch-size", "4", "--partial-rollout", "--use-tis", "--rollout-seed", "1"),
        *("--eval-prompt-data", "held", f"{rows}@[0:2]", "--eval-interval", "2", "--skip-eval-before-train"),
        *("--custom-generate-function-path", f"{module}.generate", "--custom-rm-path", f"{module}.reward"),
        *("--rm-type", "math", "--dynamic-sampling-filter-path", f"{module}.dynamic_filter"),
        *("--buffer-filter-path", f"{module}.buffer_filter", "--rollout-sample-filter-path", f"{module}.sample_filter"),
        *("--rollout-all-samples-process-path", f"{module}.all_samples"),
        *("--custom-rollout-log-function-path", f"{module}.rollout_log"),
        *("--custom-eval-rollout-log-function-path", f"{module}.eval_log"),
        *(word for kind in makes_rewards for word in (CHOSEN[kind], f"{module}.{kind}")),
        *("--custom-advantage-function-path", f"{module}.advantage", "--custom-tis-function-path", f"{module}.tis"),
        *("--run-dir", str(tmp_path / "run"), "--save-debug-rollout-data", str(tmp_path / "{rollout_id}.jsonl")),
    ]
    assert main(["train", *words]) == 0
    seen = importlib.import_module(module).seen
    assert set(seen) == {kind for kind in NAMES if kind not in CHOSEN or kind in makes_rewards}

    asked = "evaluation" in " ".join(NAMES["generate"][author])
    assert {told for told, _, _ in seen["generate"]} == ({True, False} if asked else {"not asked"})
    assert all(isinstance(prompt, str) for _, prompt, _ in seen["generate"])
    assert all("plus 1?" in text for (text,) in seen["reward"])
    assert {told for (told,) in seen["dynamic_filter"]} == {True}
    assert [told[0] for told in seen["buffer_filter"]] == [1]
    assert seen["sample_filter"] == [([2, 2],)] * 2
    assert all(given == [] for _, given in seen["all_samples"])
    assert [told[:4] for told in seen["rollout_log"]] == [(n, 4, True, True) for n in range(2)]
    assert all(scored > 0 and processed >= 2 for *_, scored, processed in seen["rollout_log"])
    assert seen["eval_log"] == [(1, {"held": 2})]
    assert [set(given) for given, _ in seen["advantage"]] == [rewards] * 2
    logged = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["eval/held/own"] for line in logged if "eval/held/reward" in line] == [8]
    lines = [line for line in logged if "train/tis" in line]
    assert [line["rollout/own"] for line in lines] == [7.0, 7.0]
    assert all(line["rollout/raw_reward"] == raw_reward and line["train/grad_norm"] > 0 for line in lines)
    assert not any("train/raw_reward" in line for line in lines)
    assert "A function has set args.rollout_batch_size to 999" in caplog.text
    assert caplog.text.count("A function has set args.rollout_batch_size") == 1
    dumped = [json.loads(line) for line in (tmp_path / "0.jsonl").read_text().splitlines()[1:]]
    assert all("plus 1?" in sample["prompt"] for sample in dumped)
    assert all(sample["metadata"]["slime"]["asked"][0]["role"] == "user" for sample in dumped)


MISTAKES = {
    "too few": ("reward", "def it(args): ...", "does not take the parameter 'sample'"),
    "too many": ("reward", "def it(args, sample, key): ...", "it requires a parameter 'key' that nothing passes"),
    "swapped": ("reward", "def it(sample, args): ...", "parameter 'args' is number 2, expected number 1"),
    "swapped in a log": (
        "rollout_log",
        "def it(args, rollout_id, samples, extra, seconds): ...",
        "parameter 'rollout_id' is number 2, expected number 1",
    ),
    "by name alone": (
        "buffer_pop",
        "def it(args, rollout_id, buffer, *, num_samples): ...",
        "'num_samples' by position",
    ),
    "an extra in its place": (
        "generator",
        "async def it(args, sample, engine): ...",
        "does not take the parameter 'sampling_params'",
    ),
    "a filter that waits": (
        "dynamic_filter",
        "async def it(args, group): ...",
        "it is async, expected a plain function",
    ),
    "annotated as something else": (
        "importance_weight",
        "def it(args, data: str): ...",
        "parameter 'data' is annotated str, expected LossInputs",
    ),
    "slime's loss": (
        "loss",
        "def it(args, batch, logits, sum_of_sample_mean): ...",
        "read inputs.log_probs (and inputs.entropy) in place of logits",
    ),
    "a source that cannot save": (
        "data_source",
        "class it:\n    def __init__(self, args): ...\n    def get_samples(self, n): ...",
        "it has no method add_samples",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_still_told_before_the_run(name, tmp_path, monkeypatch):
    kind, definition, says = MISTAKES[name]
    module = f"mistake_{abs(hash(name))}"
    (tmp_path / f"{module}.py").write_text(definition)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as error:
        Plugins([]).select(kind, f"{module}.it", "--the-option")
    assert says in str(error.value)


SOURCE = """
import json, os
from slime_core.sample import Sample

calls = []

class Numbers:
    def __init__(self, args):
        self.args, self.next, self.waiting = args, 0, []

    def get_samples(self, count):
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        while len(taken) < count:
            size, first = self.args.n_samples_per_prompt, self.next * self.args.n_samples_per_prompt
            taken.append([Sample(group_index=self.next, index=first + i, prompt=f"{self.next} +") for i in range(size)])
            self.next += 1
        return taken

    def add_samples(self, samples):
        self.waiting += samples

    def save(self, rollout_id):
        os.makedirs(f"{self.args.save}/own", exist_ok=True)
        calls.append(("save", rollout_id))
        with open(f"{self.args.save}/own/{rollout_id}.json", "w") as file:
            json.dump([self.next, [[s.to_dict() for s in group] for group in self.waiting]], file)

    def load(self, rollout_id=None):
        calls.append(("load", rollout_id))
        with open(f"{self.args.load}/own/{rollout_id}.json") as file:
            self.next, waiting = json.load(file)
        self.waiting = [[Sample.from_dict(s) for s in group] for group in waiting]

class Counted(Numbers):
    def __len__(self):
        return 100

async def reward(args, sample):
    return float(sum(sample.tokens) % 7)
"""


def test_a_data_source_of_slimes_shape_saves_and_loads_itself_and_a_resumed_run_gets_what_the_unbroken_one_got(
    tiny_model, tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_source.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)

    def run(name: str, rollouts: int, *words: str) -> list[dict]:
        folder = tmp_path / name
        flags = [
            *(
                "--hf-checkpoint",
                str(tiny_model),
                "--data-source-path",
                "own_source.Counted",
                "--num-rollout",
                str(rollouts),
            ),
            *("--rollout-engine", "local", "--rollout-max-response-len", "4", "--custom-rm-path", "own_source.reward"),
            *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--over-sampling-batch-size", "3"),
            *("--run-dir", str(folder), "--save", str(folder / "save"), "--save-interval", "1", "--lr", "1e-3"),
            *("--lr-decay-style", "constant", "--prompt-data", str(tmp_path / "own_source.py")),
            *(
                "--save-debug-rollout-data",
                str(folder / "{rollout_id}.jsonl"),
                "--on-resume-change",
                "num-rollout=allow",
            ),
        ]
        assert main(["train", *flags, *words]) == 0
        return [json.loads(line) for line in (folder / f"{rollouts - 1}.jsonl").read_text().splitlines()[1:]]

    unbroken = run("unbroken", 3)
    run("broken", 2)
    calls = importlib.import_module("own_source").calls
    calls.clear()
    assert [s["tokens"] for s in run("broken", 3, "--load", str(tmp_path / "broken" / "save"))] == [
        s["tokens"] for s in unbroken
    ]
    assert calls == [("load", 1), ("save", 2)]


SHAPED = """
def reward(args, sample):
    if sample.index % 4 in {noted}:
        sample.metadata["raw_reward"] = 5.0
    return sample.index % 4 + 0.5

def post_process(args, samples):
    return [float(s.index % 4 < 2) for s in samples], [s.reward for s in samples]
"""


@pytest.mark.parametrize(
    ("noted", "worths"),
    [((), [1.0, 1.0, 0.0, 0.0]), ((3,), [0.5, 1.5, 2.5, 5.0]), ((0, 1, 2, 3), [5.0] * 4)],
    ids=["none", "some", "all"],
)
def test_what_is_logged_of_rewards_is_what_a_hook_calls_raw_unless_a_sample_notes_it(
    noted, worths, tiny_model, tmp_path, monkeypatch
):
    """As in slime, the notes of some samples go before all that the function calls raw."""
    module = f"shaped_rewards_{len(noted)}"
    (tmp_path / f"{module}.py").write_text(SHAPED.format(noted=noted))
    monkeypatch.syspath_prepend(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is 1 plus 1?"}\n' * 2)
    words = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(rows), "--input-key", "prompt"),
        *("--rollout-engine", "local", "--rollout-max-response-len", "3", "--lr", "1e-3", "--num-rollout", "1"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "4", "--micro-batch-size", "8", "--log-passrate"),
        *("--custom-rm-path", f"{module}.reward", "--custom-reward-post-process-path", f"{module}.post_process"),
        *("--run-dir", str(tmp_path / "run")),
    ]
    assert main(["train", *words]) == 0
    (line,) = (line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line)
    assert line["rollout/raw_reward"] == statistics.mean(worths)
    correct = worths.count(1.0)
    logged = {k: line[f"rollout/passrate/pass@{k}"] for k in (1, 2, 4)}
    assert logged == {k: 1 - math.comb(4 - correct, k) / math.comb(4, k) for k in (1, 2, 4)}


INPUTS = {"log_probs": [-1.0, -2.0, -0.5, -0.25, -3.0], "engine": [-1.5, -1.0, -0.5, -1.0, -2.5]}


def test_a_correction_of_slimes_shape_gives_the_weights_that_it_scales_a_loss_with(tmp_path, monkeypatch):
    (tmp_path / "own_tis.py").write_text(
        "import torch\n"
        "def cut(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, **kwargs):\n"
        "    ratios = [torch.exp(a - b) for a, b in zip(train_log_probs, rollout_log_probs)]\n"
        "    masks = [mask * (ratio < 2.0) for mask, ratio in zip(loss_masks, ratios)]\n"
        "    means = [ratio.mean().expand_as(ratio) for ratio in ratios]\n"
        "    return pg_loss * torch.cat(means), masks, {'tis': ratios, 'count': torch.tensor(float(len(masks)))}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    correction = Plugins([]).select("importance_weight", "own_tis.cut")
    new = torch.tensor(INPUTS["log_probs"], dtype=torch.float64, requires_grad=True)
    share = Reduce(torch.full((5,), 0.2, dtype=torch.float64))
    inputs = LossInputs(
        log_probs=new,
        loss_mask=torch.ones(5, dtype=torch.float64),
        sample_index=torch.tensor([0, 0, 0, 1, 1]),
        reduce=share,
        measured=share,
        rollout_log_probs=torch.tensor(INPUTS["engine"], dtype=torch.float64),
    )
    weights, metrics, kept = correction(None, inputs)
    ratios = [math.exp(a - b) for a, b in zip(INPUTS["log_probs"], INPUTS["engine"], strict=True)]
    means = [sum(ratios[:3]) / 3] * 3 + [sum(ratios[3:]) / 2] * 2
    assert weights.tolist() == pytest.approx(means, rel=1e-12)
    assert kept.tolist() == [float(ratio < 2.0) for ratio in ratios]
    assert not weights.requires_grad
    assert 0.0 in kept.tolist()
    assert metrics["tis"].item() == pytest.approx(sum(ratios) / 5)
    assert metrics["count"].item() == pytest.approx(2.0)
    nothing = {
        name: getattr(inputs, name)[:0] for name in ("log_probs", "loss_mask", "sample_index", "rollout_log_probs")
    }
    none = Reduce(share.weights[:0])
    weights, of_none, kept = correction(None, replace(inputs, **nothing, reduce=none, measured=none))
    assert weights.shape == kept.shape == (0,)
    assert of_none == dict.fromkeys(metrics, 0.0)


ESTIMATORS = """
import torch

def sets(args, rollout_data):
    rewards, masks = rollout_data["rewards"], rollout_data["loss_masks"]
    rollout_data["advantages"] = [r * torch.ones(n) - k for r, n, k in zip(rewards, rollout_data["response_lengths"], rollout_data["kl"])]
    rollout_data["returns"] = [a.clone() for a in rollout_data["advantages"]]

def further(args, rollout_data, **kwargs):
    sets(args, rollout_data)

def scaled(args, rollout_data, scale=1.0):
    sets(args, rollout_data)

def by_name(args, rollout_data, *, scale=1.0):
    sets(args, rollout_data)

def forgets(args, rollout_data): ...

def too_short(args, rollout_data):
    rollout_data["advantages"] = [torch.zeros(1) for _ in rollout_data["rewards"]]

def asks_for_more(args, rollout_data):
    rollout_data["teacher"]
"""


@pytest.mark.parametrize(
    ("final", "estimator"), [(False, "grpo"), (True, "grpo"), (False, "reinforce_plus_plus_baseline")]
)
def test_an_estimator_of_slimes_shape_is_given_what_slime_gives_it(final, estimator, tmp_path, monkeypatch):
    (tmp_path / "own_adv.py").write_text(ESTIMATORS)
    monkeypatch.syspath_prepend(tmp_path)
    rewards, groups, lengths = [1.0, 0.0, 4.0, 2.0, 0.5], [0, 0, 1, 1, 1], [1, 3, 2, 2, 1]
    mask = [1.0] * sum(lengths)
    inputs = AdvantageInputs(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group_index=torch.tensor(groups),
        lengths=torch.tensor(lengths),
        loss_mask=torch.tensor(mask, dtype=torch.float64),
        sample_index=torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)),
        rewards_are_final=final,
        raw_rewards=torch.arange(5.0),
    )
    args = SimpleNamespace(advantage_estimator=estimator, kl_coef=0.0)
    expected = []
    for reward, group, length in zip(rewards, groups, lengths, strict=True):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        spread = statistics.stdev(own) + 1e-6 if estimator == "grpo" else 1.0
        expected += [reward if final else (reward - statistics.fmean(own)) / spread] * length
    for engines, name in ((False, "log_probs"), (True, "rollout_log_probs")):
        told = SimpleNamespace(**vars(args), use_rollout_logprobs=engines)
        data = RolloutData.of(told, replace(inputs, log_probs=inputs.loss_mask))
        assert [key for key in data if key.endswith("log_probs")] == [name]
    assert RolloutData.of(args, inputs)["raw_reward"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    for name in ("sets", "further", "scaled", "by_name"):
        outputs = Plugins([]).select("advantage", f"own_adv.{name}")(args, inputs)
        assert outputs.advantages.tolist() == pytest.approx(expected, rel=1e-6)
        assert outputs.returns.tolist() == outputs.advantages.tolist()
    for name, says in [
        ("forgets", 'set no rollout_data["advantages"]'),
        ("too_short", "It set advantages of the shapes"),
        ("asks_for_more", "The rollout data has no 'teacher' for an advantage estimator; it has rewards, raw_reward"),
    ]:
        with pytest.raises(PluginError, match=re.escape(says)):
            Plugins([]).select("advantage", f"own_adv.{name}")(args, inputs)


OUTPUTS = """
from dataclasses import dataclass, field
from slime_core.sample import Sample, Status

@dataclass
class Train:
    samples: list
    metrics: dict = None

@dataclass
class Eval:
    data: dict
    metrics: dict = None

def done(sample):
    sample.tokens, sample.response_length, sample.status, sample.reward = [5, 6, 7], 2, Status.COMPLETED, 1.0
    return sample

def roll_out(args, rollout_id, data_buffer, evaluation=False):
    if evaluation:
        samples = [done(Sample(index=n)) for n in range(2)]
        found = {"held": {"rewards": [0.5, 1.5], "truncated": [False, False], "samples": samples}}
        return found if args.plain else Eval(found, {"seconds": 3, "eval/held/own": 1})
    groups = [[done(s) for s in group] for group in data_buffer.get_samples(args.rollout_batch_size)]
    return groups if args.plain else Train([[group] for group in groups], {"turns": 2, "rollout/own": 1})
"""


@pytest.mark.parametrize("bare", [True, False])
def test_what_slimes_rollout_functions_return_is_read(bare, tmp_path, monkeypatch):
    (tmp_path / "own_rollout.py").write_text(OUTPUTS)
    monkeypatch.syspath_prepend(tmp_path)
    function = Plugins([]).select("rollout", "own_rollout.roll_out")
    args = SimpleNamespace(plain=bare, rollout_batch_size=2)
    source = SimpleNamespace(
        get_samples=lambda count: [[Sample(index=2 * n), Sample(index=2 * n + 1)] for n in range(count)]
    )
    trained = function(args, 0, source, evaluation=False)
    assert [[sample.index for sample in group] for group in trained.groups] == [[0, 1], [2, 3]]
    assert trained.metrics == ({} if bare else {"turns": 2.0, "own": 1})
    evaluated = function(args, 0, source, evaluation=True)
    assert [(s.dataset, s.reward) for s in evaluated.generations] == [("held", 0.5), ("held", 1.5)]
    assert evaluated.metrics == ({} if bare else {"seconds": 3.0, "held/own": 1})


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        *((answer, True) for answer in ("True", "1", "0.0", "(0, 'few')", "torch.tensor(1)", "numpy.bool_(True)")),
        *((answer, True) for answer in ("SimpleNamespace(keep=1)", "SimpleNamespace(keep=False, reason='few')")),
        *(
            (answer, False)
            for answer in ("None", "'yes'", "[]", "{}", "torch.ones(2)", "waits()", "(None, 'few')", "print")
        ),
    ],
)
def test_a_filter_may_answer_with_any_truth_value_and_with_nothing_else(answer, fits, tmp_path, monkeypatch):
    code = "import numpy, torch\nfrom types import SimpleNamespace\nasync def waits(): return True\n"
    (tmp_path / "own_filter.py").write_text(f"{code}def keep(args, samples, **kwargs): return {answer}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_filter", raising=False)
    keep = Plugins([]).select("dynamic_filter", "own_filter.keep")
    if fits:
        keep(SimpleNamespace(), [Sample()])
        return
    with pytest.raises(PluginError, match=r"expected True or False, or a pair|is async, expected a plain function"):
        keep(SimpleNamespace(), [Sample()])


EVALUATIONS = """
from slime_core.sample import Sample, Status

def roll_out(args, rollout_id, data_buffer, evaluation=False):
    statuses = [Status.COMPLETED, Status.TRUNCATED, Status.ABORTED]
    return {"held": eval(args.found, {"samples": [Sample(index=n, status=s, reward=9.0) for n, s in enumerate(statuses)]})}
"""
DONE, CUT = Status.COMPLETED, Status.TRUNCATED
SETS = {
    '{"samples": samples}': [(9.0, DONE), (9.0, CUT), (9.0, Status.ABORTED)],
    '{"samples": samples, "rewards": (1, 2, 3)}': [(1, DONE), (2, CUT), (3, Status.ABORTED)],
    '{"samples": samples, "truncated": [True, True, True]}': [(9.0, CUT), (9.0, CUT), (9.0, CUT)],
    '{"samples": samples, "truncated": [1, 0, 0]}': [(9.0, CUT), (9.0, DONE), (9.0, Status.ABORTED)],
    '{"rewards": [0.5, 1.5]}': [(0.5, DONE), (1.5, DONE)],
    '{"rewards": [0.5, 1.5], "samples": None, "truncated": [False, True]}': [(0.5, DONE), (1.5, CUT)],
    '{"samples": []}': 'the evaluation set \'held\' has neither "rewards" nor "samples"',
    '{"rewards": []}': 'the evaluation set \'held\' has neither "rewards" nor "samples"',
    "[1.0]": 'the evaluation set \'held\' has neither "rewards" nor "samples"',
    '{"rewards": 1.0}': r"the rewards of the evaluation set 'held' are 1.0 \(float\), expected a list",
    '{"samples": samples, "rewards": [1]}': "the evaluation set 'held' has 1 rewards for 3 samples",
    '{"rewards": [1], "truncated": []}': "the evaluation set 'held' has 0 truncated for 1 samples",
}


@pytest.mark.parametrize(("found", "made"), SETS.items())
def test_every_part_of_an_evaluation_set_is_read_or_named(found, made, tmp_path, monkeypatch):
    (tmp_path / "own_evaluation.py").write_text(EVALUATIONS)
    monkeypatch.syspath_prepend(tmp_path)
    function = Plugins([]).select("rollout", "own_evaluation.roll_out")
    if isinstance(made, str):
        with pytest.raises(PluginError, match=made):
            function(SimpleNamespace(found=found), 0, None, evaluation=True)
        return
    answers = function(SimpleNamespace(found=found), 0, None, evaluation=True).generations
    assert [(answer.reward, answer.status) for answer in answers] == made
    assert {answer.dataset for answer in answers} == {"held"}
    assert metrics_of(RolloutOutput([], {}, answers), {}) == {"eval/held/reward": sum(r for r, _ in made) / len(made)}


OWN_METRICS = """
import numpy, torch
from types import SimpleNamespace
from slime_core.sample import RolloutOutput, Sample, Status

def roll_out(args, rollout_id, data_source, evaluation=False):
    return RolloutOutput([], {"a": eval(args.metric)})

def as_slimes(args, rollout_id, data_source, evaluation=False):
    sample = Sample(tokens=[5, 6, 7], response_length=2, status=Status.COMPLETED, reward=1.0)
    return SimpleNamespace(samples=[[sample]], metrics={"a": eval(args.metric)})
"""


@pytest.mark.parametrize("name", ["roll_out", "as_slimes"])
@pytest.mark.parametrize(
    ("metric", "found"),
    [
        *(("numpy.float32(0.5)", 0.5), ("torch.tensor(0.5)", 0.5), ("numpy.int64(2)", 2), ("True", 1.0)),
        *(
            ("[1.0]", r"the metric 'a' is \[1.0\]"),
            ("{1}", "metrics.a is 'set'"),
        ),
    ],
)
def test_metrics_of_a_rollout_are_plain_numbers_or_named(metric, found, name, tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(OWN_METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    function = Plugins([]).select("rollout", f"own_metrics.{name}")
    if isinstance(found, str):
        with pytest.raises(PluginError, match=found):
            function(SimpleNamespace(metric=metric), 0, None, evaluation=False)
        return
    (made,) = function(SimpleNamespace(metric=metric), 0, None, evaluation=False).metrics.values()
    assert (made, type(made)) == (found, type(found))


def test_metrics_that_are_texts_are_left_out_and_told_of_once(caplog):
    for _ in range(2):
        assert metric_numbers({"source": "contract", "turns": 2}) == {"turns": 2}
    (told,) = caplog.messages
    assert told == "The metric 'source' is the text 'contract' (str); metrics are numbers, so it is not logged"


def test_what_stands_where_a_group_belongs_is_named():
    sample = Sample(index=3)
    for groups, said in (
        ([sample], "Sample) stands where a group belongs, expected a list of samples, those of one prompt"),
        ([[{"prompt": "p"}]], "(list) stands where a group belongs"),
        ([None], "None (NoneType) stands where a group belongs"),
        (3, "its groups are 3 (int), expected a list of groups"),
    ):
        with pytest.raises(DataError, match=re.escape(said)):
            as_rollout_output(RolloutOutput(groups))
    with pytest.raises(DataError, match=r"its generations are .* expected a list of samples"):
        as_rollout_output(RolloutOutput([], generations=[[sample]]))
