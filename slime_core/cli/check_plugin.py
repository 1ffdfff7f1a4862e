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
    given, options = parser.parse_known_args(argv)
    from slime_core.testing import parts_of, table

    findings = [finding for part in parts_of(given.distribution, plugins, options) for finding in part.inspect()]
    print(table(findings))
    count = {status: sum(f.status == status for f in findings) for status in ("ok", "failed", "not checked")}
    print("\n" + ", ".join(f"{number} {status}" for status, number in count.items() if number))
    return int(count["failed"] > 0)
