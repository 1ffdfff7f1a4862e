"""`slime plugins check`: the contract kit on installed distributions."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from slime_core.plugins import Plugins

if TYPE_CHECKING:
    from rich.table import Table

    from slime_core.testing import Finding


def main(argv: list[str], plugins: Plugins) -> int:
    """Check a distribution and print a table. The exit status is 1 when something fails."""
    from slime_core.cli.tables import show
    from slime_core.testing import TIME_LIMIT, parts_of

    parser = argparse.ArgumentParser(
        prog="slime plugins check",
        description="Call everything that an installed distribution provides with small inputs, and compare with the "
        "contracts.",
        epilog="Further options are handed to the components as in a run, for example --wandb-mode offline.",
        allow_abbrev=False,
    )
    parser.add_argument("distribution", help="what pip knows it as")
    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, help="seconds for one check (default: %(default)g)"
    )
    given, options = parser.parse_known_args(argv)
    parts = parts_of(given.distribution, plugins, options, given.time_limit)
    findings = [finding for part in parts for finding in part.inspect()]
    show(findings_table(findings))
    count = {status: sum(f.status == status for f in findings) for status in ("ok", "failed", "not checked")}
    print("\n" + ", ".join(f"{number} {status}" for status, number in count.items() if number))
    return int(count["failed"] > 0)


def findings_table(findings: Iterable[Finding]) -> Table:
    """Return one row for every finding, with the reasons below the promises that are not kept."""
    from rich.text import Text

    from slime_core.cli.tables import new_table

    styles = {"ok": "green", "failed": "bold red", "not checked": "yellow"}
    table = new_table("part", "status", "promise")
    for finding in findings:
        promise = Text("\n").join(map(Text, [finding.check, *finding.why.splitlines()]))
        table.add_row(Text(finding.part), Text(finding.status, styles[finding.status]), promise)
    return table
