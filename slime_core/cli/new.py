"""`slime plugins new`: a package with a plugin in it that works."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from slime_core.contracts.kinds import KINDS
from slime_core.plugins import Plugins


def main(argv: list[str], plugins: Plugins) -> int:
    """Write the package and print what to do next."""
    from slime_core.scaffold import EXAMPLES, new_package

    templates = "\n".join(f"  {kind:<20} {example.summary}" for kind, example in sorted(EXAMPLES.items()))
    others = ", ".join(sorted(KINDS.keys() - EXAMPLES.keys()))
    parser = argparse.ArgumentParser(
        prog="slime plugins new",
        description="Make a package with one component that works: code, tests, README.",
        epilog=f"kinds, and what the new component does until you change it:\n{templates}\n\n"
        f"of the others it says where their contracts and examples are:\n  {others}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="what pip shall know it as, such as my-reward")
    parser.add_argument("--kind", required=True, help="what kind of component, see below")
    parser.add_argument("--dir", type=Path, default=Path(), help="where to put the new folder (default: here)")
    options = parser.parse_args(argv)
    made = new_package(options.name, options.kind, options.dir, plugins)
    folder = str(made.folder) if made.folder.is_absolute() else f"./{made.folder}"
    print(f"{folder} holds a new component, {made.component!r}. Next:\n")
    print(f"pip install -e {shlex.quote(f'{folder}[test]')}")
    print(f"pytest {shlex.quote(folder)}")
    print(f"slime plugins check {made.folder.name}")
    return 0
