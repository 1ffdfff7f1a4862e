"""Files of conversations, most of them mutated."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.damage import damaged, mutated
from benchmarks.fuzzing.outcome import slime

IN_A_FILE = 500


def attempt(r: Random, folder: Path, rows: int = IN_A_FILE, model: str | None = None) -> Callable[[], None]:
    """A file of so many rows; it is previewed, too, with the tokenizer of a Hugging Face folder."""
    return partial(read_rows, rows_file(r, folder, rows), model)


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
