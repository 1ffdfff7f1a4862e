"""`slime plugins`: what is installed, what it provides, and what failed to load."""

from __future__ import annotations

import argparse
import json

from packaging.utils import canonicalize_name

from slime_core.cli import check_plugin, new
from slime_core.contracts.kinds import KINDS, OBSERVERS
from slime_core.errors import PluginError, did_you_mean
from slime_core.plugins import PluginInfo, Plugins


def main(argv: list[str], plugins: Plugins) -> int:
    """List plugins, or with --components what they provide. `new` makes a package, `check` checks one."""
    if argv and argv[0] in ("new", "check"):
        return (new if argv[0] == "new" else check_plugin).main(argv[1:], plugins)
    parser = argparse.ArgumentParser(
        prog="slime plugins",
        description="List the installed plugins.",
        epilog="slime plugins new NAME --kind KIND  makes a package with a plugin in it; "
        "slime plugins check DISTRIBUTION  checks that an installed one keeps its contracts.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--components", action="store_true", help="list the components of every kind instead")
    parser.add_argument("--why", metavar="NAME", help="the whole story of one plugin, its traceback if it failed")
    options = parser.parse_args(argv)
    if options.why:
        print(_story(plugins, options.why))
        return 0
    rows: list[dict[str, object]]
    if options.components:
        rows = [
            {
                "kind": kind,
                "name": p.name,
                "plugin": p.plugin.label,
                "summary": p.summary,
                "option": KINDS[kind].options[0],
            }
            for kind in KINDS
            for p in plugins.components(kind).values()
        ]
    else:
        rows = [_describe(info) for info in plugins.infos]
    print(json.dumps(rows, indent=2) if options.json else _table(rows))
    return 0


def _story(plugins: Plugins, name: str) -> str:
    """Everything that is known of one plugin."""
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
        for kind in KINDS:
            for component in plugins.components(kind).values():
                if component.plugin is info:
                    lines.append(f"  {kind:<13} {component.name}: {component.summary}")
        lines += ["  observes      " + ", ".join(o)] if (o := [h for h in info.hooks if h in OBSERVERS]) else []
        lines += [info.traceback.rstrip()] if info.traceback else []
    return "\n".join(lines)


def _describe(info: PluginInfo) -> dict[str, object]:
    return {
        "plugin": info.name,
        "distribution": info.distribution,
        "version": info.version,
        "status": info.status,
        "hooks": [hook.removeprefix("slime_") for hook in info.hooks],
        "file": info.file,
        **({"reason": info.reason} if info.reason else {}),
    }


def _table(rows: list[dict[str, object]]) -> str:
    if not rows:
        return "nothing is installed"
    columns = [c for c in rows[0] if c != "file"]
    text = [[", ".join(v) if isinstance(v := row[c], list) else str(v) for c in columns] for row in rows]
    widths = [max(len(c), *(len(line[i]) for line in text)) for i, c in enumerate(columns)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True)).rstrip()]
    for row, line in zip(rows, text, strict=True):
        lines.append("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
        if "reason" in row:
            lines.append(f"    {row['reason']}")
    return "\n".join(lines)
