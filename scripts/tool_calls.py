"""Writes requests in plain English and the tool calls that answer them, for scripts/quickstart.sh.

    python scripts/tool_calls.py [--seed 1] [--folder .cache/tasks]

A request such as "Dim the lamp in the attic to 35 percent." is answered by `{"tool": "light", "room": "attic", "percent": 35}`. A
system message names the tools and what they take, so that a model could answer without training. The same seed writes the same rows:
`tool_calls_train.jsonl`, and `tool_calls_heldout.jsonl` with requests that training never has. Every fourth room, person and so on
is in held-out requests alone: what is learnt is the format, not the words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROWS = {"train": 400, "heldout": 64}

SYSTEM = (
    "Tools: light(room, percent), timer(minutes, name), event(day, time, title), message(to, text). "
    "Answer with one call as JSON."
)
ROOMS = "kitchen, bedroom, hall, attic, garage, bathroom, cellar, office, nursery, studio, library, porch"
FOODS = "rice, pasta, bread, tea, eggs, soup, pizza, laundry, potatoes, coffee, cake, noodles"
TITLES = "dentist, choir, football, book club, haircut, yoga, tax office, piano lesson, chess, swimming, vet, parents' evening"
PEOPLE = "Anna, Ben, Clara, David, Emma, Felix, Grace, Henry, Ida, Jonas, Kim, Leo"
TEXTS = (
    "I am late, dinner is ready, the train is gone, call me back, happy birthday, the key is outside, I miss you, we won, "
    "bring some milk, it is raining, see you soon, the meeting is off"
)
DAYS = "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"

Draw = Callable[[str], str]
"""Draws one of the words of a list."""


def light(rng: random.Random, draw: Draw) -> tuple[str, dict[str, Any]]:
    room, percent = draw(ROOMS), rng.randrange(5, 100, 5)
    asked = [
        f"Dim the lamp in the {room} to {percent} percent.",
        f"Please set the {room} light to {percent}%.",
        f"I want the {room} at {percent} percent brightness.",
    ]
    return rng.choice(asked), {"tool": "light", "room": room, "percent": percent}


def timer(rng: random.Random, draw: Draw) -> tuple[str, dict[str, Any]]:
    name, minutes = draw(FOODS), rng.randrange(2, 60)
    asked = [
        f"Set a timer for the {name}, {minutes} minutes.",
        f"The {name} needs {minutes} minutes, tell me when it is over.",
        f"Remind me of the {name} in {minutes} minutes.",
    ]
    return rng.choice(asked), {"tool": "timer", "minutes": minutes, "name": name}


def event(rng: random.Random, draw: Draw) -> tuple[str, dict[str, Any]]:
    title, day, time = draw(TITLES), rng.choice(DAYS.split(", ")), f"{rng.randrange(1, 13)} {rng.choice(['am', 'pm'])}"
    asked = [
        f"Put {title} into my calendar, {day} at {time}.",
        f"I have {title} on {day} at {time}, note that.",
        f"New appointment on {day}, {time}: {title}.",
    ]
    return rng.choice(asked), {"tool": "event", "day": day, "time": time, "title": title}


def message(rng: random.Random, draw: Draw) -> tuple[str, dict[str, Any]]:
    to, text = draw(PEOPLE), draw(TEXTS)
    asked = [f"Tell {to}: {text}.", f"Send {to} a message that says {text}.", f"Write to {to}: {text}."]
    return rng.choice(asked), {"tool": "message", "to": to, "text": text}


def rows(seed: int, held_out: bool) -> Iterator[dict[str, Any]]:
    """Endless rows with `messages`; training has three quarters of the words, held-out rows have all."""
    rng = random.Random(seed)

    def draw(words: str) -> str:
        return rng.choice([word for i, word in enumerate(words.split(", ")) if held_out or i % 4 != 3])

    while True:
        asked, call = rng.choice([light, timer, event, message])(rng, draw)
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": asked},
                {"role": "assistant", "content": json.dumps(call)},
            ]
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write requests and the tool calls that answer them.")
    parser.add_argument("--seed", type=int, default=1, help="other seeds give other requests (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(".cache/tasks"), help="default: %(default)s")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    for name in ("heldout", "train"):
        lines = []
        for row in rows(2 * args.seed + (name == "heldout"), held_out=name == "heldout"):
            request = row["messages"][1]["content"]
            if request not in written:
                written.add(request)
                lines.append(json.dumps(row) + "\n")
            if len(lines) == ROWS[name]:
                break
        (args.folder / f"tool_calls_{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
