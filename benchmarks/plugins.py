"""How long the command line takes to start, with fifty further plugins installed: `python -m benchmarks.plugins`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.quiet import add_option, beside_others, require_quiet, sentence

EXTRA = 50
REPEATS = 5
CODE = """
from slime_core import Lazy, hookimpl

@hookimpl
def slime_rewards(): return {"reward_N": Lazy("pack_N.missing:it", "a reward")}

@hookimpl
def slime_run_started(args): ...
"""


def install(folder: Path, number: int) -> None:
    """One distribution with one plugin, as pip would leave it."""
    (folder / f"pack_{number}.py").write_text(CODE.replace("_N", f"_{number}"))
    info = folder / f"pack_{number}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: pack-{number}\nVersion: 1.0\nRequires-Dist: slime-core>=0.1\n"
    )
    (info / "entry_points.txt").write_text(f"[slime]\npack-{number} = pack_{number}\n")


def seconds(words: list[str], env: dict[str, str]) -> float:
    """The best of several runs, which a busy machine disturbs least."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_option(parser)
    require_quiet(parser.parse_args().under_load)
    _, others = beside_others(compare)
    print(sentence([others]))


def compare() -> None:
    """Print the seconds of each command with and without the further plugins."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(EXTRA):
            install(Path(name), number)
        many = {**os.environ, "PYTHONPATH": name}
        listed = subprocess.run(
            [sys.executable, "-m", "slime_core", "plugins"], env=many, capture_output=True, text=True
        )
        print(f"plugins loaded, with {EXTRA} further ones: {listed.stdout.count('loaded')}")
        print(f"{'command':<24} {'as installed':>12} {f'+{EXTRA} plugins':>12}")
        for label, words in {
            "python -c pass": ["-c", "pass"],
            "import slime_core": ["-c", "import slime_core"],
            "slime --help": ["-m", "slime_core", "--help"],
            "slime plugins": ["-m", "slime_core", "plugins"],
        }.items():
            print(f"{label:<24} {seconds(words, dict(os.environ)):>10.2f} s {seconds(words, many):>10.2f} s")


if __name__ == "__main__":
    main()
