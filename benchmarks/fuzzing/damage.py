"""Values at the edge of something, values that are changed somewhere, and damaged bytes."""

from __future__ import annotations

from random import Random
from typing import Any

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
VALUES: tuple[Any, ...] = (
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
