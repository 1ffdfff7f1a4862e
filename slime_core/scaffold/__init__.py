"""New plugin packages: behind `slime plugins new`.

A package is written from the files in `templates/`: `kinds/KIND.py.template` is a small component of that kind that
works, `kinds/test_KIND.py.template` its test, and the others are the same for all kinds. They are
`string.Template` texts; the names in them are the keys of `_fields`.
"""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from string import Template

from packaging.utils import canonicalize_name

from slime_core import __version__
from slime_core.contracts.kinds import KINDS
from slime_core.errors import ArgumentError, did_you_mean
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import FIRST_PARTY

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_NAME = 40
"""Characters; the lines of the templates leave room for so many."""


@dataclass(frozen=True)
class Example:
    """What the templates of one kind make.

    Attributes:
        summary: what the component does, for lists.
        needs: what it imports besides slime-core.
        tests_need: what its tests import besides pytest.
    """

    summary: str
    needs: tuple[str, ...] = ()
    tests_need: tuple[str, ...] = ()


EXAMPLES = {
    "reward": Example("1 when the last line of the response has the label in it"),
    "dynamic_filter": Example("keeps groups whose rewards differ"),
    "sample_filter": Example("leaves out cut-off samples of groups that have finished ones"),
    "all_samples_process": Example("counts the questions that are always, sometimes and never answered rightly"),
    "reward_post_process": Example("ranks in the group in place of rewards"),
    "rollout_log": Example("prints the best and the worst answer"),
    "eval_rollout_log": Example("prints a line for each evaluation set"),
    "sample_converter": Example("trains only the beginnings of long answers"),
    "advantage": Example("rewards less the median of their group", ("torch>=2.6",)),
    "importance_weight": Example("trainer's over engine's probability, bounded", ("torch>=2.6",)),
    "loss": Example("negative log-likelihood that dwells on improbable tokens", ("torch>=2.6",)),
    "loss_mask": Example("only the last message", tests_need=("transformers>=4.56", "jinja2>=3.1")),
    "rollout": Example("every token of a text or conversation is trained", ("transformers>=4.56",), ("jinja2>=3.1",)),
    "generator": Example("lets an answer that was cut off go on", tests_need=("transformers>=4.56", "jinja2>=3.1")),
    "buffer_pop": Example("takes the groups that are nearest to their end"),
    "data_source": Example("sums of two numbers, made up without a file"),
    "converter": Example("problem, solution"),
    "tracker": Example("a CSV file in the run directory"),
    "engine": Example(
        "random tokens, for trying out a rollout without a model",
        tests_need=("torch>=2.6", "transformers>=4.56", "jinja2>=3.1"),
    ),
}

NOT_SMALL = {
    "command": "A command is a function main(argv, plugins) that a slime_commands hook names. Start from "
    "`slime plugins new NAME --kind converter` and slime_core.cli.check_plugin, which is one.",
    "train_backend": "There is no small train backend to start from. Read slime_core/contracts/train_backend.py, which is the contract, "
    "and slime_torch/backend.py of slime-torch, which keeps it; `slime plugins check` tests yours.",
}
"""Kinds without templates, and what to do instead."""


@dataclass(frozen=True)
class NewPackage:
    """What was made: the folder, and the component's name."""

    folder: Path
    component: str


def new_package(name: str, kind: str, parent: Path, plugins: Plugins) -> NewPackage:
    """Write a package with one component of `kind` into the new folder `parent/name`.

    Args:
        plugins: what is installed, with whose components the new one must not clash.

    Raises:
        ArgumentError: the name or the kind cannot be used, or the folder exists.
    """
    name, kind = _checked_name(name), _checked_kind(kind)
    if taken := plugins.find(kind, name.replace("-", "_")):
        raise ArgumentError(
            f"There is a {kind} {taken.name!r} already, in {taken.plugin.label}; two of one name cannot be installed "
            "together. Choose another name."
        )
    folder = parent / name
    if folder.exists():
        raise ArgumentError(f"{folder} exists. Choose another name, or another folder with --dir; nothing was written.")
    fields = _fields(name, kind)
    package = fields["package"]
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{package}/__init__.py": "__init__.py",
        f"src/{package}/plugin.py": "plugin.py",
        f"src/{package}/{kind}.py": f"kinds/{kind}.py",
        "tests/test_contract.py": "test_contract.py",
        f"tests/test_{kind}.py": f"kinds/test_{kind}.py",
    }
    texts = {path: _render(template, fields) for path, template in files.items()}
    for path, text in {**texts, f"src/{package}/py.typed": ""}.items():
        file = folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"{file} cannot be written: {error.strerror or error}.") from None
    return NewPackage(folder, fields["component"])


def _render(template: str, fields: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(fields)


def _fields(name: str, kind: str) -> dict[str, str]:
    """What the templates may mention."""
    package, example, option = name.replace("-", "_"), EXAMPLES[kind], KINDS[kind].options[0]
    is_class = isinstance(KINDS[kind].contract, type)
    class_name = "".join(word.capitalize() for word in name.split("-"))
    command = (
        f"slime data convert --from {package} rows.jsonl chat.jsonl"
        if kind == "converter"
        else f"slime train recipe.yaml {option} {package}"
    )
    return {
        "name": name,
        "package": package,
        "component": package,
        "function": package,
        "class_name": class_name,
        "target": class_name if is_class else package,
        "kind": kind,
        "kind_in_words": kind.replace("_", " "),
        "hook": KINDS[kind].hook,
        "contract": KINDS[kind].contract.__name__,
        "option": option,
        "command": command,
        "summary": example.summary,
        "dependencies": _toml_list((_core_requirement(), *example.needs)),
        "test_dependencies": _toml_list(("pytest>=8", *example.tests_need)),
    }


def _core_requirement() -> str:
    """What a package made with this slime-core needs of it: "slime-core>=0.1,<0.2" for 0.1.3."""
    major, minor = __version__.split(".")[:2]
    return f"slime-core>={major}.{minor},<{major}.{int(minor) + 1}"


def _toml_list(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"


def _checked_name(given: str) -> str:
    """The normal form of a distribution's name.

    Raises:
        ArgumentError: pip or Python could not use it, or it is taken.
    """
    name = str(canonicalize_name(given))
    package = name.replace("-", "_")
    problem = ""
    if not re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]", given):
        problem = "a name has letters, digits and single '-', begins with a letter and ends with a letter or digit"
    elif len(name) > LONGEST_NAME:
        problem = f"it has {len(name)} characters, {LONGEST_NAME} are the most"
    elif not package.isidentifier() or keyword.iskeyword(package):
        problem = f"Python could not import a package called {package!r}"
    elif package in sys.stdlib_module_names:
        problem = f"the package {package!r} would hide Python's own module"
    elif name in FIRST_PARTY:
        problem = "it is one of slime's own distributions"
    if problem:
        raise ArgumentError(f"{given!r} cannot be the name of a package: {problem}. Choose one such as 'my-reward'.")
    return name


def _checked_kind(given: str) -> str:
    kind = given.replace("-", "_").lower()
    if kind in NOT_SMALL:
        raise ArgumentError(NOT_SMALL[kind])
    if kind not in EXAMPLES:
        raise ArgumentError(
            f"There is no kind {given!r}.{did_you_mean(kind, EXAMPLES)} There are: {', '.join(sorted(EXAMPLES))}."
        )
    return kind
