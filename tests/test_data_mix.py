"""Several data sets mixed by weight: shares, epochs of every set, resume, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.cli import main
from slime_core.data import GlobalDataSource
from slime_core.data.mixture import Mixture
from slime_core.errors import ArgumentError, CheckpointError, DataError
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample


@pytest.fixture(scope="session")
def arguments(default_arguments: Any) -> Any:
    """`arguments(specs, weights, **changes)`"""

    def make(specs: list[Path | str], weights: list[float] | None, **changes: Any) -> Any:
        return default_arguments(*specs, prompt_data_weights=weights, **changes)

    return make


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lettered(folder: Path, **counts: int) -> list[Path]:
    """`lettered(p, a=3)`: a.jsonl with the prompts "a0" … "a2"."""
    return [
        write(folder / f"{name}.jsonl", [{"input": f"{name}{n}"} for n in range(count)])
        for name, count in counts.items()
    ]


def texts(groups: list[list[Sample]]) -> list[str]:
    return [str(group[0].prompt) for group in groups]


WEIGHTS = st.lists(
    st.one_of(st.integers(1, 9), st.floats(0.001, 100), st.sampled_from([0.1, 0.3, 1 / 3])), min_size=2, max_size=6
)


@settings(max_examples=150)
@given(weights=WEIGHTS, turns=st.integers(1, 300))
def test_every_share_keeps_the_best_possible_distance_to_its_weight_after_any_number_of_prompts(
    weights: list[float], turns: int
) -> None:
    mixture = Mixture(weights)
    exact = [Fraction(str(w)) for w in weights]
    bound = 1 - Fraction(1, 2 * len(weights) - 2)
    for turn in range(1, turns + 1):
        before = list(mixture.chosen)
        number = mixture.next()
        assert mixture.chosen == [c + (i == number) for i, c in enumerate(before)]
        assert all(abs(c - turn * w / sum(exact)) <= bound for c, w in zip(mixture.chosen, exact, strict=True))


def test_a_batch_holds_exactly_the_shares_where_they_are_whole_numbers(arguments: Any, tmp_path: Path) -> None:
    source = GlobalDataSource(arguments(lettered(tmp_path, a=50, b=50, c=50), [0.7, 0.2, 0.1]))
    for _ in range(12):
        assert Counter(text[0] for text in texts(source.get_samples(10))) == {"a": 7, "b": 2, "c": 1}


def test_every_set_has_epochs_of_its_own_newly_shuffled_and_counted(arguments: Any, tmp_path: Path) -> None:
    source = GlobalDataSource(arguments(lettered(tmp_path, a=5, b=30), [1, 1], rollout_shuffle=True))
    taken = texts(source.get_samples(60))
    small = [text for text in taken if text[0] == "a"]
    epochs = [small[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(epoch) == ["a0", "a1", "a2", "a3", "a4"] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert sorted(text for text in taken if text[0] == "b") == sorted(f"b{n}" for n in range(30))
    assert source.metrics() == {"a/prompts": 30, "a/epoch": 5, "b/prompts": 30, "b/epoch": 0}
    source.get_samples(1)
    assert source.metrics()["a/epoch"] == 6


def test_sets_of_one_length_are_shuffled_differently(arguments: Any, tmp_path: Path) -> None:
    taken = texts(
        GlobalDataSource(arguments(lettered(tmp_path, a=20, b=20), [1, 1], rollout_shuffle=True)).get_samples(40)
    )
    orders = [[text[1:] for text in taken if text[0] == name] for name in "ab"]
    assert orders[0] != orders[1]


def test_the_length_is_all_rows_whatever_the_weights_and_a_sample_names_its_set(arguments: Any, tmp_path: Path) -> None:
    a, b = lettered(tmp_path, a=3, b=9)
    source = GlobalDataSource(arguments([a, f"{b}@[2:6]"], [9, 1]))
    assert len(source) == 7
    groups = source.get_samples(10)
    assert Counter(g[0].dataset for g in groups) == {"a": 9, "b": 1}
    assert [g[0].prompt for g in groups if g[0].dataset == "b"] == ["b2"]
    assert set(source.fingerprint()) == {str(a), str(b)}


def test_sets_of_one_file_name_are_told_apart_by_their_paths(arguments: Any, tmp_path: Path) -> None:
    paths = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        paths += lettered(tmp_path / folder, rows=2)
    source = GlobalDataSource(arguments(paths, [1, 1]))
    assert [g[0].dataset for g in source.get_samples(2)] == [str(path) for path in paths]


def test_without_weights_all_files_are_one_set_as_ever(arguments: Any, tmp_path: Path) -> None:
    paths = lettered(tmp_path, a=2, b=2)
    source = GlobalDataSource(arguments(paths, None))
    groups = source.get_samples(5)
    assert texts(groups) == ["a0", "a1", "b0", "b1", "a0"]
    assert "dataset" not in groups[0][0].metadata
    assert source.metrics() == {}


@settings(max_examples=25)
@given(
    weights=st.lists(st.floats(0.05, 5), min_size=3, max_size=3),
    before=st.lists(st.integers(1, 9), max_size=4),
    after=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    shuffle=st.booleans(),
)
def test_a_resumed_mixture_goes_on_like_the_unbroken_one(
    arguments: Any,
    tmp_path_factory: pytest.TempPathFactory,
    weights: list[float],
    before: list[int],
    after: list[int],
    shuffle: bool,
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    bad = write(folder / "c.jsonl", [{"input": "c0"}, "broken", {"input": "c2"}])
    args = arguments([*lettered(folder, a=3, b=8), bad], weights, rollout_shuffle=shuffle, malformed_row="skip")
    unbroken = GlobalDataSource(args)
    for count in before:
        unbroken.add_samples(unbroken.get_samples(count)[:1])
    resumed = GlobalDataSource(args)
    resumed.get_samples(5)
    resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
    for count in after:
        one, other = (source.get_samples(count) for source in (unbroken, resumed))
        assert [s.to_dict() for g in one for s in g] == [s.to_dict() for g in other for s in g]
    assert resumed.state_dict() == unbroken.state_dict()
    assert resumed.metrics() == unbroken.metrics()


def test_with_other_weights_a_resumed_run_counts_shares_anew_instead_of_catching_up(
    arguments: Any, tmp_path: Path
) -> None:
    paths = lettered(tmp_path, a=50, b=50)
    first = GlobalDataSource(arguments(paths, [9, 1]))
    first.get_samples(20)
    second = GlobalDataSource(arguments(paths, [1, 1]))
    second.load_state_dict(first.state_dict())
    assert Counter(text[0] for text in texts(second.get_samples(10))) == {"a": 5, "b": 5}
    assert first.state_dict()["sets"][0]["offset"] == 18


def test_a_malformed_row_is_replaced_by_one_of_its_own_set(arguments: Any, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", ["broken", {"input": "good"}, {"other": 1}])
    source = GlobalDataSource(arguments([*lettered(tmp_path, a=9), bad], [1, 1], malformed_row="skip"))
    assert Counter(text[0] for text in texts(source.get_samples(8))) == {"a": 4, "g": 4}
    assert source.counts["malformed_rows"] > 0
    with pytest.raises(DataError, match=r"bad\.jsonl:1: .*--malformed-row skip"):
        GlobalDataSource(arguments([*lettered(tmp_path, a=9), bad], [1, 1])).get_samples(8)


def test_a_set_without_one_good_row_is_named(arguments: Any, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", ["broken"])
    source = GlobalDataSource(arguments([*lettered(tmp_path, a=9), bad], [1, 1], malformed_row="skip"))
    with pytest.raises(DataError, match=r"None of the 1 rows of .*bad\.jsonl can be used"):
        source.get_samples(4)


def test_weights_that_do_not_fit_are_refused(arguments: Any, tmp_path: Path) -> None:
    paths = lettered(tmp_path, a=2, b=2)
    with pytest.raises(
        ArgumentError, match=r"has 1 numbers for 2 data sets \(.*a\.jsonl, .*b\.jsonl\); give one for each"
    ):
        GlobalDataSource(arguments(paths, [1]))
    with pytest.raises(ArgumentError, match="holds 0; weights are above 0"):
        GlobalDataSource(arguments(paths, [1, 0]))


def test_a_checkpoint_of_another_number_of_sets_is_refused(arguments: Any, tmp_path: Path) -> None:
    paths = lettered(tmp_path, a=2, b=2)
    with pytest.raises(CheckpointError, match="had 2 data sets, this one has 1"):
        GlobalDataSource(arguments(paths, None)).load_state_dict(
            GlobalDataSource(arguments(paths, [1, 1])).state_dict()
        )


@pytest.fixture
def mixed_run(tiny_model: Path, chat_rows: Path, tmp_path: Path) -> list[str]:
    """The flags of a run that mixes twenty conversations with eight rows of token ids, 3 : 1."""
    rows = [json.loads(line)["messages"] for line in chat_rows.read_text().splitlines()]
    chats = write(tmp_path / "chats.jsonl", [{"input": messages} for messages in rows])
    tokens = [{"input": [5 + n, 6, 7 + n, 8, 9], "labels": [-100, -100, 7 + n, 8, 9]} for n in range(8)]
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chats), str(write(tmp_path / "ids.jsonl", tokens))),
        *("--prompt-data-weights", "3", "1", "--rollout-shuffle", "--rollout-function-path", "sft"),
        *("--loss-type", "sft_loss", "--calculate-per-token-loss", "--rollout-batch-size", "4", "--lr", "1e-3"),
        "--disable-compute-advantages-and-returns",
        *("--save-debug-rollout-data", str(tmp_path / "{rollout_id}.jsonl")),
    ]


def numbers(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_run_mixes_conversations_with_token_ids_and_resumes_bit_for_bit(mixed_run: list[str], tmp_path: Path) -> None:
    words = [*mixed_run, "--num-epoch", "1", "--save-interval", "3"]
    assert main(["train", *words, "--save", str(tmp_path / "whole")]) == 0
    whole = numbers(tmp_path / "whole")
    assert len(whole) == 7  # 28 rows in all, 4 a rollout
    for n in range(7):
        lines = [json.loads(line) for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
        assert Counter(line["metadata"]["slime"]["dataset"] for line in lines[1:]) == {"chats": 3, "ids": 1}
        (ids,) = (line for line in lines[1:] if line["metadata"]["slime"]["dataset"] == "ids")
        assert (ids["tokens"][1], ids["tokens"][3:], ids["loss_mask"]) == (6, [8, 9], [1, 1, 1])
    assert {k.rpartition("/")[0].rpartition("/")[2]: v for k, v in whole[-1].items() if k.endswith("/prompts")} == {
        "chats": 21.0,
        "ids": 7.0,
    }
    assert all(math.isfinite(line["train/loss"]) for line in whole)

    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for later in ("iter_0000005", "iter_0000006"):
        shutil.rmtree(parts / later)
    assert main(["train", *words, "--save", str(parts), "--load", str(parts)]) == 0
    assert numbers(parts) == whole
    states = [
        json.loads((folder / "iter_0000006" / "state.json").read_text()) for folder in (parts, tmp_path / "whole")
    ]
    assert states[0]["data_source"] == states[1]["data_source"]
