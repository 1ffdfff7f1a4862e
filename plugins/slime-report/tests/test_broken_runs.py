"""Real runs that are broken on purpose: the report names the fault."""

from __future__ import annotations

from slime_report.reading.run import RunReader


def alarms(run):
    return {alarm.id: alarm for alarm in RunReader(run).read(1_000_000).alarms}


def test_nan(small_rl, tmp_path, capsys):
    run = small_rl(
        tmp_path / "run", "--num-rollout", "4", "--lr", "1e30", "--optimizer", "sgd", "--clip-grad", "0", status=1
    )
    report = RunReader(run).read(1_000_000)
    assert report.state == "failed"
    assert report.alarms[0].id == "not_finite"
    assert report.alarms[0].step == report.done + 1 <= 4
    assert report.verdict.startswith("Ended by NaN after")


def test_all_groups_equal_and_all_answers_cut_off(small_rl, tmp_path):
    """A random model does not end its answers, and the reward says the same of all."""
    run = small_rl(tmp_path / "run", "--num-rollout", "3", "--custom-rm-path", "report_hooks.same_for_all")
    found = alarms(run)
    assert list(found) == ["zero_spread", "truncated"]
    assert found["zero_spread"].value == found["truncated"].value == 1.0
    assert found["zero_spread"].step == found["truncated"].step == 1
    assert found["zero_spread"].sample
    assert found["truncated"].sample


def test_the_reward_rises_and_the_evaluation_does_not(small_rl, chat_rows, tmp_path):
    run = small_rl(
        tmp_path / "run",
        *(
            "--custom-rm-path",
            "report_hooks.easy_in_training",
            "--num-rollout",
            "16",
            "--lr",
            "1e-2",
            "--rollout-top-k",
            "8",
        ),
        *("--eval-prompt-data", "held", str(chat_rows), "--eval-interval", "12", "--rollout-max-response-len", "8"),
    )
    alarm = alarms(run)["reward_evaluation"]
    assert "eval/held/reward went from" in alarm.text
    assert alarm.chart == "evaluation"
    assert alarm.sample
