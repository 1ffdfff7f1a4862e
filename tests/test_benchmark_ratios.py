"""What `benchmarks.compare` takes for a fall, and that the page of results is that of the files."""

import json
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.compare import BenchmarkFailed, Verdict, compared
from benchmarks.page import PAGE, page


@pytest.mark.parametrize(
    ("kept", "found", "fell"),
    [
        ([2.0, 2.0, 2.0], [1.81], False),
        ([2.0, 2.0, 2.0], [1.79], True),
        ([1.5, 2.0, 2.5], [1.05], False),  # the kept repeats differ by half
        ([1.5, 2.0, 2.5], [0.95], True),
        ([0.5, 1.0, 2.5], [0.4], True),  # noise explains no more than a half
        ([2.0], [3.0], False),
        ([2.0], [], True),
        ([], [0.1], False),
    ],
)
def test_a_ratio_falls_where_noise_does_not_explain_it(kept, found, fell):
    assert Verdict("sft-cpu", "speed", kept, found).fell is fell


def test_ratios_that_are_gone_or_new_are_told():
    verdicts = compared("sft-cpu", {"gone": [1.0]}, {"new": [1.0]})
    assert [(verdict.name, verdict.fell) for verdict in verdicts] == [("gone", True), ("new", False)]


def run(monkeypatch: pytest.MonkeyPatch, kept: Path, found: dict[str, list[float]], *words: str) -> int:
    """The status of `benchmarks.compare` where the benchmark `start` finds these speeds one after the other, and `sft` fails."""

    def measured(name: str, under_load: bool) -> dict:
        if name not in found:
            raise BenchmarkFailed("others use the machine")
        speed = [found[name].pop(0)]
        return {"machine": {"processor": "one"}, "others": [0.0], "ratios": {"speed": speed}}

    monkeypatch.setattr(compare, "KEPT", kept)
    monkeypatch.setattr(compare, "measured", measured)
    monkeypatch.setattr("sys.argv", ["compare", "--only", *words])
    try:
        compare.main()
    except SystemExit as ended:
        return int(str(ended.code))
    return 0


def test_ratios_are_kept_as_they_are_found_and_what_fell_is_measured_twice(monkeypatch, tmp_path, capsys):
    kept = tmp_path / "short.json"
    assert run(monkeypatch, kept, {"start": [2.0]}, "start") == 2  # there is nothing to compare with
    assert run(monkeypatch, kept, {"start": [2.0]}, "start", "sft-cpu", "--keep") == 2
    assert "NOT COMPARED: sft-cpu" in capsys.readouterr().out
    assert json.loads(kept.read_text())["benchmarks"]["start"]["ratios"] == {"speed": [2.0]}
    assert run(monkeypatch, kept, {"start": [1.9]}, "start") == 0
    assert run(monkeypatch, kept, {"start": [1.0, 2.8]}, "start") == 0  # chance
    assert run(monkeypatch, kept, {"start": [1.0, 1.2]}, "start") == 1
    assert "FELL: start, speed: 1.10, was 2.00, must reach 1.80" in capsys.readouterr().out
    assert json.loads(kept.read_text())["benchmarks"]["start"]["ratios"] == {"speed": [2.0]}


def test_the_page_of_results_is_that_of_the_files():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m benchmarks.page"
