"""What becomes of slime's options here: the one source of the sentences on options that are not available, of `slime check
--as-slime`, and of docs/from-slime.md.

The facts are in `from_slime.toml`, which explains itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Verdict = Literal["same", "different", "not needed", "not here"]
VERDICTS: tuple[Verdict, ...] = ("same", "different", "not needed", "not here")
PROGRAMS = ("slime", "megatron", "other")


@dataclass(frozen=True)
class Fate:
    """What becomes of one option.

    Attributes:
        name: of the option, in snake case.
        verdict: "same": it is here and means the same, and `text` says what to know besides; "different": it is here, and `text`
            says what is not as there; "not needed" and "not here": it is not, and `text` says what it does there and what to do
            here.
        text: a sentence or two; "" for "same" where there is nothing to add.
        default: slime's default; None if it has none.
        why: what it changes that the default is another one here; "" if it is the same.
        counts_with: the option with which alone the default is this one; "" if it always is.
    """

    name: str
    verdict: Verdict
    text: str
    default: Any
    why: str
    counts_with: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_here(self) -> bool:
        """Whether the option is one here, if every distribution of the repository is installed."""
        return self.verdict in ("same", "different")

    @property
    def as_slime(self) -> str:
        """The words that bring slime's default; "" where it has none."""
        if self.default is None:
            return ""
        if isinstance(self.default, bool):
            return self.flag if self.default else f"--no-{self.flag[2:]}"
        return f"{self.flag} {self.default}"


@cache
def fates(program: str = "slime") -> Mapping[str, Fate]:
    """The fates of all options of "slime"; of those of "megatron" about which there is something to say; and of "other"
    options, which slime does not have and whose defaults differ from what it always does. By name, in slime's order."""
    text = resources.files(__package__).joinpath("from_slime.toml").read_text(encoding="utf-8")
    found = {}
    for name, facts in tomllib.loads(text)[program].items():
        verdict: Verdict = next((v for v in VERDICTS if v.replace(" ", "_") in facts), "same")
        sentence = facts.get(verdict.replace(" ", "_"), "")
        found[name] = Fate(name, verdict, sentence, facts.get("default"), facts.get("why", ""), facts.get("with", ""))
    return found


def fate_of(name: str) -> Fate | None:
    """The fate of an option of slime, or of one of Megatron about which there is something to say. Of a flag that is given in
    its negative form, such as --no-save-optim, that form or the other may have one."""
    for program in PROGRAMS:
        for known in (name, f"no_{name}"):
            if known in fates(program):
                return fates(program)[known]
    return None
