"""The command line of a run: every option of the namespace as a `--flag`, unknown ones refused."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from slime_core.arguments.namespace import Namespace, Option
from slime_core.contracts.options import ArgumentGroup
from slime_core.errors import ArgumentError, SlimeError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `ArgumentError`s."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message[0].upper()}{message[1:]}. See {self.prog} --help.")


def run_parser(
    namespace: Namespace, prog: str, description: str = "", words: str = "[RECIPE.yaml]"
) -> argparse.ArgumentParser:
    """The parser of a command that runs a recipe: an optional recipe, then flags.

    Args:
        prog: the command.
        description: what it does, for `--help`.
        words: what stands between the command and its flags.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} {words} [options]",
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


def parse_command_line(namespace: Namespace, argv: list[str]) -> tuple[dict[str, Any], list[SlimeError]]:
    """Read the flags into {option name: raw value}; the last one of a name wins. Types are checked later, with all other
    sources.

    Returns:
        the values, and what is wrong: an option that does not exist, a value of none. It is left out with its values.

    Raises:
        ArgumentError: the flags cannot be taken apart, such as one without its value.
    """
    flags = [word[2:].split("=", 1)[0].replace("-", "_") for word in argv if word.startswith("--")]
    errors: list[SlimeError] = []
    try:
        namespace.admit(name.removeprefix("no_") for name in flags)
    except ArgumentError as error:  # of a family of options
        errors.append(error)
    parser = run_parser(namespace, "slime train")
    known = parser._option_string_actions  # argparse has no public list of its flags
    kept: list[str] = []
    unknown = False
    for word in argv:
        flag = word.split("=", 1)[0]
        if word.startswith("--"):
            unknown = flag not in known
            if unknown and (dashed := flag.replace("_", "-")) in known:
                errors.append(ArgumentError(f"There is no option {flag}. Did you mean {dashed!r}?"))
            elif unknown and not _told(namespace, flag, errors):
                name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
                hint = namespace.advice(name) or " See slime train --help."
                errors.append(ArgumentError(f"There is no option {flag}.{hint}"))
        if not unknown:
            kept.append(word)
    parsed, rest = parser.parse_known_args(kept)
    values = vars(parsed)
    for stray in [*([values.pop("recipe")] if values.get("recipe") else []), *rest]:
        errors.append(ArgumentError(f"What is {stray!r}? Every value belongs to a --flag, and a recipe comes first."))
    values.pop("recipe", None)
    return values, errors


def _told(namespace: Namespace, flag: str, errors: list[SlimeError]) -> bool:
    """Whether a flag is one of a family of options that could not be looked into, which is among the errors already."""
    return bool(errors) and namespace.is_of_a_family(flag.removeprefix("--").removeprefix("no-").replace("-", "_"))


def _title(group: type[ArgumentGroup]) -> str:
    return (group.__doc__ or group.__name__).strip().split("\n")[0].rstrip(".")


def add_option(section: Any, option: Option) -> None:
    """Add the flag of an option to a section of a parser."""
    help_text = (option.field.description or "").replace("%", "%%")
    if not option.required and option.default not in (None, False, []):
        help_text += f" (default: {option.default})"
    if option.is_flag:
        section.add_argument(option.flag, action=argparse.BooleanOptionalAction, help=help_text)
    elif option.is_list:
        action = "extend" if option.repeatable else "store"
        section.add_argument(option.flag, nargs="*", action=action, metavar="VALUE", help=help_text)
    else:
        metavar = "{" + ",".join(map(str, option.choices)) + "}" if option.choices else "VALUE"
        section.add_argument(option.flag, metavar=metavar, help=help_text)
