"""`slime plugins check`: the contract kit on installed distributions."""

from __future__ import annotations

import argparse

from slime_core.plugins import Plugins


def main(argv: list[str], plugins: Plugins) -> int:
    """Check distributions and print a table. 1 when something fails."""
    parser = argparse.ArgumentParser(
        prog="slime plugins check",
        description="Call everything that an installed distribution provides with small inputs, and compare with the "
        "contracts.",
        epilog="Further options are handed to the components as in a run, for example --wandb-mode offline.",
        allow_abbrev=False,
    )
    parser.add_argument("distribution", help="what pip knows it as")
    from slime_core.testing import TIME_LIMIT, parts_of, table

    parser.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, help="seconds for one check (default: %(default)g)"
    )
    given, options = parser.parse_known_args(argv)
    parts = parts_of(given.distribution, plugins, options, given.time_limit)
    findings = [finding for part in parts for finding in part.inspect()]
    print(table(findings))
    count = {status: sum(f.status == status for f in findings) for status in ("ok", "failed", "not checked")}
    print("\n" + ", ".join(f"{number} {status}" for status, number in count.items() if number))
    return int(count["failed"] > 0)
