"""Every fault that a report knows has its alarm, with threshold, step and chart; a healthy run has none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from written_runs import evaluation, healthy, keep, sample, tuned, write_run

from slime_report.reading.run import RunReader
from slime_report.report import Alarm, Run

DATA = Path(__file__).parent / "data"
GUIDE = Path(__file__).parents[3] / "docs" / "read-a-run.md"
SFT = {"n_samples_per_prompt": 1, "disable_compute_advantages_and_returns": True}


def read(folder: Path) -> Run:
    return RunReader(folder).read(1_000_000)


def alarm_of(run: Run, id: str) -> Alarm:
    """The alarm that the run has been given for its fault, which must be the first."""
    assert run.alarms, run.verdict
    assert run.alarms[0].id == id, [alarm.text for alarm in run.alarms]
    return run.alarms[0]


def late(name: str, value, healthy_until: int = 20):
    """A healthy run in which one metric has another value from some rollout on."""

    def line(step: int) -> dict:
        return {**healthy(step), **({name: value} if step >= healthy_until else {})}

    return line


@pytest.mark.parametrize("rollouts", [1, 2, 3, 6, 40])
def test_a_healthy_run_has_no_alarm(tmp_path, rollouts):
    assert read(write_run(tmp_path / "rl", rollouts=rollouts, arguments={"num_rollout": rollouts})).alarms == []
    run = read(write_run(tmp_path / "sft", tuned, rollouts, arguments={**SFT, "num_rollout": rollouts}, evaluate=None))
    assert run.alarms == []
    assert run.verdict.endswith("No alarms.")


FAULTS = [
    ("zero_spread", {"line": late("rollout/zero_std/share", 0.6)}, 21),
    ("zero_spread", {"line": late("rollout/zero_std/share", 1.0, 35)}, 36),
    ("filtered", {"line": late("rollout/sampling/groups_filtered", 7.8)}, None),
    ("truncated", {"line": late("rollout/truncated_ratio", 0.4)}, 21),
    ("aborted", {"line": late("rollout/sampling/groups_lost_failed", 1.0)}, None),
    ("reward_evaluation", {"evaluate": lambda step: {"eval/held/reward": 0.3 + 0.001 * step}}, 40),
    ("logprob_difference", {"line": late("train/train_rollout_logprob_abs_diff", 0.09)}, 21),
    ("logprob_difference", {"line": lambda step: {**healthy(step), "train/train_rollout_logprob_abs_diff": 0.5}}, 1),
    ("entropy", {"line": late("train/entropy_loss", 0.004)}, 21),
    ("clip_fraction", {"line": late("train/pg_clipfrac", 0.5)}, 21),
    ("kl", {"line": late("train/ppo_kl", -0.4)}, 21),
    (
        "length",
        {
            "line": lambda step: {
                **healthy(step),
                "rollout/response_len/mean": 20 + 3.0 * step,
                "rollout/raw_reward": 0.3,
            }
        },
        None,
    ),
    ("grad_norm", {"line": late("train/grad_norm", 9.0)}, 21),
    ("grad_norm", {"line": lambda step: {**healthy(step), "train/grad_norm": 50.0}}, 1),
    ("not_finite", {"line": late("train/loss", None, 30)}, 31),
    ("not_finite", {"line": late("train/critic/loss", None, 30)}, 31),
    (
        "loss_rising",
        {"line": lambda s: {**tuned(s), "train/loss": 2 + 0.02 * s}, "arguments": SFT, "evaluate": None},
        1,
    ),
    (
        "overfitting",
        {"line": tuned, "arguments": SFT, "evaluate": lambda step: {"eval/held/loss": 2 + abs(step - 20) / 50}},
        20,
    ),
    (
        "masked",
        {"line": lambda s: {**tuned(s), "train/num_trained_tokens": 10.0}, "arguments": SFT, "evaluate": None},
        1,
    ),
    ("untrained", {"line": lambda s: {**healthy(s), **({"train/num_trained_tokens": 0.0} if s == 12 else {})}}, 13),
    ("untrained", {"line": late("train/grad_norm", 0.0, 30)}, 31),
    ("untrained", {"rollouts": 3, "line": late("train/grad_norm", 0.0, 0)}, 1),
    (
        "data_lost",
        {"line": lambda s: {**tuned(s), "rollout/skipped_over_long": 2.0}, "arguments": SFT, "evaluate": None},
        1,
    ),
    ("data_lost", {"line": lambda s: {**tuned(s), "rollout/truncated": 3.0}, "arguments": SFT, "evaluate": None}, 1),
    (
        "data_lost",
        {
            "line": lambda step: {**healthy(step), "rollout/skipped_malformed": 1.0},
            "arguments": {"n_samples_per_prompt": 8},
        },
        1,
    ),
    ("failed", {"rollouts": 7, "error": {"type": "WorkerDied", "text": "rank 3 is gone"}}, 7),
    ("not_finite", {"rollouts": 7, "error": {"type": "TrainingError", "text": "step 7: the loss is nan"}}, 8),
    ("crashed", {"rollouts": 7, "ended": False}, 7),
]


@pytest.mark.parametrize(("id", "changes", "step"), FAULTS, ids=[f"{n}-{fault[0]}" for n, fault in enumerate(FAULTS)])
def test_a_fault_is_named_with_its_threshold_its_step_and_its_chart(tmp_path, id, changes, step):
    run = read(write_run(tmp_path / "run", **changes))
    alarm = alarm_of(run, id)
    assert alarm.chart is None or alarm.chart in {chart.id for chart in run.charts}
    if step is not None:
        assert alarm.step == step
    if id not in ("failed", "crashed"):
        assert "threshold" in alarm.text
    if alarm.threshold is not None:
        assert alarm.value is not None
    assert len(run.alarms) == 1, [other.text for other in run.alarms]
    assert run.verdict.endswith("1 alarm.")
    assert f"`{id}`" in GUIDE.read_text(encoding="utf-8"), "the guide says what to do"


def test_alarms_of_samples_lead_to_one(tmp_path):
    run = write_run(tmp_path / "run", late("rollout/truncated_ratio", 0.4))
    keep(run, [sample(0, 0), sample(30, 1, status="truncated"), sample(39, 2)])
    assert alarm_of(read(run), "truncated").sample == "30-1"
    aborted = write_run(tmp_path / "aborted")
    keep(aborted, [sample(5, 3, status="aborted")])
    groups = [
        {"rollout": n, "groups": [["p0", [1, 0, None]]], "statuses": {"completed": 8, "aborted": 1}} for n in range(40)
    ]
    keep(aborted, groups, "groups.jsonl")
    assert alarm_of(read(aborted), "aborted").sample == "5-3"
    masked = write_run(tmp_path / "masked")
    keep(masked, [sample(1, 0, mask="0" * 200, pieces=["x"] * 203, length=200, log_probs=None, difference=None)])
    assert alarm_of(read(masked), "masked").sample == "1-0"


def test_the_most_serious_alarm_comes_first(tmp_path):
    def line(step: int) -> dict:
        return {**healthy(step), "rollout/truncated_ratio": 0.9, "rollout/zero_std/share": 1.0, "train/grad_norm": 60.0}

    run = read(write_run(tmp_path / "run", line, error={"type": "OutputError", "text": "disk full"}))
    assert [alarm.id for alarm in run.alarms] == ["failed", "zero_spread", "truncated", "grad_norm"]


def test_a_score_that_cannot_rise_is_no_flat_evaluation(tmp_path):
    assert read(write_run(tmp_path / "top", evaluate=lambda step: {"eval/held/reward": 1.0})).alarms == []
    assert read(write_run(tmp_path / "one", evaluate=evaluation, every=100)).alarms == [], (
        "a single evaluation is not flat"
    )


@pytest.mark.parametrize("name", ["sft", "grpo", "dapo", "async"])
def test_the_quickstarts_are_healthy(tmp_path, name):
    """The metrics are those of a real run of recipes/quickstart-NAME.yaml, without the timings of single hooks."""
    of_run = json.loads((DATA / f"quickstart-{name}.json").read_text())
    folder = write_run(tmp_path / "run", arguments=of_run["arguments"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in of_run["lines"]))
    run = read(folder)
    assert run.alarms == [], [alarm.text for alarm in run.alarms]
    assert run.done == of_run["arguments"]["num_rollout"]
    better = run.scores[0].last > run.scores[0].first
    assert better == run.scores[0].higher_is_better
