"""The samples that a run has recorded, put together from the files of all training ranks, within a number of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slime_report.recording import SAMPLES
from slime_report.recording.bounded_log import read_rows
from slime_report.report import SampleRow

BYTES = 4_000_000
"""What the samples of a report may take as JSON, those of all runs together."""
_OF_ONE_RANK = ("largest_difference", "best", "worst")
_NUMBERS = ("log_probs", "rollout_log_probs", "advantages", "entropy")


def read_samples(folder: Path, limit: int) -> tuple[list[SampleRow], int]:
    """Read the samples in a folder `record`.

    Args:
        limit: bytes. Where there are more, whole rollouts are left out, evenly over the run.

    Returns:
        the samples, ordered by step, and how many were recorded in all.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(SAMPLES)):
        for row in read_rows(path):
            if "rollout" in row and isinstance(row.get("pieces"), list):
                name = f"{row['rollout']}-{row.get('place')}"
                found[name] = _together(found[name], row) if name in found else row
    rows = _without_lesser(found)
    kept = _thinned(rows, limit)
    return [_row(name, row) for name, row in kept], len(rows)


def _together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The same sample, as two ranks have recorded it."""
    better, lesser = (other, one) if "log_probs" in other and "log_probs" not in one else (one, other)
    return {**lesser, **better, "why": list(dict.fromkeys([*one.get("why", []), *other.get("why", [])]))}


def _without_lesser(found: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Of what every rank chose among its own samples, the largest difference and the extreme losses, keep the extreme of a rollout."""
    best: dict[tuple[int, str], tuple[float, str]] = {}
    for name, row in found.items():
        for why in row.get("why", []):
            value = _value(row, why)
            key = (row["rollout"], why)
            if why in _OF_ONE_RANK and value is not None and (key not in best or value > best[key][0]):
                best[key] = (value, name)
    rows = []
    for name, row in sorted(found.items(), key=lambda pair: (pair[1]["rollout"], pair[1].get("place") or 0)):
        why = [
            w
            for w in row.get("why", [])
            if w not in _OF_ONE_RANK or best.get((row["rollout"], w), (0, name))[1] == name
        ]
        if why:
            rows.append((name, {**row, "why": why}))
    return rows


def _value(row: dict[str, Any], why: str) -> float | None:
    """By how much a sample is the one that it was chosen as."""
    if why == "largest_difference":
        known = [abs(d) for d in _difference(row) or [] if d is not None]
        return sum(known) / len(known) if known else None
    if row.get("reward") is not None:
        return float(row["reward"]) * (1 if why == "best" else -1)
    known = [value for value in row.get("log_probs") or [] if value is not None]
    return sum(known) / len(known) * (1 if why == "best" else -1) if known else None


def _thinned(rows: list[tuple[str, dict[str, Any]]], limit: int) -> list[tuple[str, dict[str, Any]]]:
    """Leave out every second of the rollouts until the rest takes at most `limit` bytes."""
    sizes = {name: _size(row) for name, row in rows}
    while rows and sum(sizes[name] for name, _ in rows) > limit:
        rollouts = sorted({row["rollout"] for _, row in rows})
        if len(rollouts) == 1:
            rows = rows[:-1]
            continue
        kept = {*rollouts[::2], rollouts[-1]} if len(rollouts) > 2 else {rollouts[-1]}
        rows = [(name, row) for name, row in rows if row["rollout"] in kept]
    return rows


def _size(row: dict[str, Any]) -> int:
    """About how many bytes a sample takes as JSON."""
    numbers = sum(7 * len(row[name]) for name in _NUMBERS if isinstance(row.get(name), list))
    text = sum(len(piece) if piece.isascii() else 6 * len(piece) for piece in row["pieces"])
    return 500 + text + 3 * len(row["pieces"]) + 2 * len(row.get("mask", "")) + numbers


def _row(name: str, row: dict[str, Any]) -> SampleRow:
    pieces, prompt_tokens = list(map(str, row["pieces"])), int(row.get("prompt_tokens", 0))
    mask = [int(digit) for digit in str(row.get("mask", ""))]
    columns = {
        "advantage": row.get("advantages"),
        "log_prob": row.get("log_probs") or row.get("rollout_log_probs"),
        "difference": _difference(row),
        "entropy": row.get("entropy"),
    }
    left_out = row.get("left_out") or {}
    if left_out.get("response"):
        at, note = int(left_out["at"]), f" … {left_out['response']:,} tokens are left out here … "
        pieces.insert(prompt_tokens + at, note)
        mask.insert(at, 0)
        columns = {
            key: values if values is None else [*values[:at], None, *values[at:]] for key, values in columns.items()
        }
    if left_out.get("prompt"):
        pieces.insert(0, f"… {left_out['prompt']:,} tokens are left out here … ")
        prompt_tokens += 1
    return SampleRow(
        id=name,
        step=row["rollout"] + 1,
        prompt=str(row.get("prompt", "")),
        source=str(row.get("source", "")),
        dataset=None,
        group=row.get("group"),
        index=row.get("index"),
        reward=row.get("reward"),
        status=str(row.get("status", "")),
        length=int(row.get("length", 0)),
        why=row.get("why", []),
        label=row.get("label"),
        pieces=pieces,
        mask=mask,
        prompt_tokens=prompt_tokens,
        **columns,
    )


def _difference(row: dict[str, Any]) -> list[float | None] | None:
    """Trainer less engine, for every token of which both are known."""
    trainer, engine = row.get("log_probs"), row.get("rollout_log_probs")
    if not trainer or not engine:
        return None
    return [None if a is None or b is None else float(f"{a - b:.4g}") for a, b in zip(trainer, engine, strict=False)]
