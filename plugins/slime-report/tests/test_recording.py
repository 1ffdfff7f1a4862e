"""What a run records while it goes on: the right samples with the right numbers, within its limit, and nothing that changes training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample, Status
from slime_core.training.token_numbers import TokenNumbers
from slime_report.recording.bounded_log import BoundedLog, read_rows
from slime_report.recording.choice import Candidate, choose
from slime_report.recording.recorder import Recorder, begin
from slime_report.recording.rows import Kept, TokenTexts, short


def recorded(run: Path, rank: int = 0) -> list[dict]:
    return list(read_rows(run / "record" / f"samples-rank{rank}.jsonl"))


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "record" / "events.jsonl").read_text().splitlines()]


def numbers(run: Path) -> list[dict]:
    """What a run has logged, without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name != "time" and not name.startswith("perf/")}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def test_every_rollout_has_its_best_worst_and_most_different_samples_with_their_numbers(rl_run):
    rows = recorded(rl_run)
    assert sorted({row["rollout"] for row in rows}) == [0, 1, 2, 3, 4]
    for rollout in range(5):
        own = [row for row in rows if row["rollout"] == rollout]
        assert len(own) == 6
        why = {reason: row for row in own for reason in row["why"]}
        assert why["best"]["reward"] > why["worst"]["reward"]
        assert {"best", "worst", "largest_difference", "random"} <= why.keys()
        for row in own:
            assert len(row["pieces"]) == row["prompt_tokens"] + row["length"]
            assert row["mask"] == "1" * row["length"]
            if "log_probs" in row:  # a group without spread is not computed
                assert len(row["log_probs"]) == len(row["advantages"]) == len(row["entropy"]) == row["length"]
                assert all(value < 0 for value in row["log_probs"])
                assert all(0 <= abs(value) < 1e-4 for value in row["difference"]), (
                    "engine and trainer have the same weights"
                )
            assert "What is" in "".join(row["pieces"])
    assert any("log_probs" in row for row in rows)
    groups = list(read_rows(rl_run / "record" / "groups.jsonl"))
    lines = [line for line in read_metrics(rl_run / "metrics.jsonl") if "rollout/raw_reward" in line]
    for row, line in zip(groups, lines, strict=True):
        rewards = [reward for _, own in row["groups"] for reward in own]
        assert len(rewards) == 12
        assert sum(rewards) / 12 == pytest.approx(line["rollout/raw_reward"], abs=1e-4)
        assert sum(row["statuses"].values()) == 12


def test_a_run_that_goes_on_continues_its_record_and_says_where(rl_run):
    found = [(event["event"], event.get("resume_after"), event.get("error")) for event in events(rl_run)]
    assert found == [("start", None, None), ("end", None, None), ("start", 2, None), ("end", None, None)]
    assert events(rl_run)[0]["versions"]["torch"]


def test_recording_changes_no_number(rl_run, small_rl, chat_rows, tmp_path):
    more = ("--eval-prompt-data", "few", f"{chat_rows}@[0:4]", "--eval-interval", "2", "--num-rollout", "5")
    run = small_rl(tmp_path / "run", *more, "--record-samples", "0")
    assert numbers(run) == numbers(rl_run)
    assert not list((run / "record").glob("samples*"))
    assert [event["event"] for event in events(run)] == ["start", "end"]


def test_what_comes_after_the_checkpoint_is_recorded_anew_and_a_half_line_is_dropped(tmp_path):
    folder = tmp_path / "record"
    names = ("samples-rank0.jsonl", "samples-rank3.jsonl", "groups.jsonl")  # of ranks that may be gone now
    for name in names:
        log = BoundedLog(folder / name, limit=10_000)
        for rollout in range(4):
            log.add([{"rollout": rollout, "n": rollout}])
        with (folder / name).open("a") as file:
            file.write('{"rollout":4,"n":')
    begin(tmp_path, first=2)
    BoundedLog(folder / names[0], limit=10_000).add([{"rollout": 2, "n": 20}])
    for name, anew in zip(names, [[(2, 20)], [], []], strict=True):
        assert [(row["rollout"], row["n"]) for row in read_rows(folder / name)] == [(0, 0), (1, 1), *anew]


def test_a_log_keeps_within_its_limit_and_stays_spread_over_the_run(tmp_path):
    limit, path = 4_000, tmp_path / "log.jsonl"
    log = BoundedLog(path, limit)
    for rollout in range(3_000):
        if log.wants(rollout):
            log.add([{"rollout": rollout, "text": "x" * 50}])
        assert path.stat().st_size <= limit
    kept = [row["rollout"] for row in read_rows(path) if "rollout" in row]
    assert kept == list(range(0, 3_000, log.stride)), "evenly, from the first on"
    assert 20 <= len(kept) <= 60
    assert BoundedLog(path, limit).stride == log.stride, "a resumed run goes on as it was"


def candidates(rewards: list[float | None], **changes: list) -> list[Candidate]:
    values = {"loss": [None] * len(rewards), "difference": [None] * len(rewards), **changes}
    return [
        Candidate(place, place // 2, reward, values["loss"][place], values["difference"][place], f"p{place // 2}")
        for place, reward in enumerate(rewards)
    ]


def test_samples_are_chosen_for_what_a_person_would_ask():
    of_rewards = choose(candidates([1, 1, 0, 1, 0, 0], difference=[0.1, 0.2, 0.9, 0, 0, 0]), 4, frozenset({"p2"}), 0)
    assert of_rewards[3] == ["best"], "of the best, the one whose group has answers of both kinds"
    assert of_rewards[2] == ["worst", "largest_difference"]
    assert of_rewards[4] == ["same_prompt"]
    assert list(of_rewards.values())[3:] == [["random"]]
    of_losses = choose(candidates([None] * 4, loss=[2.0, 1.0, 3.0, None]), 3, frozenset(), 0)
    assert of_losses[1] == ["best"]
    assert of_losses[2] == ["worst"]
    assert choose(candidates([1, 1]), 5, frozenset(), 0).keys() == {0, 1}, "no more than there are"
    equal = choose(candidates([1, 1, 1, 1]), 2, frozenset(), 7)
    assert all(why == ["random"] for why in equal.values())
    assert equal == choose(candidates([1, 1, 1, 1]), 2, frozenset(), 7), "every rank draws the same"


@pytest.mark.parametrize(("prompt", "response"), [(0, 1), (10, 10), (500, 10), (10, 500), (500, 500), (3, 97)])
def test_of_a_long_sample_the_ends_are_kept(prompt, response):
    kept = Kept.of(prompt, response, 100)
    tokens = len(kept.prompt) + len(kept.head) + len(kept.tail)
    assert tokens == 100 if prompt + response >= 100 else tokens == prompt + response
    assert kept.prompt.stop == prompt
    assert kept.of_response(range(response))[-1] == response - 1
    assert len(kept.prompt) >= min(prompt, 25)


class Letters:
    """A tokenizer of bytes with SentencePiece's mark in front of words."""

    def decode(self, ids, **options):
        return bytes(i for i in ids if i < 256).decode(errors="replace") or "word"

    def convert_ids_to_tokens(self, ids):
        return ["▁word" if i >= 256 else "" for i in ids]


def test_the_text_of_tokens_is_that_of_the_whole():
    text = "a é 漢 👍 z"
    pieces = TokenTexts(Letters()).of([*text.encode(), 300])
    assert "".join(pieces) == text + " word"
    assert pieces[0] == "a"
    assert TokenTexts(None).of([7, 300]) == ["<7>", "<300>"], "without a tokenizer"
    assert TokenTexts(Letters()).of(b"a\xff") == ["a", "\ufffd"], "what is no character is shown as such"


def test_numbers_are_short_and_finite():
    assert [short(x) for x in (1.0, -0.123456, 1e-9, None, float("nan"), float("inf"))] == [
        1,
        -0.1235,
        1e-09,
        None,
        None,
        None,
    ]


def long_rollout(tokens: int) -> TokenNumbers:
    samples = [
        Sample(n // 2, n, tokens=[65] * 2 * tokens, response_length=tokens, reward=n % 2, status=Status.COMPLETED)
        for n in range(4)
    ]
    return TokenNumbers(
        samples, {"advantages": [[0.123456789] * tokens] * 4, "rollout_log_probs": [[-1.23456789] * tokens] * 4}
    )


def test_the_bytes_of_a_record_are_bounded_however_long_samples_and_runs_are(tmp_path, monkeypatch):
    monkeypatch.setattr("slime_report.recording.recorder.load_tokenizer", lambda folder: Letters())
    args = SimpleNamespace(
        record_samples=4, record_limit=2**17, reward_key=None, use_rollout_logprobs=False, hf_checkpoint=""
    )
    recorder = Recorder(args, tmp_path, rank=0)
    for rollout in range(40):
        recorder.record(rollout, long_rollout(20_000 if rollout % 2 else 10))
    rows = list(read_rows(tmp_path / "samples-rank0.jsonl"))
    size = (tmp_path / "samples-rank0.jsonl").stat().st_size
    assert size <= 2**17
    assert len({row["rollout"] for row in rows if "rollout" in row}) >= 4
    assert (tmp_path / "groups.jsonl").stat().st_size <= 2**15


def test_rewards_of_fine_tuning_count_for_nothing(tmp_path, monkeypatch):
    """A run that computes advantages although each prompt has one answer, whose reward is 0."""
    monkeypatch.setattr("slime_report.recording.recorder.load_tokenizer", lambda folder: Letters())
    args = SimpleNamespace(
        record_samples=4, record_limit=2**17, reward_key=None, use_rollout_logprobs=False, hf_checkpoint=""
    )
    samples = [Sample(n, n, tokens=[65, 66], response_length=1, reward=0.0) for n in range(4)]
    columns = {"advantages": [[0.0]] * 4, "old_log_probs": [[-1.0], [-3.0], [-2.0], [-4.0]]}
    Recorder(args, tmp_path, rank=0).record(0, TokenNumbers(samples, columns))
    assert not list(read_rows(tmp_path / "groups.jsonl"))
    why = {row["place"]: row["why"] for row in read_rows(tmp_path / "samples-rank0.jsonl")}
    assert why[0] == ["best"], "the lowest loss"
    assert why[3] == ["worst"]
