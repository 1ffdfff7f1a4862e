"""`slime samples`: what stands in a file of samples, for a person or as JSON lines."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentTypeError
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.arguments.command_line import Parser
from slime_core.display import told
from slime_core.errors import DataError
from slime_core.plugins import Plugins

if TYPE_CHECKING:
    from slime_core.data.sample_columns import StoredSample

_SHOWN = 10
_LABELS = ("prompt", "response", "label")
_WIDE = max(map(len, _LABELS)) + 4


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime samples …`."""
    parser = Parser(
        prog="slime samples",
        description="Print the samples of a file: of --save-debug-rollout-data, of --save-debug-train-data, or the answers of an "
        "evaluation. FILE may be a checkpoint of a run too, or a folder of --save (of which the newest is taken): then the samples in its "
        "data source's buffer, in flight, and waiting to be trained.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="a file of samples, or a checkpoint")
    parser.add_argument("--index", type=_count, default=0, help="begin with this sample of the file, counted from 0")
    parser.add_argument("--limit", type=_limit, help=f"show at most so many; default: {_SHOWN}, and with --json all")
    parser.add_argument("--json", action="store_true", help="print whole samples as JSON, one line each")
    given = parser.parse_args(argv)
    path: Path = given.file
    limit: int | None = _SHOWN if given.limit is None and not given.json else given.limit
    left, shown = False, 0
    for number, where, stored in _samples(path, given.index):
        if limit is not None and shown == limit:
            left = True
            break
        print(_as_json(stored) if given.json else told(_block(number, where, stored)))
        shown += 1
    if not shown:
        raise DataError(
            f"{path} has no samples"
            + (f" from --index {given.index} on; they are counted from 0." if given.index else ".")
        )
    if left and not given.json:
        print(f"… and more: --index {given.index + shown} goes on, --limit N shows N.")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _limit(text: str) -> int:
    if not _count(text):
        raise ArgumentTypeError("0 would show nothing; give a whole number from 1 on")
    return int(text)


def _samples(path: Path, first: int) -> Iterator[tuple[int, str, StoredSample]]:
    """Yield (number, where it stands, sample) from a number on."""
    if path.is_dir():
        yield from islice(_of_checkpoint(path), first, None)
        return
    from slime_core.data.sample_lines import open_samples

    try:
        for number, stored in enumerate(open_samples(path).read(first), first):
            yield number, "", stored
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _of_checkpoint(folder: Path) -> Iterator[tuple[int, str, StoredSample]]:
    from slime_core.data.sample_columns import StoredSample
    from slime_core.run.checkpoints import load_state
    from slime_core.run.state_samples import groups_in
    from slime_core.run.stored_run import require_checkpoint

    state = load_state(require_checkpoint(folder, None))
    for number, (where, group, sample) in enumerate(groups_in(state)):
        yield number, where, StoredSample(sample, group)


def _as_json(stored: StoredSample) -> str:
    group = {} if stored.group is None else {"group": stored.group}
    return json.dumps({**group, **stored.sample.to_dict(), **{name: row.tolist() for name, row in stored.rows.items()}})


def _block(number: int, where: str, stored: StoredSample) -> str:
    """What a person sees of a sample."""
    sample = stored.sample
    group = sample.group_index if stored.group is None else stored.group
    response, trained = sample.response_length, sum(sample.trained_mask)
    facts = [
        f"sample {number}" + (f" {where}" if where else ""),
        "" if sample.index is None else f"index {sample.index}",
        "" if group is None else f"group {group}",
        "" if sample.rollout_id is None else f"trajectory {sample.rollout_id}",
        sample.status.value,
        "no reward" if sample.reward is None else f"reward {json.dumps(sample.reward)}",
        f"{len(sample.tokens) - response} + {response} tokens, {trained} trained",
        _versions(sample.weight_versions),
        f"{len(sample.images)} images" if sample.images else "",
        *(f"{name} {_span(row.tolist())}" for name, row in stored.rows.items()),
        sample.source,
    ]
    texts = (_text(sample.prompt), sample.response, "" if sample.label is None else _text(sample.label))
    lines = [f"  {name:<{_WIDE - 2}}{_short(text)}" for name, text in zip(_LABELS, texts, strict=True) if text]
    return "\n".join([" · ".join(fact for fact in facts if fact), *lines, ""])


def _versions(versions: Any) -> str:
    found = list(dict.fromkeys(versions))
    if not found:
        return ""
    return f"weights {found[0]}" + (f" … {found[-1]}" if len(found) > 1 else "")


def _span(row: list[float]) -> str:
    return f"{min(row):.4g} … {max(row):.4g}" if row else "–"


def _text(value: Any) -> str:
    """Text, or messages and other data, in one piece."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(message, dict) and "role" in message for message in value):
        return "  ".join(f"[{message['role']}] {_text(message.get('content'))}" for message in value)
    return json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    """Text on one line of the terminal: its beginning and its end."""
    width = max(shutil.get_terminal_size((160, 24)).columns - _WIDE, 20)
    line = " ".join(text.split())
    end = width // 3
    return line if len(line) <= width else f"{line[: width - end - 3]} … {line[-end:]}"
