"""Writes docs/hooks.md from slime_core: `python scripts/generate_hook_reference.py`. A test fails when it is not up to date.

The hooks come from `hookspecs.py`, what a component looks like from `contracts.py`, and the options that choose it from
`plugins/kinds.py`. The sources are read as text, so that annotations appear as they were written.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slime_core import hookspecs, lazy, sample
from slime_core.contracts import advantage, engine, loss
from slime_core.contracts import data as masks
from slime_core.contracts.kinds import KINDS, Kind
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.training import batches as batch

PAGE = Path(__file__).parent.parent / "docs" / "hooks.md"

SECTIONS = {"configuration": "Options", "providers": "Providers", "observers": "Observers"}
"""Comment rulers of `hookspecs.py` and what the page calls them."""

TYPES = (
    lazy.Lazy,
    ArgumentGroup,
    option,
    sample.Sample,
    sample.RolloutOutput,
    masks.MaskedTokens,
    batch.TrainBatch,
    loss.LossInputs,
    loss.Reduce,
    loss.LossOutputs,
    loss.reads,
    loss.needs_gradient_at_zero_advantage,
    advantage.AdvantageInputs,
    advantage.AdvantageOutputs,
    engine.Generation,
)

EXTRAS = {
    "buffer_pop": "the component that `--buffer-filter-path` chooses",
    "plugins": "`slime_core.plugins.Plugins`, to select further components",
    "importance_weight": "the component that `--custom-tis-function-path` chooses, or None",
    "engine": "the run's `InferenceEngine`, or None",
    "background": "a `slime_core.contracts.rollout.Background`, where it keeps what it goes on doing between its calls",
}
"""What the keyword parameters hold that a component may ask for."""


def page() -> str:
    """The whole page."""
    parts = [
        "# Hooks",
        "<!-- Written by scripts/generate_hook_reference.py from slime_core; do not edit. -->",
        "New here? Start with [Write a plugin](write-a-plugin.md).",
        (hookspecs.__doc__ or "").partition("\n\n")[2],
        "## Overview",
        _overview(),
    ]
    kinds = {kind.hook: kind for kind in KINDS.values()}
    for title, hooks in _hooks_by_section().items():
        parts.append(f"## {SECTIONS[title]}")
        for hook in hooks:
            parts += [f"### {hook.name}", _code(_signature(hook)), ast.get_docstring(hook) or ""]
            if hook.name in kinds:
                parts += _component(kinds[hook.name])
    parts += ["## Types", "What hooks return, and what components receive and return."]
    for described in TYPES:
        parts += [f"### {described.__name__}", f"`{described.__module__}.{described.__name__}`", *_docstring(described)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _hooks_by_section() -> dict[str, list[ast.FunctionDef]]:
    """The hooks of `hookspecs.py` in their order, by the comment ruler that they stand under."""
    source = inspect.getsource(hookspecs)
    found: dict[str, list[ast.FunctionDef]] = {}
    for section in re.split(r"^# -{20,} ", source, flags=re.MULTILINE)[1:]:
        title, _, code = section.partition("\n")
        found[title] = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    return found


def _overview() -> str:
    rows = ["| hook | provides | chosen by |", "|---|---|---|"]
    rows += [f"| {_link(kind.hook)} | {name.replace('_', ' ')} | {_options(kind)} |" for name, kind in KINDS.items()]
    rows += ["", "| observer | when it is called |", "|---|---|"]
    for hook in _hooks_by_section()["observers"]:
        first_sentence = " ".join((ast.get_docstring(hook) or "").split()).partition(". ")[0].rstrip(".")
        rows.append(f"| {_link(hook.name)} | {first_sentence} |")
    return "\n".join(rows)


def _component(kind: Kind) -> list[str]:
    contracts = [kind.contract, *([kind.alternative] if kind.alternative else [])]
    parts = ["**The component**", "\n\nor\n\n".join(_code(_contract(contract)) for contract in contracts)]
    if kind.extras:
        asked = "; ".join(f"`{extra}`, {EXTRAS[extra]}" for extra in kind.extras)
        parts.append(f"It may name further keyword parameters, and is then given them: {asked}.")
    return parts


def _contract(contract: Any) -> str:
    """The source of a contract, which is nothing but signatures and docstrings."""
    source = textwrap.dedent(inspect.getsource(contract))
    return re.sub(r"\n +raise NotImplementedError$", "", source, flags=re.MULTILINE).rstrip()


def _signature(hook: ast.FunctionDef) -> str:
    assert hook.returns is not None
    return f"def {hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}"


def _docstring(described: Any) -> Iterator[str]:
    """A docstring as Markdown: sections such as `Args:` become lists, the rest is prose as it stands."""
    for block in re.split(r"\n\n(?=\S)", inspect.getdoc(described) or ""):
        title, _, body = block.partition("\n")
        if re.fullmatch(r"(Args|Attributes):", title):
            entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
            yield "\n".join(re.sub(r"^([\w, ]+): ", r"- `\1`: ", " ".join(entry.split())) for entry in entries)
        else:
            yield block


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _options(kind: Kind) -> str:
    return ", ".join(f"`{option}`" for option in kind.options)


def _link(hook: str) -> str:
    return f"[`{hook}`](#{hook})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
