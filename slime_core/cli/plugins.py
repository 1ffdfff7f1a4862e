"""`slime plugins`: what is installed, what it provides, and what failed to load."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from packaging.utils import canonicalize_name

from slime_core.arguments.namespace import Namespace
from slime_core.cli import check_plugin, new
from slime_core.contracts.kinds import KINDS, OBSERVERS
from slime_core.errors import PluginError, did_you_mean
from slime_core.plugins import PluginInfo, Plugins


def main(argv: list[str], plugins: Plugins) -> int:
    """List plugins, or with --components what they provide. `new` makes a package, `check` checks one."""
    if argv and argv[0] == "new":
        return new.main(argv[1:], plugins)
    if argv and argv[0] == "check":
        return check_plugin.main(argv[1:], plugins)
    parser = argparse.ArgumentParser(
        prog="slime plugins",
        description="List the installed plugins.",
        epilog="slime plugins new NAME --kind KIND  makes a package with a plugin in it; "
        "slime plugins check DISTRIBUTION  checks that an installed one keeps its contracts.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--components", action="store_true", help="list the components of every kind instead")
    parser.add_argument(
        "--why", metavar="NAME", help="tell all of one plugin: what it provides, its traceback if it failed"
    )
    options = parser.parse_args(argv)
    Namespace(plugins)  # sets plugins aside whose options cannot be used
    if options.why:
        print(_story(plugins, options.why))
        return 0
    rows = _components(plugins) if options.components else [_describe(info) for info in plugins.infos]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        _show(rows)
    return 0


def _describe(info: PluginInfo) -> dict[str, object]:
    """Return the row of one plugin."""
    return {
        "plugin": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "hooks": [hook.removeprefix("slime_") for hook in info.hooks],
        "file": info.file,
        **({"reason": info.reason} if info.reason else {}),
    }


def _components(plugins: Plugins) -> list[dict[str, object]]:
    """Return a row for every component that can be selected."""
    return [
        {
            "kind": kind,
            "name": component.name,
            "plugin": component.plugin.label,
            "summary": component.summary,
            "option": KINDS[kind].options[0],
        }
        for kind in KINDS
        for component in plugins.components(kind).values()
    ]


def _show(rows: list[dict[str, object]]) -> None:
    """Print rows as a table. The reason for which a plugin is not loaded stands in the place of its hooks."""
    from rich.text import Text

    from slime_core.cli.tables import new_table, show

    if not rows:
        print("nothing is installed")
        return
    columns = [name for name in rows[0] if name not in ("file", "reason")]
    table = new_table(*columns)
    for row in rows:
        cells = [", ".join(value) if isinstance(value := row[name], list) else str(value) for name in columns]
        if "reason" in row:
            cells[-1] = str(row["reason"])
        table.add_row(*map(Text, cells))
    show(table)


def _story(plugins: Plugins, name: str) -> str:
    """Return everything that is known of one plugin, or of all plugins of one distribution."""
    wanted = canonicalize_name(name)
    found = [i for i in plugins.infos if wanted in (canonicalize_name(i.name), canonicalize_name(i.distribution))]
    if not found:
        known = [n for info in plugins.infos for n in (info.name, info.distribution)]
        raise PluginError(f"There is no plugin {name!r}.{did_you_mean(name, known)} `slime plugins` lists them.")
    lines: list[str] = []
    for info in found:
        lines += [f"{info.label}: {info.status}" + (f", {info.reason}" if info.reason else "")]
        lines += [
            f"  entry point   {info.name} = {info.target}",
            f"  needs         slime-core {info.requires_core or 'any'}",
        ]
        lines += [f"  file          {info.file}"] if info.file else []
        for component in plugins.all_components():
            if component.plugin is info:
                lines.append(f"  {component.kind:<13} {component.name}: {component.summary}")
                lines += [f"    {'reads':<11} {_in_words(read)}"] if (read := component.reads_options) else []
        lines += ["  observes      " + ", ".join(o)] if (o := [h for h in info.hooks if h in OBSERVERS]) else []
        lines += [info.traceback.rstrip()] if info.traceback else []
    return "\n".join(lines)


def _in_words(declared: Sequence[str]) -> str:
    """Return which options a component declares to read: "--a, --b if --c, all of MyArguments"."""
    words = []
    for entry in declared:
        name, _, condition = entry.partition("?")
        text = _flag(name) if name.islower() else f"all of {name}"
        if condition:
            text += f" {'unless' if condition.startswith('!') else 'if'} {_flag(condition.lstrip('!'))}"
        words.append(text)
    return ", ".join(words)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
