"""A run is read in whatever state it is: finished, stopped, failed, killed, going on, gone on several times, or of an old version."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
from written_runs import BEGAN, evaluation, healthy, keep, note, sample, tuned, write_run

from slime_core.errors import ArgumentError
from slime_core.run.scores import score_of
from slime_report.reading.curve import MOST, Curve
from slime_report.reading.evaluations import interval
from slime_report.reading.run import RunReader
from slime_report.report import Run


def read(folder: Path) -> Run:
    return RunReader(folder).read(1_000_000)


def test_a_finished_run(tmp_path):
    run = read(write_run(tmp_path / "run"))
    assert (run.state, run.done, run.total, run.missing[0]) == (
        "finished",
        40,
        40,
        "There are no samples of training: it recorded none.",
    )
    assert run.verdict == "Finished after 40 of 40 rollouts in 8:25. eval/held/reward 0.3 → 0.6. No alarms."
    assert (run.command, run.seconds) == ("slime train recipe.yaml", 505.0)
    assert [chart.id for chart in run.charts[:4]] == ["reward", "evaluation", "loss", "kl"]
    assert run.series["eval/held/reward"].x == [0, 10, 20, 30, 40]
    assert run.series["rollout/raw_reward"].x == list(range(1, 41))
    (score, of_training) = run.scores
    assert (score.first, score.best, score.best_step, score.last, score.higher_is_better) == (0.3, 0.6, 40, 0.6, True)
    assert of_training.n == 48
    assert of_training.low < of_training.last < of_training.high
    phases = {phase.phase: phase.seconds for phase in run.time}
    assert phases == {
        "training": 200.0,
        "waiting for samples": 140.0,
        "log-probs before training": 40.0,
        "weights to the engine": 20.0,
        "loading, evaluations, checkpoints": 105.0,
    }
    assert sum(phase.share for phase in run.time) == pytest.approx(1, abs=1e-3)
    (lr,) = (argument for argument in run.provenance.arguments if argument.source != "default")
    assert (lr.option, lr.value) == ("--lr", "1e-06")


def test_an_evaluation_of_an_earlier_checkpoint_ends_no_curve(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"rollout_id": 9, "time": BEGAN + 900, "eval/held/reward": 0.9}) + "\n")
    run = read(folder)
    assert run.series["eval/held/reward"].x == [0, 10, 20, 30, 40]
    assert run.scores[0].last == 0.6


@pytest.mark.parametrize(
    ("error", "state", "verdict"),
    [
        ({"type": "KeyboardInterrupt", "text": ""}, "stopped", "Stopped after 9 of 40"),
        ({"type": "Terminated", "text": ""}, "stopped", "Stopped after 9 of 40"),
        ({"type": "WorkerDied", "text": "rank 1 is gone\nmore"}, "failed", "Failed with WorkerDied after 9 of 40"),
        (None, "finished", "Finished early, since the score got no better, after 9 of 40"),
    ],
)
def test_how_a_run_ended_is_told(tmp_path, error, state, verdict):
    run = read(write_run(tmp_path / "run", rollouts=9, error=error, arguments={"early_stopping_patience": 2}))
    assert run.state == state
    assert run.verdict.startswith(verdict)
    assert [alarm.id for alarm in run.alarms] == (["failed"] if state == "failed" else [])


def sign(folder: Path, what: str, rollout: int, at: float) -> None:
    path = folder / "record" / "signs" / what
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{rollout}\n")
    os.utime(path, (at, at))


def test_a_killed_run_says_what_it_was_in_the_middle_of(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=9, ended=False)
    sign(folder, "before_train_step", 8, BEGAN + 105)
    sign(folder, "rollout_finished", 9, BEGAN + 110)
    (folder / ".slime-run").write_text(json.dumps({"pid": 7, "host": "far", "since": "2026-01-01 00:00:00"}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"rollout_id": 9, "train/lo')
    run = read(folder)
    assert (run.state, run.done, run.seconds) == ("crashed", 9, 130.0)
    assert run.verdict.startswith("Killed in the middle of the trainer: the samples of rollout 10 are there")
    (alarm,) = run.alarms
    assert (alarm.id, alarm.step) == ("crashed", 9)
    assert "process 7 on far" in alarm.text
    assert not any("cannot be read" in sentence for sentence in run.missing), "a half-written line is no broken one"


def hold(path: str, ready, done) -> None:
    with open(path, "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.set()
        done.wait(60)


@pytest.fixture
def running(tmp_path):
    """A run directory that another process holds, as a run does."""
    folder = write_run(tmp_path / "run", rollouts=9, ended=False)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(str(folder / ".slime-run"), ready, done))
    process.start()
    assert ready.wait(60)
    yield folder
    done.set()
    process.join()


def test_a_run_that_goes_on_is_running_or_stalled_on_something(running):
    now = time.time()
    sign(running, "weights_updated", 9, now - 20)
    run = read(running)
    assert (run.state, run.alarms) == ("running", [])
    assert run.verdict.startswith(
        "Running (now: samples: the engine has the weights of version 9) after 9 of 40 rollouts"
    )
    sign(running, "weights_updated", 9, now - 900)
    run = read(running)
    assert [alarm.id for alarm in run.alarms] == ["stalled"]
    assert run.verdict.startswith("Stalled on samples: the engine has the weights of version 9 after 9 of 40")
    assert run.alarms[0].threshold == 300


def test_a_report_follows_a_run_that_grows_and_one_that_begins_anew(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=3, ended=False, evaluate=None)
    whole = (write_run(tmp_path / "whole", rollouts=6, evaluate=None) / "metrics.jsonl").read_bytes()
    path, reader = folder / "metrics.jsonl", RunReader(folder)
    assert reader.read(0).done == 3
    path.write_bytes(b"")
    for end in range(0, len(whole) + 1, 500):  # cut anywhere
        with path.open("ab") as file:
            file.write(whole[path.stat().st_size : end])
        found = reader.read(0)
        assert found.done == whole[:end].count(b"\n")
    with path.open("ab") as file:
        file.write(whole[path.stat().st_size :])
    assert reader.read(0).series == read(tmp_path / "whole").series
    shutil.copy(write_run(tmp_path / "other", tuned, 2, evaluate=None) / "metrics.jsonl", tmp_path / "new")
    os.replace(tmp_path / "new", path)
    assert reader.read(0).done == 2
    assert reader.read(0).series == read(tmp_path / "other").series


def test_of_repeated_rollouts_the_last_attempt_counts(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=20, ended=False, evaluate=evaluation, every=5)
    attempt = [
        {"rollout_id": n, "time": BEGAN + 999 + n, **healthy(n), "rollout/raw_reward": 0.5} for n in range(10, 14)
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in attempt))
    note(folder, {"event": "start", "at": BEGAN + 980, "resume_after": 9})
    note(folder, {"event": "start", "at": BEGAN + 990, "resume_after": 9, "seen_before": BEGAN + 984})
    note(folder, {"event": "end", "at": BEGAN + 1020, "error": None})
    run = read(folder)
    assert run.seconds == 4 + 30, "what is known of three attempts, of which two were killed"
    assert run.done == 14
    assert run.series["rollout/raw_reward"].x == list(range(1, 15))
    assert run.series["rollout/raw_reward"].y[10:] == [0.5] * 4
    assert run.series["eval/held/reward"].x == [0, 5, 10], "what was measured after the checkpoint is gone"
    assert [resumed.step for resumed in run.resumed] == [10, 10]
    assert all(resumed.at for resumed in run.resumed)


def test_an_old_run_without_a_record_says_what_is_missing(tmp_path):
    folder = write_run(tmp_path / "run")
    shutil.rmtree(folder / "record")
    shutil.copytree(write_run(tmp_path / "before", rollouts=2), folder / "earlier-1")
    run = read(folder)
    assert run.state == "finished", "all rollouts are done"
    assert run.alarms == []
    assert run.seconds == pytest.approx(480)
    said = " ".join(run.missing)
    assert "did not record its starts and ends" in said
    assert "no samples of training" in said
    assert "earlier-1" in said
    (folder / "config.yaml").write_text("a: [")
    assert any("config.yaml cannot be read" in sentence for sentence in read(folder).missing)
    (folder / "config.yaml").unlink()
    (folder / "metrics.jsonl").write_text("")
    assert any("logged nothing" in sentence for sentence in read(folder).missing)


def test_broken_lines_are_counted_and_odd_values_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            'not json\n[1]\n{"rollout_id": "x"}\n{"rollout_id": 5, "time": "now", "train/loss": "high", "train/ok": true}\n'
        )
    run = read(folder)
    assert "3 lines of metrics.jsonl" in " ".join(run.missing)
    assert run.done == 3


@pytest.mark.parametrize("what", ["nothing", "a file", "no run", "a folder of runs"])
def test_what_is_no_run_directory_is_refused(tmp_path, what):
    path = tmp_path / "place"
    if what == "a file":
        path.write_text("x")
    elif what != "nothing":
        path.mkdir()
    if what == "a folder of runs":
        write_run(path / "one", rollouts=1)
    with pytest.raises(ArgumentError, match=r"expected a run directory|is no run directory") as caught:
        RunReader(path)
    assert ("There are runs in it: one." in str(caught.value)) == (what == "a folder of runs")


def test_samples_of_several_ranks_are_put_together(tmp_path):
    folder = write_run(tmp_path / "run")
    bare = {"log_probs": None, "difference": None, "entropy": None}
    keep(folder, [sample(0, 0, why=["best"], **bare), sample(0, 1, why=["largest_difference"])])
    far = sample(0, 2, why=["largest_difference"], difference=[0.5, 0.1])
    keep(folder, [sample(0, 0, why=["best"]), far], "samples-rank1.jsonl")
    run = read(folder)
    assert [(row.id, row.why, row.log_prob) for row in run.samples.rows] == [
        ("0-0", ["best"], [-0.5, -0.1]),
        ("0-2", ["largest_difference"], [-0.5, -0.1]),
    ]
    assert (run.samples.kept, run.samples.of) == (2, 40 * 48)
    (first, _) = run.samples.rows
    assert (first.step, first.mask, first.difference, first.advantage) == (1, [1, 1], [0.01, -0.02], [1, 1])


def test_samples_keep_within_their_bytes_and_stay_spread_over_the_run(tmp_path):
    folder = write_run(tmp_path / "run")
    keep(folder, [sample(n, k, pieces=["word"] * 5) for n in range(40) for k in range(3)])
    run = RunReader(folder).read(30_000)
    steps = sorted({row.step for row in run.samples.rows})
    assert steps[0] == 1
    assert steps[-1] == 40
    assert 5 < len(steps) < 40
    assert len(json.dumps([row.pieces for row in run.samples.rows])) < 30_000


def test_what_was_cut_out_of_a_sample_is_said_in_its_place(tmp_path):
    folder = write_run(tmp_path / "run")
    keep(folder, [sample(0, 0, left_out={"prompt": 1000, "at": 1, "response": 50}, length=52)])
    (row,) = read(folder).samples.rows
    assert row.pieces == [
        *("… 1,000 tokens are left out here … ", "1", "+", "2", " 3"),
        *(" … 50 tokens are left out here … ", "."),
    ]
    assert (row.prompt_tokens, row.mask, row.log_prob) == (4, [1, 0, 1], [-0.5, None, -0.1])


def test_groups_are_counted_by_how_much_of_them_was_solved(tmp_path):
    folder = write_run(tmp_path / "run")
    shares = {
        "a": [0, 0, 0, 0],
        "b": [1, 0, 0, 0],
        "c": [1, 1, 0, 0],
        "d": [1, 1, 1, 0],
        "e": [1, 1, 1, 1],
        "f": [1] * 9 + [0],
    }
    asked = {"a": "hard?", "e": "easy?"}
    keep(
        folder,
        [{"rollout": n, "groups": [[*pair] for pair in shares.items()], "asked": asked} for n in (0, 10)],
        "groups.jsonl",
    )
    run = read(folder)
    assert run.groups.solved == [2, 2, 2, 2, 2, 2]
    assert [(p.prompt, p.n, p.text) for p in run.groups.never] == [("a", 2, "hard?")]
    assert [(p.prompt, p.n, p.text) for p in run.groups.always] == [("e", 2, "easy?")]
    assert (run.groups.groups, run.groups.threshold) == (12, 0.5)
    reward = run.series["rollout/raw_reward"]
    assert reward.low[:11] == [0.0] * 11, "the 10th percentile, between two recorded rollouts in proportion"
    assert reward.high[:11] == [1.0] * 11
    assert set(reward.low[11:]) == {None}


def test_evaluations_have_intervals_and_the_same_prompts_early_and_late(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "eval").mkdir()
    for step in (0, 20, 40):
        answers = [
            {
                "prompt": f"{n} + 1?",
                "response": f"at {step}",
                "reward": float(n < 5 + step // 10),
                "status": "completed",
            }
            | {
                "metadata": {"slime": {"dataset": "held", "source": f"rows.jsonl:{n}"}},
                "label": str(n + 1),
                "response_length": 3,
            }
            for n in range(10)
        ]
        text = "".join(json.dumps(answer) + "\n" for answer in answers)
        (folder / "eval" / f"rollout_{step - 1:07d}.jsonl").write_text(text + '{"half')
    run = read(folder)
    series = run.series["eval/held/reward"]
    assert (series.low[-1], series.high[-1]) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert series.low[1] is None, "no answers are there of that evaluation"
    assert run.scores[0].n == 10
    early, *_, late = (row for row in run.samples.rows if row.label == "6")
    assert (early.step, early.pieces, early.reward) == (0, ["5 + 1?", "at 0"], 0.0)
    assert (late.step, late.pieces, late.reward) == (40, ["5 + 1?", "at 40"], 1.0)
    assert (early.dataset, early.why, early.prompt) == ("held", ["same_prompt"], late.prompt)


def test_intervals_are_those_of_slime_eval():
    answers = {"a": [1.0], "b": [2.0, 4.0], "c": [3.0]}
    found, score = interval(answers), score_of(answers)
    assert (found.n, found.mean, (found.low, found.high)) == (4, score.value, score.interval)
    assert interval({"a": [2.5]}).low is None


def test_a_long_curve_is_thinned_and_loses_neither_ends_nor_extremes():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, None if step == 77 else 500.0 if step == 60_000 else step % 10)
    series = curve.series()
    assert MOST / 2 <= len(series.x) <= MOST
    assert (series.points, series.x[-1], curve.not_finite) == (100_000, 99_999, 77)
    assert max(value for value in series.high if value is not None) == 500.0
    assert curve.highest is not None
    assert (curve.highest.value, curve.highest.step) == (500.0, 60_000)
    assert curve.recent() == pytest.approx(4.5, abs=0.05)
    curve.cut(50_000)
    assert curve.highest.value == 9.0
    assert curve.steps[-1] < 50_000
