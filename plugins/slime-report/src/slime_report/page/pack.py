"""The data that the page's script reads, as small as it can be. Called by `render`. Pure.

Samples take nearly all of a page, so they are compressed, and unpacked in the browser when they are looked at: an index with what
the list shows, and blocks of `BLOCK` samples with the text of their tokens, with their images, and with their values. Where there are
too many for the page, values are left out first, of the samples that were kept at random before others, then images, then texts; the
page says of how many.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from slime_report.report import SampleRow

BLOCK = 50
"""How many samples are unpacked at once."""
BETWEEN = "\x1f"
"""Stands between the texts of tokens, in which controls are named and so never occur."""
AROUND = 2_000
"""Bytes at most of what stands around the packed parts, besides what stands between them."""
CHANNELS = ("advantage", "log_prob", "difference", "entropy")
PREVIEW = 100
"""Characters of a response that the list shows."""
LARGEST_HALF = 65504.0


def script_text(value: Any) -> str:
    """Return JSON text that can stand in a script element of HTML, whatever texts are in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def rounded(values: Iterable[float | None] | None) -> list[float | None] | None:
    """Return numbers with seven significant digits; None for those that are not finite."""
    if values is None:
        return None
    return [None if value is None or not math.isfinite(value) else float(f"{value:.7g}") for value in values]


def pack_samples(rows: Sequence[SampleRow], visible: Callable[[str], str], room: int) -> dict[str, Any]:
    """Return samples for the script.

    Args:
        visible: makes whatever has no shape in a text visible.
        room: how many bytes they may take.
    """
    order = sorted(
        range(len(rows)), key=lambda number: rows[number].why == ["random"]
    )  # stable: as they came otherwise
    blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
    place = {row: (block, at) for block, numbers in enumerate(blocks) for at, row in enumerate(numbers)}
    index = _packed(script_text([_index_row(row, *place[number], visible) for number, row in enumerate(rows)]).encode())
    used = len(index) + AROUND
    texts: list[str] = []
    images: list[str] = []
    values: list[str] = []
    makers: list[tuple[list[str], Callable[[SampleRow], bytes]]] = [
        (texts, lambda row: _text(row, visible)),
        *([(images, _images)] if any(row.images for row in rows) else []),
        (values, _values),
    ]
    for parts, make in makers:
        for numbers in blocks:
            part = _packed(b"".join(_with_size(make(rows[number])) for number in numbers))
            if used + len(part) + 3 > room:  # with quotation marks and comma
                break
            parts.append(part)
            used += len(part) + 3
    return {
        "index": index,
        "texts": texts,
        "images": images,
        "values": values,
        "with_text": sum(len(numbers) for numbers in blocks[: len(texts)]),
        "with_images": sum(len(numbers) for numbers in blocks[: len(images)]) if images else None,
        "with_values": sum(len(numbers) for numbers in blocks[: len(values)]),
        "channels": [name for name in CHANNELS if any(getattr(row, name) is not None for row in rows)],
        "largest_advantage": max((abs(value) for row in rows for value in row.advantage or () if value), default=0.0),
    }


def _index_row(row: SampleRow, block: int, at: int, visible: Callable[[str], str]) -> list[Any]:
    """What the list shows of a sample, in the order that `samples.js` reads."""
    answer = "".join(row.pieces[row.prompt_tokens : row.prompt_tokens + PREVIEW])[:PREVIEW]
    differences = [abs(value) for value in row.difference or () if value is not None and math.isfinite(value)]
    advantages = [value for value in row.advantage or () if value is not None and math.isfinite(value)]
    return [
        visible(row.id),
        row.step,
        visible(row.prompt),
        visible(row.source),
        None if row.dataset is None else visible(row.dataset),
        row.group,
        row.index,
        _finite(row.reward),
        visible(row.status),
        row.length,
        list(row.why),
        None if row.label is None else visible(row.label),
        row.prompt_tokens,
        _finite(sum(advantages) / len(advantages)) if advantages else None,
        _finite(max(differences)) if differences else None,
        visible(" ".join(answer.split())),
        block,
        at,
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _text(row: SampleRow, visible: Callable[[str], str]) -> bytes:
    """The texts of all tokens, and before them a digit for each token of the response: whether it is trained."""
    mask = "".join("1" if trained else "0" for trained in row.mask)
    return BETWEEN.join([mask, *(visible(piece) for piece in row.pieces)]).encode()


def _images(row: SampleRow) -> bytes:
    """The images of a sample as JSON: width, height, bytes, first token and last, the same among the pieces, blank, PNG."""
    told = [
        [*(i.size or (None, None)), i.bytes, *(i.tokens or (None, None)), *(i.pieces or (None, None)), i.blank, i.png]
        for i in row.images
    ]
    return script_text(told).encode()


def _values(row: SampleRow) -> bytes:
    """Half-precision numbers of the response tokens, channel by channel; NaN where there is none. Of equal ones only the first."""
    made = b""
    for channel, name in enumerate(CHANNELS):
        if numbers := getattr(row, name):
            made += bytes([channel]) + _with_size(
                _halves(numbers[:1] if numbers.count(numbers[0]) == len(numbers) else numbers)
            )
    return made


def _halves(numbers: Sequence[float | None]) -> bytes:
    try:
        return struct.pack(f"<{len(numbers)}e", *numbers)
    except (struct.error, OverflowError):  # None, or out of the range of half precision
        return struct.pack(f"<{len(numbers)}e", *map(_half, numbers))


def _half(value: float | None) -> float:
    return math.nan if value is None or math.isnan(value) else max(-LARGEST_HALF, min(LARGEST_HALF, value))


def _with_size(part: bytes) -> bytes:
    return struct.pack("<I", len(part)) + part


def _packed(part: bytes) -> str:
    return base64.b64encode(gzip.compress(part, 6, mtime=0)).decode()
