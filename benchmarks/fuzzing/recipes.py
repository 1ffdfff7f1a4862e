"""Recipes that are damaged as bytes or as lines or hold other values, and command lines with words that are missing, double, foreign or odd."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.fuzzing.damage import TEXTS, damaged, hostile_value, mutated


def attempt(r: Random, folder: Path) -> Callable[[], None]:
    """A recipe, a command line, or both."""
    recipe = damaged_recipe(r, folder) if r.random() < 0.5 else None
    words = damaged_words(r, flags()) if r.random() < 0.7 else []
    return partial(read_recipe_and_words, recipe, words)


RECIPE = """\
hf_checkpoint: model
prompt_data: ["train.jsonl@[0:5]", more.jsonl]
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
    """A recipe, damaged as bytes or as lines, or one of other values."""
    file = folder / "recipe.yaml"
    if r.random() < 0.5:
        file.write_text(other_recipe(r), "utf-8", "backslashreplace")
        return file
    lines = RECIPE.splitlines()
    for _ in range(r.randrange(4)):
        place = r.randrange(len(lines))
        key, _, value = lines[place].partition(": ")
        lines[place] = r.choice(
            (f"{key}: {r.choice((*ODD, *TEXTS))}", f"{r.choice(ODD)}: {value}", lines[place] * 2, "", r.choice(ODD))
        )
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    file.write_bytes(damaged(r, data) if r.random() < 0.5 else data)
    return file


def other_recipe(r: Random) -> str:
    """A recipe that is good YAML, with hostile values, further options and stages that are changed somewhere."""
    values = yaml.safe_load(RECIPE)
    for place in (values, *values["stages"]):
        for flag in r.sample(flags(), r.randrange(4)):
            place[flag.removeprefix("--").replace("-", "_")] = hostile_value(r)
    return str(yaml.safe_dump(mutated(r, values) if r.random() < 0.5 else values, allow_unicode=True))


def damaged_words(r: Random, known: list[str]) -> list[str]:
    """A command line, with words that are missing, double, foreign or odd."""
    words = list(WORDS)
    for _ in range(r.randrange(1, 5)):
        place = r.randrange(len(words))
        what = r.randrange(5)
        if what == 0:
            del words[place]
        elif what == 1:
            words.insert(place, r.choice(known))
        elif what == 2:
            words[place] = r.choice(TEXTS + ODD)
        elif what == 3:
            words[place] = words[place] + "=" + r.choice(TEXTS)
        else:
            words += [r.choice(known), r.choice(TEXTS + ODD)]
    return [word for word in words if word not in ("--help", "-h")]


@cache
def namespace() -> Any:
    """All options of what is installed."""
    from slime_core.arguments.namespace import Namespace
    from slime_core.plugins import Plugins

    return Namespace(Plugins())


def flags() -> list[str]:
    return [option.flag for option in namespace().options.values()]


def read_recipe_and_words(file: Path | None, words: list[str]) -> None:
    """Resolve a recipe, and a command line behind it."""
    from slime_core.arguments.recipe import read_recipe
    from slime_core.arguments.resolve import resolve

    for stage in read_recipe(str(file)) if file else [None]:
        resolve(namespace(), words, stage, env={})
