"""Files of samples: everything comes back as it was, old ones are read, and damaged or hostile ones are errors."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from slime_core.cli import main
from slime_core.data.sample_files import VERSION, PackedSamples, SampleFile
from slime_core.data.sample_lines import open_samples
from slime_core.errors import CheckpointError, DataError, SampleError
from slime_core.plain import MAX_DEPTH
from slime_core.rollout.debug_data import read_debug_data, write_debug_data
from slime_core.run.checkpoints import load_state
from slime_core.run.saving import Saving
from slime_core.run.state_samples import SAMPLES, without_samples
from slime_core.sample import RolloutOutput, Sample, Status

PICTURES = [b"\x89PNG one", b"\x89PNG two"]


def some_sample(chance: random.Random, number: int) -> Sample:
    """A sample of which every field is of any type that it may have."""
    n = chance.randint(1, 90)
    r = chance.randint(0, n)
    number_lists = {"long": [0.1] * 80, "mixed": [1, 2.0] * 40, "ids": list(range(70)), "large": [2**70] * 64}
    sample = Sample(
        group_index=chance.choice([None, number // 4]),
        index=number,
        rollout_id=chance.choice([None, 7, -1]),
        prompt=chance.choice(["Ärger\x1b[31m", [{"role": "user", "content": "1 + 1?"}]]),
        images=PICTURES[: number // 4 % 3],
        tokens=[chance.randrange(150_000) for _ in range(n)] if number % 9 else [2**40] * n,
        response=chance.choice(["", "zw\ud800i\n\n"]),
        response_length=r,
        label=chance.choice([None, "2", 2, {"a": [1]}, ["$ints"]]),
        reward=chance.choice([None, 1, 0.5, float("inf"), {"a": 1.0, "b": 1}]),
        loss_mask=chance.choice([None, [chance.randint(0, 1) for _ in range(r)]]),
        rollout_log_probs=chance.choice([None, [], [-0.5] * r, [-chance.random() for _ in range(r)]]),
        weight_versions=chance.choice(
            [[], [3] * r, ["3"] * r, [chance.choice([1, "1", 2]) for _ in range(r)], list(range(300))]
        ),
        status=chance.choice(list(Status)),
        metadata=chance.choice([{}, number_lists, {"$ints": 0}, {"a": {"$is": {"$floats": [1.5] * 64}}}]),
        remove_sample=chance.random() < 0.5,
    )
    if number % 3 == 0:
        sample.teacher_log_probs = [-0.25] * n  # type: ignore[attr-defined]  # as hooks set attributes
    return sample


def samples(count: int = 60) -> list[Sample]:
    chance = random.Random(5)
    return [some_sample(chance, number) for number in range(count)]


def as_json(found: list[Sample]) -> list[str]:
    """In which 1, 1.0 and True differ."""
    return [json.dumps(sample.to_dict(), sort_keys=True) for sample in found]


def read(path: Path) -> list[Sample]:
    return [stored.sample for stored in SampleFile(path).read()]


def test_every_sample_comes_back_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_core.data.sample_files._BYTES_IN_BATCH", 5000)  # several batches
    before = samples()
    rows = {"advantages": [[0.1 + i] * sample.response_length for i, sample in enumerate(before)]}
    PackedSamples(before, list(range(60)), {"metrics": {"a": 0.1}}, rows).write(tmp_path / "dump.pt")
    file = SampleFile(tmp_path / "dump.pt")
    found = list(file.read())
    assert as_json([stored.sample for stored in found]) == as_json(before)
    assert [(stored.group, stored.rows["advantages"].tolist()) for stored in found] == list(
        zip(range(60), rows["advantages"], strict=True)
    )
    assert file.head == {"metrics": {"a": 0.1}}
    assert as_json([stored.sample for stored in file.read(first=37)]) == as_json(before[37:])
    assert [path.name for path in tmp_path.iterdir()] == ["dump.pt"]


def test_the_images_of_a_group_are_stored_and_held_once(tmp_path: Path) -> None:
    picture = bytes(100_000)
    PackedSamples([Sample(tokens=[1], images=[picture]) for _ in range(16)]).write(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 150_000
    found = read(tmp_path / "a")
    assert {id(sample.images[0]) for sample in found} == {id(found[0].images[0])}
    assert found[0].images == [picture]


@pytest.mark.parametrize(
    "large",
    [
        lambda n: {"images": [bytes([n]) * 600]},
        lambda n: {"prompt": "a" * 600},
        lambda n: {"metadata": {"a": "a" * 600}},
        lambda n: {"further_one": "a" * 600},
        lambda n: {"tokens": [n] * 150},
    ],
)
def test_no_batch_holds_more_than_arrow_has_offsets_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Callable[[int], dict[str, Any]]
) -> None:
    monkeypatch.setattr("slime_core.data.sample_files._BYTES_IN_BATCH", 1000)
    before = [Sample(index=n).changed(**large(n)) for n in range(8)]
    PackedSamples(before).write(tmp_path / "a")
    assert pa.ipc.open_file(tmp_path / "a").num_record_batches == 4
    assert as_json(read(tmp_path / "a")) == as_json(before)


def nested(levels: int) -> Any:
    return {"a": nested(levels - 1)} if levels else 1


def test_whatever_a_sample_may_hold_is_read_again(tmp_path: Path) -> None:
    deep = []
    for levels in range(MAX_DEPTH - 3, MAX_DEPTH + 5):
        sample = Sample(metadata=nested(levels), label=nested(levels)).changed(further_one=nested(levels))
        with suppress(SampleError):
            sample.make_plain()
            deep.append(sample)
    assert len(deep) in range(3, 8)  # there is a limit, and some are beyond it
    for name in ("a", "a.jsonl"):
        write_debug_data(tmp_path / name, RolloutOutput([deep]))
        assert as_json(read_debug_data(tmp_path / name).samples) == as_json(deep)
    plain, packed = without_samples({"data_source": {"buffer": [deep]}})
    with Saving(tmp_path, 3) as saving:
        checkpoint = saving.finish(plain, samples=packed)
    assert as_json(load_state(checkpoint)["data_source"]["buffer"][0]) == as_json(deep)


def test_arrays_that_a_hook_left_in_a_buffer_are_stored_as_lists(tmp_path: Path) -> None:
    left = Sample(response_length=2, metadata={"score": np.float32(0.5), "seen": np.arange(70)})
    left.tokens, left.loss_mask, left.reward = np.array([1, 2]), np.array([0, 1]), np.float32(1)  # type: ignore[assignment]  # as hooks do
    PackedSamples([left.changed(further_one=(1, np.int64(2)))]).write(tmp_path / "a")
    (found,) = read(tmp_path / "a")
    assert found.metadata == {"score": 0.5, "seen": list(range(70))}
    assert (found.tokens, found.loss_mask, found.reward) == ([1, 2], [0, 1], 1.0)
    assert found.further_attributes == {"further_one": [1, 2]}


def test_packed_samples_are_what_they_were_when_they_were_packed(tmp_path: Path) -> None:
    before = samples(8)
    expected = as_json(before)
    packed = PackedSamples(before).keep()
    for sample in before:
        sample.tokens[:], sample.metadata["later"], sample.response = [0], True, "later"
    packed.write(tmp_path / "a")
    assert as_json(read(tmp_path / "a")) == expected


def test_other_programs_read_the_columns(tmp_path: Path) -> None:
    PackedSamples([Sample(tokens=[5, 6], response_length=1, rollout_log_probs=[-0.1], reward=0.5)]).write(
        tmp_path / "a"
    )
    (row,) = pa.ipc.open_file(tmp_path / "a").read_all().to_pylist()
    assert (row["tokens"], row["rollout_log_probs"], row["reward"], row["status"]) == ([5, 6], [-0.1], 0.5, "pending")


@pytest.mark.parametrize("name", ["0.jsonl", "0.pt", "0", "0.arrow"])
def test_a_dump_has_the_name_that_was_given_and_its_content_says_what_it_is(tmp_path: Path, name: str) -> None:
    output = RolloutOutput([samples(4)[:2], samples(4)[2:]], {"rounds": 2.0})
    write_debug_data(tmp_path / name, output)
    assert (tmp_path / name).read_bytes().startswith(b'{"metrics"' if name == "0.jsonl" else b"ARROW1")
    (tmp_path / name).rename(tmp_path / "other.bin")
    found = read_debug_data(tmp_path / "other.bin")
    assert [as_json(group) for group in found.groups] == [as_json(group) for group in output.groups]
    assert found.metrics == output.metrics


def as_before(folder: Path) -> tuple[Path, Path]:
    """A dump and a checkpoint as they were before there were files of samples."""
    groups = [[sample.to_dict() for sample in samples(4)]]
    lines = [{"metrics": {"a": 1.0}}, *({"group": 0, **sample} for sample in groups[0])]
    (folder / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Saving(folder, 0) as saving:
        state = {"data_source": {"buffer": groups}, "prefetched": {"groups": groups, "seconds": 1.0}}
        return folder / "old.jsonl", saving.finish(json.loads(json.dumps(state)))


def test_what_older_versions_wrote_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump, checkpoint = as_before(tmp_path)
    assert as_json(read_debug_data(dump).samples) == as_json(samples(4))
    assert main(["samples", str(dump), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["samples", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" in the buffer · ") == shown.count(" waiting to be trained · ") == 4


def test_the_samples_of_a_checkpoint_stand_beside_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"data_source": {"buffer": [samples(4)], "mine": {"$sample": 3}, "n": [1]}, "prefetched": None}
    plain, packed = without_samples(state)
    with Saving(tmp_path, 3) as saving:
        checkpoint = saving.finish(plain, samples=packed)
    stored = load_state(checkpoint)
    assert as_json(stored["data_source"].pop("buffer")[0]) == as_json(state["data_source"].pop("buffer")[0])
    assert stored == state
    assert main(["samples", str(tmp_path), "--limit", "1"]) == 0
    assert "sample 0 in the buffer · index 0 · group 0" in capsys.readouterr().out
    (checkpoint / SAMPLES).write_bytes((checkpoint / SAMPLES).read_bytes()[:-400])
    with pytest.raises(CheckpointError, match=r"iter_0000003 is damaged: samples\.arrow"):
        load_state(checkpoint)


def test_a_state_without_samples_is_plain_json() -> None:
    state = {"a": [{"$sample": 0}], "b": {"c": 1}}
    assert without_samples(state) == (state, None)
    assert without_samples({"offset": np.int64(3), "seen": (np.True_,)}) == ({"offset": 3, "seen": [True]}, None)
    with pytest.raises(DataError, match=r"the state\.data_source\.lock is 'object', which JSON has no form for"):
        without_samples({"data_source": {"lock": object()}})


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "0.pt").write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match="reading one may execute what stands in it"):
        open_samples(tmp_path / "0.pt")
    assert not (tmp_path / "executed").exists()


def written(folder: Path, count: int = 12) -> Path:
    PackedSamples(samples(count), list(range(count)), {"metrics": {}}).write(folder / "a.arrow")
    return folder / "a.arrow"


def test_a_damaged_file_is_an_error_or_reads_without_taking_memory_that_it_only_claims(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole, chance = path.read_bytes(), random.Random(2)
    cut = [whole[: len(whole) * n // 100] for n in range(95)]
    damaged = []
    for _ in range(250):
        place = chance.randrange(8, len(whole) - 8)
        value = chance.choice([b"\xff", b"\x00", b"\x7f", struct.pack("<q", 2**62), struct.pack("<i", 2**30)])
        damaged.append(whole[:place] + value + whole[place + len(value) :])
    before, errors = pa.default_memory_pool().max_memory(), []
    for content in [*cut, *damaged]:
        path.write_bytes(content)
        try:
            assert len(read(path)) == 12
            assert content in damaged
        except DataError as error:
            errors.append(str(error))
    assert len(errors) > len(cut) + 20
    assert all(str(path) in error for error in errors)
    assert pa.default_memory_pool().max_memory() < max(before, 64 << 20)


def changed(path: Path, **columns: Callable[[list[Any]], list[Any]]) -> None:
    """Write a file anew with other values in some columns."""
    table = pa.ipc.open_file(path).read_all()
    for name, change in columns.items():
        place = table.schema.get_field_index(name)
        values = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), values)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def compressed(path: Path) -> None:
    table = pa.ipc.open_file(path).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)


def with_metadata(path: Path, text: bytes) -> None:
    table = pa.ipc.open_file(path).read_all().replace_schema_metadata({b"slime_samples": text})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def other_columns(path: Path) -> None:
    table = pa.table({"tokens": [[1]]}).replace_schema_metadata(
        {b"slime_samples": b'{"version": 1, "samples": 1, "head": {}}'}
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: path.write_bytes(b""), "is empty"),
    "no samples": (lambda path: path.write_text("hello"), "holds no samples: line 1"),
    "rows of data": (lambda path: path.write_text('{"prompt": "1 + 1?", "label": "2"}'), "`slime data preview FILE"),
    "bytes": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "neither a file of samples nor text"),
    "only a beginning": (lambda path: path.write_bytes(b"ARROW1\0\0"), "it is cut off"),
    "compressed": (compressed, "it is compressed"),
    "a newer version": (
        lambda path: with_metadata(path, json.dumps({"version": VERSION + 1, "head": {}}).encode()),
        f"has version {VERSION + 1} of the format",
    ),
    "no head": (lambda path: with_metadata(path, b"[]"), "what it says of itself is damaged"),
    "fewer samples": (
        lambda path: with_metadata(path, json.dumps({"version": VERSION, "samples": 13, "head": {}}).encode()),
        "cut off, or has more than it says: 13",
    ),
    "other columns": (other_columns, "its columns are not those"),
    "holes": (lambda path: changed(path, tokens=lambda rows: [[None]] * len(rows)), "'tokens' has lists with holes"),
    "a status": (lambda path: changed(path, status=lambda rows: ["done"] * len(rows)), "the status 'done'"),
    "images of a later row": (lambda path: changed(path, images_of=lambda rows: [5, *rows[1:]]), "images of a row"),
    "numbers that are not there": (
        lambda path: changed(path, metadata=lambda rows: ['{"a": {"$floats": 9}}', *rows[1:]]),
        r"refers to \$floats 9",
    ),
    "no object": (
        lambda path: changed(path, metadata=lambda rows: ["[1]"] * len(rows)),
        "'metadata' holds something else",
    ),
    "no JSON": (lambda path: changed(path, further=lambda rows: ["{"] * len(rows)), "not valid JSON"),
    "names of versions": (
        lambda path: changed(
            path,
            weight_versions=lambda rows: [[200]] * len(rows),
            weight_version_names=lambda rows: ["[1]"] * len(rows),
        ),
        "weight versions that it does not have",
    ),
    "an unknown field": (
        lambda path: changed(path, further=lambda rows: ['{"remove": 1}'] * len(rows)),
        "fields that Sample does not know: remove",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_no_slime_wrote_is_an_error_that_says_why(tmp_path: Path, case: str) -> None:
    damage, said = HOSTILE[case]
    path = written(tmp_path)
    damage(path)
    with pytest.raises(DataError, match=said):
        list(open_samples(path).read())


def test_samples_are_shown_on_a_terminal_of_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "0.jsonl"
    path.write_text(json.dumps(Sample(prompt="Grüße 你好", tokens=[1, 2], response_length=1).to_dict()))
    words = [sys.executable, "-m", "slime_core", "samples", str(path)]
    done = subprocess.run(words, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=True)
    assert rb"Gr\xfc\xdfe \u4f60\u597d" in done.stdout


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = path.read_bytes()
    bad = Sample(metadata={"a": object()})
    with pytest.raises(SampleError, match=r"sample None: metadata\.a is 'object', which JSON has no form for"):
        PackedSamples([*samples(3), bad]).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_slime_samples_shows_a_person_what_a_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = Sample(
        index=4, prompt=[{"role": "user", "content": "Ärger\x1b[2J"}], tokens=[1, 2, 3], response="so " * 100, label=7
    )
    shown.response_length, shown.reward, shown.weight_versions, shown.status = 2, 0.5, [3, 4], Status.TRUNCATED
    write_debug_data(tmp_path / "dump", RolloutOutput([[shown, *samples(20)]]))
    assert main(["samples", str(tmp_path / "dump"), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "sample 0 · index 4 · group 0 · truncated · reward 0.5 · 1 + 2 tokens, 2 trained · weights 3 … 4\n" in out
    assert "  prompt    [user] Ärger[U+001B][2J\n" in out
    assert "  response  so so so" in out
    assert " … " in out
    assert all(len(line) <= 60 for line in out.splitlines() if line.startswith("  response"))
    assert out.endswith("--index 1 goes on, --limit N shows N.\n")
    assert main(["samples", str(tmp_path / "dump"), "--index", "1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [json.dumps({k: v for k, v in line.items() if k != "group"}, sort_keys=True) for line in lines] == as_json(
        samples(20)
    )
    for words, said in [
        (["none"], "none cannot be read: No such file"),
        ([str(tmp_path)], "has no checkpoint of a run"),
        ([str(tmp_path / "dump"), "--index", "21"], "has no samples from --index 21 on"),
        ([str(tmp_path / "dump"), "--limit", "-1"], "no whole number"),
    ]:
        assert main(["samples", *words]) != 0
        assert said in capsys.readouterr().err
