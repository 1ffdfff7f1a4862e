"""Damaged and hostile inputs by the thousand: rows, Arrow and Parquet files, recipes and command lines, checkpoints, files of samples.

    python -m benchmarks.fuzz                    # everything, about 20 minutes
    python -m benchmarks.fuzz --only rows --count 2000 --seed 7

Every input is read in a process of its own (rows in files of 500) that may take 4 GiB and two minutes. It may be read, or
refused with one of the project's exceptions. A traceback, a signal or more time is a fault: its input is kept, and the status is 1.
tests/test_fuzz.py tries a few of each in every test run.
"""

from __future__ import annotations

import argparse
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

COUNTS = {"rows": 20_000, "arrow": 500, "recipes": 2_000, "checkpoints": 200, "samples": 500}
SECONDS, MEMORY = 120, 4 << 30
IN_A_FILE = 500  # rows

Random = random.Random

TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "\u202eabc",
    "\ud800",
    "a" * 5000,
    "<|im_end|>",
    "<think>",
    "</think>",
    "[INST]",
    "{{ 7 * 7 }}",
    "__import__('os').system('true')",
    "../../etc/passwd",
    "🙂‍↔️",
    "{",
    '{"a": 1}',
    "[" * 200,
    "1" * 5000,
    "nan",
    "-0",
    "user",
    "assistant",
    "system",
    "tool",
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**63,
    -(2**70),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    {"": None},
)


def hostile_value(r: Random, depth: int = 0) -> Any:
    """Any JSON value, most of them at the edge of something."""
    kind = r.random()
    if kind < 0.4:
        return r.choice(TEXTS)
    if kind < 0.75 or depth > 3:
        return r.choice(VALUES)
    if kind < 0.87:
        return [hostile_value(r, depth + 1) for _ in range(r.randrange(4))]
    return {r.choice(TEXTS): hostile_value(r, depth + 1) for _ in range(r.randrange(4))}


def mutated(r: Random, value: Any) -> Any:
    """A copy of plain data in which one place, or a few, are otherwise."""
    if r.random() < 0.12 or not isinstance(value, (dict, list)) or not value:
        return hostile_value(r)
    if isinstance(value, list):
        made, place = list(value), r.randrange(len(value))
        what = r.randrange(5)
        if what == 0:
            del made[place]
        elif what == 1:
            made.insert(place, made[r.randrange(len(made))])
        else:
            made[place] = mutated(r, made[place])
        return made
    key = r.choice(list(value))
    what = r.randrange(8)
    if what == 0:
        return {k: v for k, v in value.items() if k != key}
    if what == 1:
        return {
            **value,
            r.choice(("tools", "loss_mask", "step_loss_mask", "tool_calls", "images", *TEXTS)): hostile_value(r),
        }
    return {**value, key: mutated(r, value[key])}


def damaged(r: Random, data: bytes) -> bytes:
    """Bytes with a flipped bit, another byte, a run of them, an end that is missing, or two places exchanged."""
    made = bytearray(data or b"\0")
    how = r.choice(("bit", "bit", "byte", "byte", "run", "cut", "swap"))
    for _ in range(r.choice((1, 1, 2, 8))):
        last = len(made) - 1
        place = r.choice((r.randint(0, last), r.randint(0, min(2000, last)), last - r.randint(0, min(3000, last))))
        if how == "bit":
            made[place] ^= 1 << r.randrange(8)
        elif how == "byte":
            made[place] = r.choice((0, 255, 127, 128, r.randrange(256)))
        elif how == "run":
            made[place : place + 8] = r.choice(
                (b"\xff" * 8, b"\0" * 8, (2**62).to_bytes(8, "little"), (2**31 - 1).to_bytes(8, "little"))
            )
        elif how == "cut":
            del made[max(1, place) :]
        else:
            other = r.randint(0, last)
            made[place], made[other] = made[other], made[place]
    return bytes(made)


# Rows


def conversation(r: Random, number: int) -> dict[str, Any]:
    """A good row, in one of the forms that data comes in."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": number, "b": 2}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"What is {number} plus 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "A sum."},
        {"role": "tool", "content": str(number + 2)},
        {"role": "assistant", "content": f"It is {number + 2}.", "step_loss_mask": 1},
    ]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    return r.choice(
        (
            {"messages": messages, "label": str(number), "metadata": {"rm_type": "math"}, "tools": tools},
            {"messages": messages[1:2] + messages[4:], "label": number},
            {"messages": "Once upon a time", "label": None},
            {"messages": [1, 2, 3, 4], "loss_mask": [0, 1, 1, 1], "label": 1},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "assistant", "content": "b"},
                ],
                "label": "",
            },
        )
    )


def rows_file(r: Random, folder: Path, rows: int) -> Path:
    """A file of rows, of which most are mutated: as values, and where each has a line, as bytes. An array is whole as a rule, as
    what is wrong in one row makes the file unreadable."""
    lines, is_array = [], r.random() < 0.25
    for number in range(rows):
        row: Any = conversation(r, number)
        for _ in range(r.randrange(3)):
            row = mutated(r, row)
        if is_array and not isinstance(row, dict):
            row = {"messages": row}
        line = json.dumps(row, ensure_ascii=is_array or r.random() < 0.7).encode("utf-8", "surrogatepass")
        lines.append(damaged(r, line).replace(b"\n", b" ") if not is_array and r.random() < 0.2 else line)
    file = folder / ("rows.json" if is_array else "rows.jsonl")
    whole = b"[" + b",".join(lines) + b"]" if is_array else b"\n".join(lines)
    file.write_bytes(damaged(r, whole) if is_array and r.random() < 0.2 else whole)
    return file


def read_rows(file: Path, model: str | None, convert: bool = True) -> None:
    """Read a file as runs, conversions and the preview do: every row is read or refused."""
    from slime_core.data.rows import open_rows
    from slime_core.data.samples import Columns, sample_from_row
    from slime_core.errors import SlimeError

    columns = Columns("messages", "label", "tools", "metadata")
    rows = open_rows([str(file)])
    for number in range(len(rows)):
        try:
            row = rows[number]
            sample = sample_from_row(columns, row, rows.where(number))
            json.dumps(sample.to_dict()).encode()
        except SlimeError:
            continue
    for form in ("messages", "openhermes", "alpaca") if convert else ():
        slime(
            "data", "convert", str(file), str(file.parent / "converted.parquet"), "--from", form, "--on-error", "skip"
        )
    if model:
        slime(
            "data",
            "preview",
            str(file),
            "--input-key",
            "messages",
            "--tool-key",
            "tools",
            "--hf-checkpoint",
            model,
            "--rows",
            "2",
        )


def slime(*words: str) -> int:
    """Run the command in this process, without its output."""
    from slime_core.cli.main import main

    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = int(exit.code or 0)
    if '  File "' in said.getvalue():  # of a plugin, whose part of a traceback is shown
        raise RuntimeError(said.getvalue())
    return status


# Arrow and Parquet


@cache
def arrow_files() -> dict[str, bytes]:
    """A file of every kind, by name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    r = Random(0)
    rows = [
        {
            "messages": [
                {"role": "user", "content": "x" * r.randint(5, 80)},
                {"role": "assistant", "content": "héllo " * r.randint(1, 3)},
            ],
            "label": str(n),
            "share": n / 3,
            "metadata": {"a": None if n % 2 else [1, n]},
        }
        for n in range(300)
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("kind", pa.array([str(n % 7) for n in range(300)]).dictionary_encode())
    made = {}
    for name, new, packing in (
        ("file.arrow", pa.ipc.new_file, None),
        ("stream.arrow", pa.ipc.new_stream, None),
        ("zstd.arrow", pa.ipc.new_file, "zstd"),
        ("lz4.feather", pa.ipc.new_file, "lz4"),
    ):
        sink = pa.BufferOutputStream()
        with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=packing)) as writer:
            writer.write_table(table, max_chunksize=64)
        made[name] = sink.getvalue().to_pybytes()
    for packing in ("none", "snappy", "zstd", "gzip"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=packing, row_group_size=100)
        made[f"{packing}.parquet"] = sink.getvalue().to_pybytes()
    return made


def damaged_arrow(r: Random, folder: Path) -> Path:
    """One of these files, damaged."""
    name = r.choice(sorted(arrow_files()))
    file = folder / name
    file.write_bytes(damaged(r, arrow_files()[name]))
    return file


# Files of samples


@cache
def sample_file() -> bytes:
    """A dump with something in every column, in two batches."""
    import pyarrow as pa

    from slime_core.data.sample_files import PackedSamples
    from slime_core.sample import Sample

    samples = [
        Sample(
            index=n,
            group_index=n // 2,
            prompt=[{"role": "user", "content": "hé"}] if n % 3 else "hé",
            images=[b"png", b"jpeg"] if n % 2 else [],
            tokens=[1, 2, 3 + n],
            response="ok",
            response_length=2,
            label=n,
            reward={"acc": 1.0} if n % 4 == 0 else 0.5,
            loss_mask=[1, 0],
            rollout_log_probs=[-0.1, -0.5],
            weight_versions=[n, "step-1"],
            metadata={"long": list(range(100)), "floats": [0.5] * 70, "deep": [[n]]},
        )
        for n in range(8)
    ]
    for sample in samples:
        sample.tool_calls = 2  # type: ignore[attr-defined]  # as hooks do
    packed = PackedSamples(
        samples, [sample.index // 2 for sample in samples if sample.index is not None], {"metrics": {"x": 1.0}}
    )
    with tempfile.TemporaryDirectory() as folder:
        packed.write(Path(folder) / "dump")
        table = pa.ipc.open_file((Path(folder) / "dump").read_bytes()).read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return bytes(sink.getvalue().to_pybytes())


def damaged_samples(r: Random, folder: Path) -> Path:
    """This file with damaged bytes, cut off, or written by somebody else: with other columns, types, numbers or another head."""
    import pyarrow as pa

    file = folder / "dump.arrow"
    if r.random() < 0.6:
        file.write_bytes(damaged(r, sample_file()))
        return file
    table = pa.ipc.open_file(sample_file()).read_all()
    name = r.choice(table.schema.names)
    place, column = table.schema.get_field_index(name), table.column(name)
    how = r.choice(("left out", "twice", "type", "values", "values", "values", "order", "head"))
    if how == "left out":
        table = table.drop_columns([name])
    elif how == "twice":
        table = table.append_column(name, column)
    elif how == "type":
        other = r.choice(
            (pa.string(), pa.large_string(), pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.int8(), pa.null())
        )
        table = table.set_column(place, name, pa.nulls(len(table), other))
    elif how == "values":
        values = [r.choice((value, None, *column.to_pylist())) for value in column.to_pylist()]
        if pa.types.is_list(column.type) and pa.types.is_integer(column.type.value_type):
            values[r.randrange(8)] = r.choice(([], [200], [0, None], [7] * 2, [1] * 70))
        elif pa.types.is_integer(column.type):
            values[r.randrange(8)] = r.choice((-1, 2**62, 99))
        elif pa.types.is_string(column.type):
            values[r.randrange(8)] = r.choice((*TEXTS[:5], *TEXTS[6:], '{"$floats": 9}', "[[1]]", '{"tokens": [1]}'))
        with suppress(pa.ArrowInvalid, UnicodeEncodeError):  # of what no file can hold
            table = table.set_column(place, table.schema.field(place), pa.array(values, column.type))
    elif how == "order":
        table = table.select(r.sample(table.schema.names, len(table.schema.names)))
    else:
        (key, head), *_ = table.schema.metadata.items()
        text = json.dumps(mutated(r, json.loads(head)))
        table = table.replace_schema_metadata({key: r.choice((text.encode(errors="replace"), damaged(r, head)))})
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table, max_chunksize=r.choice((3, 8)))
    return file


def read_samples(file: Path) -> None:
    """Read a dump as a run does, and as a person looks at it."""
    from slime_core.rollout.debug_data import read_debug_data

    for words in ((), ("--json",)):
        if slime("samples", str(file), *words) not in (0, 1, 2):
            raise RuntimeError("slime samples ended with another status than 0, 1 and 2")
    read_debug_data(file)


# Recipes and command lines

RECIPE = """\
hf_checkpoint: model
prompt_data: [train.jsonl@[0:5], more.jsonl]
input_key: messages
apply_chat_template_kwargs: {enable_thinking: false}
lr: 1e-5
stages:
- &first {rollout_function_path: sft, num_rollout: 3, rollout_batch_size: 2, save: runs/a}
- {<<: *first, save: runs/b, seed: 7}
"""
WORDS = [
    "--hf-checkpoint",
    "m",
    "--prompt-data",
    "a.jsonl",
    "--input-key",
    "messages",
    "--lr",
    "1e-5",
    "--rollout-batch-size",
    "2",
    "--num-rollout",
    "3",
    "--seed",
    "5",
]
ODD = (
    "*a",
    "&a [*a]",
    "!!python/name:os.system",
    "010",
    "1:30",
    "0x",
    "~",
    "[",
    "{",
    "? [a]",
    "<<: *first",
    "- -",
    "'",
    "|",
    "\t",
    "\x85",
    "yes",
)


def damaged_recipe(r: Random, folder: Path) -> Path:
    """A recipe, damaged as bytes or as lines."""
    lines = RECIPE.splitlines()
    for _ in range(r.randrange(4)):
        place = r.randrange(len(lines))
        key, _, value = lines[place].partition(": ")
        lines[place] = r.choice(
            (f"{key}: {r.choice((*ODD, *TEXTS))}", f"{r.choice(ODD)}: {value}", lines[place] * 2, "", r.choice(ODD))
        )
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    file = folder / "recipe.yaml"
    file.write_bytes(damaged(r, data) if r.random() < 0.5 else data)
    return file


def damaged_words(r: Random, flags: list[str]) -> list[str]:
    """A command line, with words that are missing, double, foreign or odd."""
    words = list(WORDS)
    for _ in range(r.randrange(1, 5)):
        place = r.randrange(len(words))
        what = r.randrange(5)
        if what == 0:
            del words[place]
        elif what == 1:
            words.insert(place, r.choice(flags))
        elif what == 2:
            words[place] = r.choice(TEXTS + ODD)
        elif what == 3:
            words[place] = words[place] + "=" + r.choice(TEXTS)
        else:
            words += [r.choice(flags), r.choice(TEXTS + ODD)]
    return [word for word in words if word not in ("--help", "-h")]


@cache
def namespace() -> Any:
    """All options of what is installed."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.plugins import Plugins

    return Namespace(Plugins())


def read_recipe_and_words(file: Path | None, words: list[str]) -> None:
    """Resolve a recipe, and a command line behind it."""
    from slime_core.arguments.recipe import read_recipe
    from slime_core.arguments.resolve import resolve

    for stage in read_recipe(str(file)) if file else [None]:
        resolve(namespace(), words, stage, env={})


# Checkpoints and dumps


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint of a run with a state of the torch backend, and a dump of a rollout."""
    import torch

    from slime_core.rollout.debug_data import write_debug_data
    from slime_core.run.checkpoints import Saving
    from slime_core.sample import RolloutOutput, Sample
    from slime_torch import state

    model, optimizer = small_model()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    stored = {"rollout_id": 3, "data_source": {"sets": []}, "arguments": {"lr": 1}, "data": {}, "plugins": {}}
    with Saving(folder, 3) as saving:
        state.Saver().save(saving.trainer, state.collect(model, optimizer, 1), background=False)
        (saving.trainer / "trained_ends.json").write_text("[1, 2]")
        path = saving.finish({**stored, "early_stopping": None, "prefetched": None, "evaluation_due": False})
    group = [Sample(index=n, tokens=[1, 2, 3], response_length=1, reward=1.0, metadata={"a": [n]}) for n in range(2)]
    write_debug_data(folder / "dump.jsonl", RolloutOutput([group], {"x": 1.0}))
    return path


def small_model() -> tuple[Any, Any]:
    import torch

    model = torch.nn.Linear(4, 3)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def damage_checkpoint(r: Random, path: Path) -> None:
    """Damage one file; sometimes the manifest says that it shall be so, as whoever forges one would have it."""
    from slime_core.run.checkpoints import _describe

    files = sorted(p for p in [*path.rglob("*"), path.parent / "dump.jsonl"] if p.is_file())
    file = r.choice(files)
    if file.suffix in (".json", ".jsonl") and r.random() < 0.6:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        place = r.randrange(len(lines))
        lines[place] = json.dumps(mutated(r, json.loads(lines[place])))
        file.write_text("\n".join(lines), errors="surrogatepass")
    elif file.name == ".metadata" and r.random() < 0.5:
        file.write_bytes(pickle.dumps(r.choice(({}, [1], Exception("x"), os.system))))
    else:
        file.write_bytes(damaged(r, file.read_bytes()))
    if file.name not in ("manifest.json", "dump.jsonl"):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest[str(file.relative_to(path))] = _describe(file)
        if r.random() < 0.8:
            (path / "manifest.json").write_text(json.dumps(manifest))


def read_checkpoint(path: Path) -> None:
    """Read everything of a checkpoint, and the dump beside it."""
    from slime_core.data.ends import stored_trained_ends
    from slime_core.errors import SlimeError
    from slime_core.rollout.debug_data import read_debug_data
    from slime_core.run import checkpoints
    from slime_torch import state

    refused: SlimeError | None = None
    for read in (
        lambda: checkpoints.require_state(checkpoints.load_state(path)),
        lambda: checkpoints.stored_arguments(path),
        lambda: state.load(path / "trainer", *small_model()),
        lambda: stored_trained_ends(path / "trainer"),
        lambda: read_debug_data(path.parent / "dump.jsonl"),
    ):
        try:
            read()
        except SlimeError as error:
            refused = error
    if refused is not None:
        raise refused


# Running


def outcome(read: Callable[[], Any], seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """Run `read` in a forked process, and return "read", "refused", or what went wrong."""
    from slime_core.errors import SlimeError

    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            os.close(there)
            faulthandler.disable()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            resource.setrlimit(resource.RLIMIT_AS, (_address_space() + memory, resource.RLIM_INFINITY))
            warnings.simplefilter("ignore")
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                read()
            said = "read"
        except SlimeError:
            said = "refused"
        except BaseException:
            said = f"traceback\n{traceback.format_exc()[-3000:]}"
        finally:
            os.write(here, said.encode("utf-8", "backslashreplace")[:60_000])
            os._exit(0)
    os.close(here)
    with open(there, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else told or "an end without a word"


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fuzz(kind: str, count: int, seed: int, folder: Path, model: str | None = None) -> tuple[Counter[str], float]:
    """Try `count` inputs of one kind. Faults are printed, and their inputs kept in the folder.

    Returns:
        how often what came of it, and the most seconds that one took.
    """
    flags = [option.flag for option in namespace().options.values()] if kind == "recipes" else []
    if kind == "arrow":
        arrow_files()
        os.environ["SLIME_CACHE"] = str(folder / "cache")
    counted: Counter[str] = Counter()
    longest = 0.0
    for number in range(0, count, IN_A_FILE if kind == "rows" else 1):
        r, own = Random(f"{seed} {kind} {number}"), folder / f"{kind}-{seed}-{number}"
        own.mkdir()
        read: Callable[[], Any]
        if kind == "rows":
            read = partial(read_rows, rows_file(r, own, min(IN_A_FILE, count - number)), model)
        elif kind == "arrow":
            read = partial(read_rows, damaged_arrow(r, own), None, convert=False)
        elif kind == "samples":
            read = partial(read_samples, damaged_samples(r, own))
        elif kind == "recipes":
            recipe = damaged_recipe(r, own) if r.random() < 0.5 else None
            read = partial(read_recipe_and_words, recipe, damaged_words(r, flags) if r.random() < 0.7 else [])
        else:
            path = write_checkpoint(own)
            damage_checkpoint(r, path)
            read = partial(read_checkpoint, path)
        started = time.monotonic()
        said = outcome(read)
        longest = max(longest, time.monotonic() - started)
        what = said.partition("\n")[0]
        counted[what] += min(IN_A_FILE, count - number) if kind == "rows" else 1
        if what in ("read", "refused"):
            _remove(own)
        else:
            print(f"FAULT {own}: {said}", flush=True)
    return counted, longest


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=COUNTS, help="one kind of inputs")
    parser.add_argument("--count", type=int, help="how many; by default what the kind asks for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a Hugging Face folder: rows are previewed with its tokenizer, too")
    parser.add_argument("--folder", type=Path, help="where the inputs of faults stay")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    faults = 0
    for kind in [options.only] if options.only else COUNTS:
        started = time.monotonic()
        counted, longest = fuzz(kind, options.count or COUNTS[kind], options.seed, folder, options.model)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"{kind}: {dict(counted)}; {time.monotonic() - started:.0f} s in all, the longest {longest:.1f} s, at most {peak:.0f} MiB",
            flush=True,
        )
        faults += sum(number for what, number in counted.items() if what not in ("read", "refused"))
    print(f"{faults} faults" + (f"; their inputs are in {folder}" if faults else ""))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
