"""The command line of a run: every option of the namespace as a `--flag`, unknown ones refused."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from slime_core.arguments.namespace import Namespace, Option
from slime_core.contracts.options import ArgumentGroup
from slime_core.errors import ArgumentError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `ArgumentError`s."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def run_parser(namespace: Namespace, prog: str, description: str = "") -> argparse.ArgumentParser:
    """The parser of `slime train`, `slime train-async` and `slime check`: an optional recipe, then flags."""
    parser = Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("recipe", nargs="?", default=None, help="YAML file of options; comes before the flags")
    by_group: dict[str, list[Option]] = {}
    for option in namespace.options.values():
        by_group.setdefault(_title(option.group), []).append(option)
    for title, options in by_group.items():
        section = parser.add_argument_group(title)
        for option in options:
            add_option(section, option)
    return parser


def section_of(parser: argparse.ArgumentParser, group: type[ArgumentGroup]) -> Any:
    """The section of the help for the options of a group."""
    return parser.add_argument_group(_title(group))


def split_recipe(
    namespace: Namespace, argv: list[str], prog: str, description: str = ""
) -> tuple[str | None, list[str]]:
    """Split a command line into (path of the recipe or None, flags). Prints the help and exits when asked to."""
    if {"-h", "--help"} & set(argv):
        run_parser(namespace, prog, description).print_help()
        raise SystemExit(0)
    return (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)


def parse_command_line(namespace: Namespace, argv: list[str]) -> dict[str, Any]:
    """Read the flags into {option name: raw value}; the last one of a name wins. Types are checked later, with all other
    sources."""
    flags = [word[2:].split("=", 1)[0].replace("-", "_") for word in argv if word.startswith("--")]
    namespace.admit(name.removeprefix("no_") for name in flags)
    parser = run_parser(namespace, "slime train")
    known = parser._option_string_actions  # argparse has no public list of its flags
    for word in argv:
        flag = word.split("=", 1)[0]
        if word.startswith("--") and flag not in known:
            name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
            hint = namespace.where_to_get(name) or did_you_mean(flag, known) or " See slime train --help."
            raise ArgumentError(f"There is no option {flag}.{hint}")
    parsed, rest = parser.parse_known_args(argv)
    values = vars(parsed)
    if stray := [*([values.pop("recipe")] if values.get("recipe") else []), *rest]:
        raise ArgumentError(f"What is {stray[0]!r}? Every value belongs to a --flag, and a recipe comes first.")
    values.pop("recipe", None)
    return values


def _title(group: type[ArgumentGroup]) -> str:
    return (group.__doc__ or group.__name__).strip().split("\n")[0]


def add_option(section: Any, option: Option) -> None:
    """Add the flag of an option to a section of a parser."""
    help_text = (option.field.description or "").replace("%", "%%")
    if not option.required and option.default not in (None, False, []):
        help_text += f" (default: {option.default})"
    if option.is_flag:
        section.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=help_text)
    elif option.is_list:
        section.add_argument(option.flag, nargs="*", metavar="VALUE", help=help_text)
    else:
        metavar = "{" + ",".join(map(str, option.choices)) + "}" if option.choices else "VALUE"
        section.add_argument(option.flag, metavar=metavar, help=help_text)
