"""Unpacks the wheels of a bundle that this Python can use: `unpack.py WHEELS FOLDER`. Needs nothing but Python, not even pip.

A wheel is a zip file whose content belongs on the import path as it is, with its entry points. `scripts/gpu-bundle.sh` puts this file into
the bundle.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path


def fits(name: str) -> bool:
    """Whether this Python can use a wheel with this file name: NAME-VERSION-PYTHON-ABI-PLATFORM.whl."""
    pythons, abis = (tags.split(".") for tags in name.removesuffix(".whl").split("-")[-3:-1])
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return "py3" in pythons or (own in pythons and own in abis) or "abi3" in abis


def main() -> int:
    wheels, target = Path(sys.argv[1]), Path(sys.argv[2])
    used: dict[str, str] = {}
    for wheel in sorted(wheels.glob("*.whl")):
        if fits(wheel.name):
            used[wheel.name.partition("-")[0]] = wheel.name
            with zipfile.ZipFile(wheel) as content:
                content.extractall(target)
    if missing := sorted({wheel.name.partition("-")[0] for wheel in wheels.glob("*.whl")} - set(used)):
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"The bundle has no wheel of {', '.join(missing)} for Python {version} here.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
