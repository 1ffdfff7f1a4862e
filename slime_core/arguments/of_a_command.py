"""Options of a command that is no run, such as `slime convert NAME`: declared in groups like all others, read from the command
line alone."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Sequence
from itertools import takewhile
from typing import TypeVar

from pydantic import ValidationError

from slime_core.arguments.command_line import Parser, add_option, section_of
from slime_core.arguments.namespace import Option
from slime_core.contracts.options import ArgumentGroup
from slime_core.errors import ArgumentError, did_you_mean

Options = TypeVar("Options", bound=ArgumentGroup)


def read_options(
    argv: Sequence[str], prog: str, description: str, options: type[Options], groups: Sequence[type[ArgumentGroup]] = ()
) -> Options:
    """The options on a command line. Prints the help and exits when asked to.

    Args:
        argv: the words after the command.
        prog: the command, such as "slime convert hf-to-fp8".
        description: what it does, for `--help`.
        options: all options: its own, and those that it inherits.
        groups: whose options it inherits, each a section of the help.

    Raises:
        ArgumentError: one line for every option that is unknown, missing or wrong; something is on the command line that belongs to
            none.
    """
    words, given = read_words_and_options(argv, prog, description, options, groups)
    if words:
        raise ArgumentError(f"Unrecognized arguments: {' '.join(words)}. See {prog} --help.")
    return given


def read_words_and_options(
    argv: Sequence[str], prog: str, description: str, options: type[Options], groups: Sequence[type[ArgumentGroup]] = ()
) -> tuple[list[str], Options]:
    """As `read_options`, of a command that takes words of its own too: they stand before, between or behind its options, where no option
    takes a list; behind `--` everything is a word.

    Args:
        prog: the command with the names of its words, such as "slime chat MODEL [QUESTION]".

    Returns:
        the words, and the options.

    Raises:
        ArgumentError: as of `read_options`.
    """
    group_of = {name: group for group in groups for name in group.model_fields}
    fields = options.model_fields
    declared = {name: Option(name, group_of.get(name, options), "", field) for name, field in fields.items()}
    parser = Parser(prog, f"{prog} [options]", description, allow_abbrev=False, argument_default=None)
    every: list[type[ArgumentGroup]] = [options, *groups]
    sections = {group: section_of(parser, group) for group in every}
    for option in declared.values():
        add_option(sections[option.group], option)
    parser.add_argument("words", nargs="*", help=SUPPRESS)
    known = parser._option_string_actions  # argparse has no public list of its flags
    for word in takewhile(lambda word: word != "--", argv):
        flag = word.split("=", 1)[0]
        if word.startswith("--") and flag not in known:
            raise ArgumentError(f"There is no option {flag}.{did_you_mean(flag, known) or f' See {prog} --help.'}")
    parsed = vars(parser.parse_intermixed_args(list(argv)))
    words = parsed.pop("words")
    given = {name: value for name, value in parsed.items() if value is not None}
    if missing := [option for option in declared.values() if option.required and option.name not in given]:
        raise ArgumentError("\n".join(f"{o.flag} is required: {o.field.description}" for o in missing))
    try:
        return words, options(**given)
    except ValidationError as error:
        lines = [
            f"--{str(e['loc'][0]).replace('_', '-')}: given {e['input']!r}. {e['msg']}." if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        raise ArgumentError("\n".join(lines)) from None
