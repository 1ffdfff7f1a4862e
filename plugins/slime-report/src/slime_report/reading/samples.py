"""The samples that a run has recorded, put together from the files of all training ranks, within a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slime_report.recording import SAMPLES
from slime_report.recording.bounded_log import ROLLOUT, read_rows
from slime_report.report import Picture, SampleRow

BYTES = 4_000_000
"""What the samples of a report may take as JSON, those of all runs together."""
_OF_ONE_RANK = ("largest_difference", "best", "worst")
_OVERHEAD = 400
"""By how many bytes a sample in a report is larger than its row."""


def read_samples(folder: Path, limit: int) -> tuple[list[SampleRow], int]:
    """Read the samples in a folder `record`.

    Args:
        limit: bytes. Where there are more, whole rollouts are left out, evenly over the run.

    Returns:
        the samples, ordered by step, and how many were recorded in all.
    """
    paths = sorted(folder.glob(SAMPLES))
    kept, recorded = _spread(paths, limit)
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        for row in read_rows(path, kept):
            if "rollout" in row and isinstance(row.get("pieces"), list):
                name = f"{row['rollout']}-{row.get('place')}"
                found[name] = _together(found[name], row) if name in found else row
    return [_row(name, row) for name, row in _without_lesser(found)], recorded


def _spread(paths: Sequence[Path], limit: int) -> tuple[frozenset[int], int]:
    """Choose rollouts, evenly over the run, whose rows take at most `limit` bytes; and count the rows. Nothing is decoded, so that this
    takes little time and memory, however much there is."""
    sizes: dict[int, int] = {}
    count = 0
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if found := ROLLOUT.match(line):
                    rollout, count = int(found[1]), count + 1
                    sizes[rollout] = sizes.get(rollout, 0) + len(line) + _OVERHEAD
    rollouts = sorted(sizes)
    while len(rollouts) > 1 and sum(sizes[rollout] for rollout in rollouts) > limit:
        rollouts = [*rollouts[:-1:2], rollouts[-1]] if len(rollouts) > 2 else rollouts[-1:]
    return frozenset(rollouts), count


def _together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The same sample, as two ranks have recorded it."""
    better, lesser = (other, one) if other.get("log_probs") and not one.get("log_probs") else (one, other)
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
        known = [abs(d) for d in row.get("difference") or [] if d is not None]
        return sum(known) / len(known) if known else None
    if row.get("reward") is not None:
        return float(row["reward"]) * (1 if why == "best" else -1)
    known = [value for value in row.get("log_probs") or [] if value is not None]
    return sum(known) / len(known) * (1 if why == "best" else -1) if known else None


def _row(name: str, row: dict[str, Any]) -> SampleRow:
    pieces, prompt_tokens = list(map(str, row["pieces"])), int(row.get("prompt_tokens", 0))
    mask = [int(digit) for digit in str(row.get("mask", ""))]
    columns = {
        "advantage": row.get("advantages"),
        "log_prob": row.get("log_probs") or row.get("rollout_log_probs"),
        "difference": row.get("difference"),
        "entropy": row.get("entropy"),
    }
    images = [_picture(image) for image in row.get("images") or [] if isinstance(image, dict)]
    left_out = row.get("left_out") or {}
    if left_out.get("response"):
        images = [_moved(image, prompt_tokens + int(left_out["at"])) for image in images]
        at, note = int(left_out["at"]), f" … {left_out['response']:,} tokens are left out here … "
        pieces.insert(prompt_tokens + at, note)
        mask.insert(at, 0)
        columns = {
            key: values if values is None else [*values[:at], None, *values[at:]] for key, values in columns.items()
        }
    if left_out.get("prompt"):
        pieces.insert(0, f"… {left_out['prompt']:,} tokens are left out here … ")
        prompt_tokens += 1
        images = [_moved(image, 0) for image in images]
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
        images=images,
        **columns,
    )


def _moved(image: Picture, place: int) -> Picture:
    """The same image, after a piece was put before the one at `place`."""
    if image.pieces is None:
        return image
    first, end = image.pieces
    return replace(image, pieces=(first + (first >= place), end + (end > place)))


def _picture(image: dict[str, Any]) -> Picture:
    """Return an image as it was recorded."""
    size, tokens, pieces = (_pair(image.get(name)) for name in ("size", "tokens", "pieces"))
    png = image.get("png")
    return Picture(
        *(size, int(image.get("bytes") or 0), tokens, pieces),
        blank=image.get("blank") is True,
        pixels=str(image.get("pixels") or ""),
        png=png if isinstance(png, str) else None,
    )


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value):
        return value[0], value[1]
    return None
