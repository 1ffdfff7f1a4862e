"""New packages with one component in them that works.

The templates are `string.Template` texts. The names in them are the keys of `_fields`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from string import Template

from slime_core import __version__
from slime_core.contracts.kinds import KINDS
from slime_core.errors import ArgumentError, did_you_mean
from slime_core.plugins import Plugins
from slime_core.scaffold.elsewhere import where_to_begin
from slime_core.scaffold.names import checked_name

TEMPLATES = Path(__file__).parent / "templates"


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


TORCH = "torch>=2.8"
TOKENIZERS = ("transformers>=5.0", "jinja2>=3.1")

EXAMPLES = {
    "reward": Example("1 when the last line of the response has the label in it"),
    "dynamic_filter": Example("keeps groups whose rewards differ"),
    "sample_filter": Example("leaves out cut-off samples of groups that have finished ones"),
    "reward_post_process": Example("ranks in the group in place of rewards"),
    "advantage": Example("rewards less the median of their group", (TORCH,)),
    "loss": Example("negative log-likelihood that dwells on improbable tokens", (TORCH,)),
    "precision_recipe": Example("integers of 8 bits, with a scale for each row", (TORCH,)),
    "loss_mask": Example("only the last message", tests_need=TOKENIZERS),
    "rollout": Example("every token of a text or conversation is trained", TOKENIZERS[:1], TOKENIZERS[1:]),
    "generator": Example("lets an answer that was cut off go on", tests_need=TOKENIZERS),
    "data_source": Example("sums of two numbers, made up without a file"),
    "converter": Example("problem, solution"),
    "tracker": Example("a CSV file in the run directory"),
    "engine": Example("random tokens, for trying out a rollout without a model", tests_need=(TORCH, *TOKENIZERS)),
}
"""The kinds that have templates. `where_to_begin` speaks of all others."""


@dataclass(frozen=True)
class NewPackage:
    """A package that was written.

    Attributes:
        folder: where it is.
        component: what its component is called.
    """

    folder: Path
    component: str


def new_package(name: str, kind: str, parent: Path, plugins: Plugins) -> NewPackage:
    """Write a package with one component of `kind` into the new folder `parent/name`.

    Args:
        plugins: what is installed, with whose components the new one must not clash.

    Raises:
        ArgumentError: the name or the kind cannot be used, or the folder exists.
    """
    name, kind = checked_name(name), _checked_kind(kind, plugins)
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


def _checked_kind(given: str, plugins: Plugins) -> str:
    """Return the name of a kind that has templates.

    Raises:
        ArgumentError: there is no such kind, or it has none.
    """
    kind = given.replace("-", "_").lower()
    if kind not in KINDS:
        raise ArgumentError(
            f"There is no kind {given!r}.{did_you_mean(kind, KINDS)} There are: {', '.join(sorted(KINDS))}."
        )
    if kind not in EXAMPLES:
        raise ArgumentError(where_to_begin(kind, plugins))
    return kind


def _render(template: str, fields: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(fields)


def _fields(name: str, kind: str) -> dict[str, str]:
    """Return what the names in the templates stand for."""
    package, example, row = name.replace("-", "_"), EXAMPLES[kind], KINDS[kind]
    class_name = "".join(word.capitalize() for word in name.split("-"))
    command = (
        f"slime data convert --from {package} rows.jsonl chat.jsonl"
        if kind == "converter"
        else f"slime train recipe.yaml {row.options[0]} {package}"
    )
    fields = {
        "name": name,
        "package": package,
        "component": package,
        "function": package,
        "class_name": class_name,
        "target": class_name if inspect.isclass(row.contract) else package,
        "kind": kind,
        "kind_in_words": kind.replace("_", " "),
        "a_kind": f"{'An' if kind[0] in 'aeiou' else 'A'} {kind.replace('_', ' ')}",
        "hook": row.hook,
        "contract": row.contract_path,
        "command": command,
        "summary": example.summary,
        "dependencies": _toml_list((_core_requirement(), *example.needs)),
        "test_dependencies": _toml_list(("pytest>=8", *example.tests_need)),
    }
    is_given_options = "args" in inspect.signature(row.contract).parameters
    return {**fields, "options": _render("README_options.md", fields) if is_given_options else ""}


def _core_requirement() -> str:
    """Return what a package made with this slime-core needs of it: "slime-core>=0.1,<0.2" for version 0.1.3."""
    major, minor = __version__.split(".")[:2]
    return f"slime-core>={major}.{minor},<{major}.{int(minor) + 1}"


def _toml_list(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(f'"{item}"' for item in items) + "]"
