"""The options of `slime check` alone: `--parity` and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from slime_core.cli.look_options import FLAGS as LOOK_FLAGS
from slime_core.cli.look_options import HELP as LOOK_HELP
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from slime_core.run.parity import ParityOptions

HELP = f"""Of `slime check` alone:

  --parity            start the train backend as the run does, and compare weights and log-probs with those of transformers
  --gradients [few]   with --parity: compare every gradient too; few: of the layers the first, a middle and the last one
  --parity-rows N     with --parity: how many rows of the data are computed (default: 4, and 2 for each data-parallel rank)
  --parity-tokens N   with --parity: longer rows are cut to so many tokens (default: 512)
  --as-slime [SCRIPT] say first what becomes of the options of this launch script of slime, or of the words behind; options behind
                      the script win over its own (docs/from-slime.md)
{LOOK_HELP}"""

FLAGS = ("--parity", "--gradients", "--parity-rows", "--parity-tokens")


def read_parity(argv: Sequence[str]) -> tuple[ParityOptions | None, list[str]]:
    """Return what `--parity` and its options say, None without it, and the command line without them.

    Raises:
        ArgumentError: one of them has a value that it cannot have, or stands there without `--parity`.
    """
    parity, gradients, numbers = False, None, {"--parity-rows": 0, "--parity-tokens": 512}
    given, rest, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        flag, has_value, value = word.partition("=")
        if flag not in FLAGS:
            rest.append(word)
            continue
        given.append(flag)
        if flag == "--parity":
            if has_value:
                raise ArgumentError(f"--parity takes no value; given {value!r}.")
            parity = True
        elif flag == "--gradients":
            if not has_value and words and words[0] in ("all", "few"):
                value = words.pop(0)
            if value not in ("", "all", "few"):
                raise ArgumentError(f"--gradients is {value!r}; expected all, few or nothing.")
            gradients = value or "all"
        else:
            value = value if has_value else words.pop(0) if words else ""
            least = 1 if flag == "--parity-rows" else 2
            if not value.isdecimal() or int(value) < least:
                raise ArgumentError(f"{flag} is {value!r}; expected a whole number of at least {least}.")
            numbers[flag] = int(value)
    if given and not parity:
        raise ArgumentError(f"{given[0]} goes with --parity; give both.")
    if not parity:
        return None, rest
    from slime_core.run.parity import ParityOptions  # seconds, which only those should pay who ask for it

    few = "few" if gradients == "few" else "all" if gradients else None
    return ParityOptions(few, numbers["--parity-rows"] or None, numbers["--parity-tokens"]), rest  # type: ignore[arg-type]


def refuse_parity(argv: Sequence[str], prog: str) -> None:
    """Raise `ArgumentError` for an option that `slime check` alone has."""
    if any(word.partition("=")[0] == "--as-slime" for word in argv):
        raise ArgumentError(
            "--as-slime belongs to `slime check`, which says what becomes of a launch script's options. Run "
            f"`slime check --as-slime SCRIPT` first, and then `{prog}` with the options that are here."
        )
    for word in argv:
        if (flag := word.partition("=")[0]) in LOOK_FLAGS:
            raise ArgumentError(
                f"{flag} belongs to `slime check`, which looks at a run and starts nothing. Run that first."
            )
        if flag in FLAGS:
            raise ArgumentError(
                f"{flag} belongs to `slime check`, which compares and trains nothing. Run `slime check … --parity` with the "
                f"run's own options first, and then `{prog}` without {flag}."
            )
