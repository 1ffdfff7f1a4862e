"""The options of the installed SGLang and its router, as options of slime: `--sglang-NAME VALUE` is a server's
`--NAME VALUE`, `--router-NAME VALUE` the router's.

Which options there are, and which values they take, is decided by the programs' own argument parsers. These are
imported when somebody sets such an option (see `ArgumentGroup.families`), and where a server is started with one.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import SecretStr, create_model, model_validator

from slime_core.contracts.options import ArgumentGroup, option
from slime_core.errors import ArgumentError, NotInstalled, did_you_mean
from slime_engine_sglang.arguments import SGLangArguments

INSTALL = "pip install 'sglang==0.5.23' 'sglang-router==0.3.2'"


_SECRET = re.compile(r"(api_keys?|password|secret|auth_token|access_token)$")
"""Names of options of these programs whose values are secrets."""


@dataclass(frozen=True, eq=False)
class OptionFamily:
    """The options of another program.

    Attributes:
        prefix: how their names begin in slime.
        program: the name of the program in messages.
        parser: "module:class" of the class whose static method `add_cli_args(parser)` declares them.
        required: the part of the command line without which the program's parser accepts none.
        own: flags that slime sets itself → what it sets them to.
    """

    prefix: str
    program: str
    parser: str
    required: tuple[str, ...]
    own: Mapping[str, str]


SERVER = OptionFamily(
    "sglang_",
    "SGLang",
    "sglang.srt.server_args:ServerArgs",
    ("--model-path", "model"),
    {
        "--model-path": "--hf-checkpoint, or the newest weights",
        "--model": "--hf-checkpoint, or the newest weights",
        "--host": "the address of the machine that it starts on",
        "--port": "a port that is free",
        "--tp-size": "--rollout-num-gpus-per-engine / --sglang-pp-size",
        "--tp": "--rollout-num-gpus-per-engine / --sglang-pp-size",
        "--tensor-parallel-size": "--rollout-num-gpus-per-engine / --sglang-pp-size",
        "--weight-version": "the version of the weights",
        "--nnodes": "1",
        "--node-rank": "0",
        "--config": "nothing: give its options one by one",
        "--skip-tokenizer-init": "false: servers look for stop strings",
    },
)
ROUTER = OptionFamily(
    "router_",
    "sglang-router",
    "sglang_router.router_args:RouterArgs",
    (),
    {
        "--host": "--sglang-router-ip",
        "--port": "--sglang-router-port",
        "--worker-urls": "the servers, once they answer",
        "--request-timeout-secs": "--sglang-router-request-timeout-secs",
        "--pd-disaggregation": "nothing: servers that only prefill or decode are not supported",
        "--prefill": "nothing: servers that only prefill or decode are not supported",
        "--decode": "nothing: servers that only prefill or decode are not supported",
        "--mini-lb": "nothing: servers that only prefill or decode are not supported",
    },
)


def server_options(names: Sequence[str]) -> type[ArgumentGroup]:
    """Return the group of the `--sglang-…` options with these names.

    Raises:
        ArgumentError: the installed SGLang has no such option, or none is installed.
    """
    return _group(SERVER, names)


def router_options(names: Sequence[str]) -> type[ArgumentGroup]:
    """Return the group of the `--router-…` options with these names.

    Raises:
        ArgumentError: the installed router has no such option, or none is installed.
    """
    return _group(ROUTER, names)


def command_line(family: OptionFamily, values: Mapping[str, Any]) -> list[str]:
    """Return the part of a program's command line with the options that somebody set.

    Args:
        values: all options of a run by name; those of other families and those that are None are left out.

    Raises:
        ArgumentError: an option is one that slime sets itself, or the program does not accept its value.
    """
    given = {
        name: value
        for name, value in values.items()
        if name.startswith(family.prefix) and name not in SGLangArguments.model_fields and value is not None
    }
    if not given:
        return []
    flags = _flags(family)
    found: list[str] = []
    for name, value in given.items():
        flag, action = flags[name]
        if flag in family.own:
            raise ArgumentError(
                f"{_shown(family, flag)} cannot be set: slime itself sets {family.program}'s {flag}, to "
                f"{family.own[flag]}."
            )
        found += _flag_and_values(flag, action, value)
    try:
        _parser(family).parse_args([*family.required, *found])
    except argparse.ArgumentError as error:
        where = f"{_shown(family, error.argument_name.split('/')[0])}: " if error.argument_name else ""
        raise ArgumentError(f"{where}{family.program} does not accept this: {error.message}.") from None
    return found


class _Parser(argparse.ArgumentParser):
    """A parser that raises an exception where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


@functools.cache
def _parser(family: OptionFamily) -> argparse.ArgumentParser:
    """Return a parser with the program's options.

    Raises:
        NotInstalled: the program cannot be imported.
    """
    module, _, name = family.parser.partition(":")
    try:
        options = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise NotInstalled(
            f"The options --{family.prefix.rstrip('_')}-… are those of {family.program}, which cannot be imported here "
            f"({error}). Install it with: {INSTALL}"
        ) from error
    parser = _Parser(add_help=False, allow_abbrev=False, exit_on_error=False)
    options.add_cli_args(parser)
    return parser


def _group(family: OptionFamily, names: Sequence[str]) -> type[ArgumentGroup]:
    """Return a group with an option for each name. Its default is None: the program has its own defaults.

    Raises:
        ArgumentError: the program has no such option, or is not installed.
    """
    flags = _flags(family)
    for name in names:
        if name not in flags:
            known = ["--" + other.replace("_", "-") for other in (*flags, *SGLangArguments.model_fields)]
            flag = "--" + name.replace("_", "-")
            own = "--" + name.removeprefix(family.prefix).replace("_", "-")
            raise ArgumentError(
                f"There is no option {flag}, as the installed {family.program} has no {own}.{did_you_mean(flag, known)}"
            )

    def accepted(self: ArgumentGroup) -> ArgumentGroup:
        try:
            command_line(family, {name: getattr(self, name) for name in names})
        except ArgumentError as error:
            raise ValueError(str(error)) from None
        return self

    check = model_validator(mode="after")(accepted)
    fields: dict[str, Any] = {}
    for name in names:
        help_text = " ".join((flags[name][1].help or "").split())
        secret = _SECRET.search(name) is not None
        kind = _type(flags[name][1])
        if secret:
            kind = list[SecretStr] | None if flags[name][1].nargs else SecretStr | None
        fields[name] = (kind, option(None, help_text, affects_result=family is SERVER and not secret, secret=secret))
    return create_model(
        f"{family.prefix.title().rstrip('_')}Options",
        __base__=ArgumentGroup,
        __module__=__name__,
        __doc__=f"{family.program}'s own options",
        __validators__={"accepted_" + "_".join(names): check},  # type: ignore[dict-item]  # of any signature
        **fields,
    )


def _flags(family: OptionFamily) -> dict[str, tuple[str, argparse.Action]]:
    """Return the program's flags, and what the parser does with them, by the names of the options in slime."""
    return {
        name: (flag, action)
        for flag, action in _parser(family)._option_string_actions.items()  # argparse has no public list of its flags
        if flag.startswith("--")
        and not (isinstance(action, argparse.BooleanOptionalAction) and flag.startswith("--no-"))
        and (name := family.prefix + flag[2:].replace("-", "_")) not in SGLangArguments.model_fields
    }


def _type(action: argparse.Action) -> Any:
    """Return the type of an option in slime."""
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return bool | None
    if action.nargs is None or action.nargs == "?":
        return str | int | float | dict | None
    return list[str | int | float] | None


def _flag_and_values(flag: str, action: argparse.Action, value: Any) -> Iterable[str]:
    """Return the part of the command line that sets one option."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, bool):
        return [flag] if value else []
    values = value if isinstance(value, list) else [value]
    return [flag, *map(_word, values)]


def _word(value: Any) -> str:
    if isinstance(value, SecretStr):
        return str(value.get_secret_value())
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _shown(family: OptionFamily, flag: str) -> str:
    """Return the flag of the option in slime."""
    return f"--{family.prefix.rstrip('_')}-{flag.lstrip('-')}"
