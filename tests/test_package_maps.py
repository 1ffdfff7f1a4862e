"""What is said of the tree is true: maps of packages list their files, dotted names exist, helper modules can be told apart."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [
    ROOT / "slime_core",
    *(path.parent for path in ROOT.glob("**/src/*/__init__.py") if ".venv" not in path.parts),
]
FOLDERS = sorted(path.parent for package in PACKAGES for path in package.rglob("__init__.py"))
ENTRY = re.compile(r"^ *(\w+\.py|\w+/) +\S", re.MULTILINE)


def listed(folder: Path) -> list[str]:
    """The files and folders that the map in a package's docstring lists."""
    return ENTRY.findall(ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or "")


@pytest.mark.parametrize("folder", [f for f in FOLDERS if listed(f)], ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_map_of_a_package_lists_its_modules_and_nothing_else(folder: Path) -> None:
    modules = {path.name for path in folder.glob("*.py") if path.name != "__init__.py"}
    packages = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    data = {f"{path.name}/" for path in folder.iterdir() if path.is_dir()} - packages  # may be listed
    assert sorted(name for name in listed(folder) if name not in data) == sorted(modules | packages)


def test_the_larger_packages_have_a_map() -> None:
    named_after_their_contents = {"slime_core", "groups", "behaviour"}  # the first is in docs/concepts.md
    larger = [f for f in FOLDERS if len(list(f.glob("*.py"))) > 6 and f.name not in named_after_their_contents]
    assert [str(f.relative_to(ROOT)) for f in larger if not listed(f)] == []


def test_the_concepts_page_explains_every_folder_of_the_core() -> None:
    core = ROOT / "slime_core"
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    section = page.partition("## The core's folders")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    explained = [name for row in rows for name in re.findall(r"`([\w./]+)`", row.split(" | ")[0])]
    folders = {f"{path.parent.name}/" for path in core.glob("*/__init__.py")}
    assert sorted(explained) == sorted(folders | {path.name for path in core.glob("[!_]*.py")})
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [name.rstrip("/").removesuffix(".py") for name in explained] == re.findall(r"\w+", " ".join(floors))


def module_file(name: str) -> Path | None:
    """The file of the module `name`, if one of the packages has it."""
    package, *parts = name.split(".")
    for folder in PACKAGES:
        if folder.name == package:
            place = folder.joinpath(*parts)
            return next((f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()), None)
    return None


def defined(nodes: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """The names that these statements define or import, each with the statements of its body if it is a class."""
    found: dict[str, list[ast.stmt]] = {}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = []
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name): [] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: [] for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    """Whether the sources define "package.module", "package.module.name" or "package.module.Class.name"."""
    if module_file(name):
        return True
    for depth in (1, 2):
        module, *attributes = name.rsplit(".", depth)
        if file := module_file(module):
            names = defined(ast.parse(file.read_text(encoding="utf-8")).body)
            return attributes[0] in names and (depth == 1 or attributes[1] in defined(names[attributes[0]]))
    return False


def test_every_dotted_name_in_docstrings_comments_and_guides_exists() -> None:
    packages = "|".join(
        folder.name for folder in PACKAGES if folder.name != "slime"
    )  # whose names are slime's, here or not
    name = re.compile(rf"(?<![\w./-])((?:{packages})(?:\.[A-Za-z_]\w*)+)(?![\w/])")
    files = [*(file for folder in PACKAGES for file in folder.rglob("*.py"))]
    files += [
        file
        for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "*/README.md", "*/*/README.md")
        for file in ROOT.glob(pattern)
    ]
    missing = {
        f"{found} in {file.relative_to(ROOT)}"
        for file in files
        for found in name.findall(file.read_text(encoding="utf-8"))
        if not found.endswith(".py") and not exists(found)
    }
    assert missing == set()


def test_helper_modules_beside_the_tests_have_names_of_their_own() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    folders = [
        *(ROOT / "tests", ROOT / "tests" / "invariants"),
        *ROOT.glob("slime_*/tests"),
        *ROOT.glob("plugins/*/tests"),
    ]
    assert sorted(options["pythonpath"]) == sorted([".", *(str(folder.relative_to(ROOT)) for folder in folders)])
    helpers = [f for folder in folders for f in folder.glob("*.py") if not f.name.startswith(("test_", "conftest"))]
    assert [name for name, count in Counter(file.name for file in helpers).items() if count > 1] == []
    for file in helpers:
        spec = importlib.util.find_spec(file.stem)
        assert spec is not None
        assert spec.origin == str(file), f"{file} hides behind {spec.origin}"


def test_the_page_of_invariants_names_tests_that_exist() -> None:
    folder = ROOT / "tests" / "invariants"
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(test_\w+\.py)`", page, re.MULTILINE)) == sorted(
        f.name for f in folder.glob("test_*.py")
    )
    elsewhere = re.findall(r"`(\S+\.py)::(test_\w+)`", page)
    assert len(elsewhere) > 20
    missing = [
        f"{file}::{name}" for file, name in elsewhere if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
