"""`slime report`: the page and its twin, comparison, watching, TensorBoard, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
from written_runs import healthy, keep, note, sample, write_run

from slime_core.cli import main


def test_the_page_and_its_twin_are_written_and_the_terminal_says_the_verdict(tmp_path, capsys):
    run = write_run(tmp_path / "run", lambda step: {**healthy(step), "rollout/truncated_ratio": 0.5})
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "run: Finished after 40 of 40 rollouts" in said
    assert "  truncated: 50% of the responses" in said
    assert f"report: {run}/report.html" in said
    twin = json.loads((run / "report.json").read_text())
    assert (twin["schema"], len(twin["runs"]), twin["differences"]) == (1, 1, [])
    assert twin["runs"][0]["alarms"][0]["id"] == "truncated"
    assert "Finished after 40" in (run / "report.html").read_text()
    assert main(["report", str(run), "--json", "--out", str(tmp_path / "x" / "y.html")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["runs"] == twin["runs"] == json.loads((tmp_path / "x" / "y.json").read_text())["runs"]


def test_runs_are_compared_with_the_options_in_which_they_differ(tmp_path, capsys):
    one = write_run(tmp_path / "one")
    other = write_run(tmp_path / "other", arguments={"lr": 2e-6, "prompt_data": ["a", "b"]})
    assert main(["report", str(one), str(other)]) == 0
    twin = json.loads((one / "comparison.json").read_text())
    assert [run["name"] for run in twin["runs"]] == ["one", "other"]
    assert twin["differences"] == [
        {"option": "--lr", "values": ["1e-06", "2e-06"]},
        {"option": "--prompt-data", "values": ["(not there)", "a b"]},
    ]


def test_watching_ends_with_the_run(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", rollouts=5, ended=False)
    states = iter([True, True, False])
    monkeypatch.setattr("slime_report.reading.folder.is_claimed", lambda folder: next(states))
    monkeypatch.setattr("time.sleep", lambda seconds: note(run, {"event": "end", "at": 1, "error": None}))
    (run / "record" / "signs").mkdir()
    (run / "record" / "signs" / "before_train_step").write_text("5")
    assert main(["report", str(run), "--watch", "0.1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run: ")]
    assert [line.split()[1] for line in lines] == ["Running", "Finished"]


def test_past_metrics_go_to_tensorboard(tmp_path, capsys):
    run = write_run(tmp_path / "run", lambda step: {**healthy(step), "train/loss": None if step == 1 else step}, 3)
    assert main(["report", str(run), "--to", "tensorboard"]) == 0
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (run / "tensorboard").iterdir()
    found = [
        (
            event.step,
            value.tag,
            value.tensor.float_val[0] if value.tensor.float_val else value.simple_value,
            event.wall_time,
        )
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]
    losses = [(step, value) for step, tag, value, _ in found if tag == "train/loss"]
    assert [step for step, _ in losses] == [0, 1, 2]
    assert losses[2][1] == 2.0
    assert math.isnan(losses[1][1])
    assert [(s, pytest.approx(0.3)) for s, tag, value, _ in found if tag == "eval/held/reward"] == [(-1, 0.3)]
    assert {time for step, _, _, time in found if step == 0} == {1_700_000_012.0}
    assert main(["report", str(run), "--to", "tensorboard"]) == 2
    assert "holds event files already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "does not exist; expected a run directory"),
        (["RUN", "--out", "page.txt"], "ends in .html"),
        (["RUN", "--to", "tensorboard", "--watch"], "leave out --watch"),
        (["RUN", "--out", "/proc/no/page.html"], "could not be written"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, capsys, words, said):
    run = write_run(tmp_path / "run", rollouts=2)
    assert main(["report", *(str(run) if word == "RUN" else word for word in words)]) != 0
    assert said in capsys.readouterr().err


def test_the_report_of_a_long_run_keeps_within_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_report.command.BYTES", 300_000)
    run = write_run(tmp_path / "run", rollouts=1, evaluate=None)
    line = json.dumps({"time": 1.0, **healthy(3)})[1:]
    with (run / "metrics.jsonl").open("w") as file:
        file.writelines(f'{{"rollout_id": {step}, {line}\n' for step in range(3_000))
    numbers = dict.fromkeys(("log_probs", "difference", "advantages", "entropy"), [0.123] * 100)
    long = {"pieces": ["?"] + [" word"] * 100, "prompt_tokens": 1, "mask": "1" * 100, "length": 100, **numbers}
    keep(run, [sample(n, 0, **long) for n in range(0, 3_000, 10)])
    assert main(["report", str(run)]) == 0
    found = json.loads((run / "report.json").read_text())["runs"][0]
    assert found["done"] == 3_000
    assert 500 <= len(found["series"]["train/loss"]["x"]) <= 1_000
    assert len(json.dumps(found["samples"], separators=(",", ":"))) < 300_000
    assert found["samples"]["kept"] > 30
    assert found["samples"]["rows"][-1]["step"] == 2_991
