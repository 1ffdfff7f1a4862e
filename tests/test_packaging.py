"""Every distribution builds a wheel that is complete, licensed and typed, and the extras of slime-core lead to all of them."""

from __future__ import annotations

import ast
import email
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from slime_core import __version__
from slime_core.plugins import Plugins
from slime_core.scaffold import new_package

ROOT = Path(__file__).parent.parent
OWN = [
    ROOT,
    *(path.parent for path in sorted([*ROOT.glob("slime_*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")])),
    ROOT / "recipes",
]
"""The folders of slime's own distributions."""
FOLDERS = [*OWN, *(path.parent for path in sorted(ROOT.glob("examples/*/pyproject.toml")))]


def project(folder: Path) -> dict[str, object]:
    """The table `project` of a distribution."""
    table: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def name(folder: Path) -> str:
    return str(project(folder)["name"])


def package(folder: Path) -> Path:
    """The folder of the package that a distribution brings."""
    own = name(folder).replace("-", "_")
    return folder / own if folder == ROOT else folder / "src" / own


def run(*words: str | Path, **options: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "-q")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{distribution: its wheel} of all distributions."""
    folder = tmp_path_factory.mktemp("wheels")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, *FOLDERS)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert sorted(found) == sorted(name(folder) for folder in FOLDERS)
    return found


@pytest.fixture(scope="module")
def metadata(wheels: dict[str, Path]) -> dict[str, Message]:
    """{distribution: the metadata in its wheel}."""
    found = {}
    for distribution, path in wheels.items():
        with zipfile.ZipFile(path) as wheel:
            (member,) = (m for m in wheel.namelist() if m.endswith(".dist-info/METADATA"))
            found[distribution] = email.message_from_bytes(wheel.read(member))
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_wheel_holds_the_whole_package_its_types_and_its_licence(wheels: dict[str, Path], folder: Path) -> None:
    source = package(folder)
    packages = [source] if folder == ROOT else [path.parent for path in source.parent.glob("*/__init__.py")]
    inside = [path for source in packages for path in source.rglob("*") if path.is_file()]
    files = {path.relative_to(source.parent).as_posix() for path in inside}
    with zipfile.ZipFile(wheels[name(folder)]) as wheel:
        members = {member for member in wheel.namelist() if ".dist-info/" not in member}
        assert members == {file for file in files if "__pycache__" not in file}
        assert {f"{source.name}/py.typed" for source in packages} <= members
        (licence,) = (member for member in wheel.namelist() if member.endswith(".dist-info/licenses/LICENSE"))
        assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_the_metadata_of_a_wheel_is_complete(metadata: dict[str, Message], folder: Path) -> None:
    found = metadata[name(folder)]
    assert found["Version"] == version(folder)
    assert found["License-Expression"] == "Apache-2.0"
    assert found["Requires-Python"] == ">=3.11"
    assert found["Summary"]
    assert found["Description-Content-Type"] == "text/markdown"
    classifiers = found.get_all("Classifier") or []
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(classifiers)


def version(folder: Path) -> str:
    """What `__version__` is in a package, its only source."""
    for node in ast.parse((package(folder) / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{folder} has no __version__")


def test_every_distribution_and_every_new_package_needs_a_core_of_this_minor_version(tmp_path: Path) -> None:
    major, minor = (int(part) for part in __version__.split(".")[:2])
    expected = f"slime-core>={major}.{minor},<{major}.{minor + 1}"
    new = new_package("my-converter", "converter", tmp_path, Plugins()).folder
    for folder in [*FOLDERS, new]:
        if folder != ROOT:
            assert expected in project(folder)["dependencies"], name(folder)  # type: ignore[operator]


def test_the_extras_of_the_core_resolve_and_bring_every_distribution(metadata: dict[str, Message]) -> None:
    def needed(distribution: str, extra: str) -> Iterator[Requirement]:
        """What an extra of one of the distributions brings, directly or through further ones of them."""
        assert extra in (metadata[distribution].get_all("Provides-Extra") or []), f"{distribution}[{extra}]"
        for requirement in map(Requirement, metadata[distribution].get_all("Requires-Dist") or []):
            if requirement.marker and requirement.marker.evaluate({"extra": extra}):
                yield requirement
                if requirement.name in metadata:
                    always = map(Requirement, metadata[requirement.name].get_all("Requires-Dist") or [])
                    yield from (one for one in always if not one.marker)
                for further in requirement.extras if requirement.name in metadata else ():
                    yield from needed(requirement.name, further)

    extras = metadata["slime-core"].get_all("Provides-Extra") or []
    assert {"sft", "rl", "sglang", "trackers", "ray", "megatron", "all"} <= set(extras)
    brought = {extra: list(needed("slime-core", extra)) for extra in extras}
    own = {name(folder) for folder in OWN}
    for requirement in (r for listed in brought.values() for r in listed if r.name.startswith("slime-")):
        assert requirement.name in own
        assert requirement.specifier.contains(metadata[requirement.name]["Version"]), str(requirement)
    assert {r.name for r in brought["all"]} >= (own - {"slime-core"}) | {
        "ray",
        "math-verify",
        "reasoning-gym",
        "tensorboard",
        "wandb",
    }
    assert "sglang" not in {r.name for r in brought["all"]}
    assert {r.name for r in brought["sglang"]} >= {"sglang", "sglang-router", "slime-engine-sglang", "slime-losses"}
    assert {r.name for r in brought["rl"]} >= {"slime-rewards", "math-verify", "reasoning-gym"}
    assert {r.name for r in brought["sft"]} >= {"slime-rollout-sft", "slime-losses", "slime-torch"}


def test_installed_wheels_list_their_plugins_and_show_their_version(wheels: dict[str, Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    run(*PIP, "install", "--no-deps", "--target", site, *(wheels[name(folder)] for folder in OWN))
    environment = {**os.environ, "PYTHONPATH": str(site)}
    slime = (sys.executable, "-P", "-m", "slime_core")
    rows = json.loads(run(*slime, "plugins", "--json", cwd=tmp_path, env=environment))
    with_plugins = [folder for folder in OWN if folder != ROOT / "recipes"]
    listed = {row["distribution"]: row["version"] for row in rows}
    assert listed == {name(folder): version(folder) for folder in with_plugins}
    assert "@qwen3-4b-grpo" in run(*slime, "recipes", cwd=tmp_path, env=environment)
    assert {row["status"] for row in rows} == {"loaded"}
    assert all(row["file"].startswith(str(site)) for row in rows), "a plugin came from outside the folder"
    assert run(*slime, "--version", cwd=tmp_path, env=environment).strip() == f"slime {__version__}"


def test_the_scripts_install_all_distributions() -> None:
    line = next(
        line
        for line in (ROOT / "scripts" / "environment.sh").read_text().splitlines()
        if line.startswith("DISTRIBUTIONS=")
    )
    listed = {(ROOT / word).resolve() for word in line.partition("(")[2].rstrip(")").split()}
    assert listed == {folder.resolve() for folder in OWN}
