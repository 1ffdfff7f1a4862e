"""Writes docs/hooks.md from slime_core: `python scripts/generate_hook_reference.py`. A test fails when it is not up to date.

The hooks come from `slime_core/hookspecs.py`; what a component looks like, which options choose it, and the types that its
contract mentions from the files of `slime_core/contracts/`. Sources are read as text, so that annotations appear as they were
written.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from slime_core import hookspecs, lazy, sample
from slime_core.contracts import checking
from slime_core.contracts.kind import FailurePolicy, Kind
from slime_core.contracts.kinds import KINDS

PAGE = Path(__file__).parent.parent / "docs" / "hooks.md"

SECTIONS = {"configuration": "Options", "providers": "Providers", "observers": "Observers"}
"""Comment rulers of `hookspecs.py` and what the page calls them."""

EXTRAS = {
    "buffer_pop": "the component that `--buffer-filter-path` chooses",
    "images": "what stands for the images of the conversation in its text, an `ImageTexts`",
    "template_kwargs": "the variables of the chat template, of `--apply-chat-template-kwargs`",
    "plugins": "`slime_core.plugins.Plugins`, to select further components",
    "components": "the components that a rollout function or a train backend may call in turn "
    "(`slime_core.rollout.components.RolloutComponents`, `slime_core.training.components.TrainComponents`)",
    "importance_weight": "the component that `--custom-tis-function-path` chooses, or None",
    "pg_loss_reducer": "the component that `--custom-pg-loss-reducer-function-path` chooses, or None",
    "quantised": "`--hf-checkpoint` as a [`QuantisedCheckpoint`](#quantisedcheckpoint), or None where it is not quantised",
    "engine": "the run's `InferenceEngine`, or None",
    "evaluation": "whether the sample is of an evaluation set",
    "rollout_id": "the number of the rollout; in an evaluation that of the one before it",
    "at_end": "a `contextlib.ExitStack` that is closed when the run ends, for what it keeps between its calls",
    "background": "a [`Background`](#background), where it keeps what it goes on doing between its calls",
}
"""What the keyword parameters hold that a component may ask for."""

OF_SAMPLES = (
    *("source", "dataset", "tools", "asked", "trained_mask", "effective_response_length"),
    *("get_reward_value", "append_response_tokens", "changed"),
)
"""Properties and methods of samples that hooks are meant to use; the others are for slime itself."""


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
    parts += ["## Checks", checking.__doc__ or ""]
    parts += ["## Types", "What hooks return, what components receive and return, and what they may do besides."]
    for described in _types():
        parts += [f"### {described.__name__}", f"`{described.__module__}.{described.__name__}`", *_described(described)]
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
    if kind.abilities:
        abilities = ", ".join(f"[`{ability.__name__}`](#{ability.__name__.lower()})" for ability in kind.abilities)
        parts.append(f"It may have further abilities: {abilities}.")
    if kind.policy:
        parts.append(f"By default {_policy(kind.policy)}; `--failure-policy {kind.name}:…` changes that.")
    return parts


def _policy(policy: FailurePolicy) -> str:
    """In words, what happens when a component fails."""
    limit = "has no time limit" if policy.timeout is None else f"may take {policy.timeout:g} s"
    retries = {0: "is not tried again", 1: "is tried once more"}.get(
        policy.retries, f"is tried {policy.retries} times more"
    )
    end = "what it was called for is dropped" if policy.on_failure == "drop" else "a failure ends the run"
    if policy.on_failure == "drop" and policy.abort_after is not None:
        end += f", up to {policy.abort_after} times in a row"
    return f"a call {limit} and {retries} when it fails, and {end}"


def _types() -> Iterator[Any]:
    """What the contracts speak of, file by file: public classes and functions that are no contracts themselves."""
    yield from (lazy.Lazy, sample.Sample, sample.Status, sample.RolloutOutput)
    contracts = {contract for kind in KINDS.values() for contract in (kind.contract, kind.alternative)}
    files = dict.fromkeys(
        [
            "slime_core.contracts.options",
            "slime_core.contracts.checking",
            "slime_core.contracts.memory",
            *(kind.contract.__module__ for kind in KINDS.values()),
        ]
    )
    for name in files:
        module = importlib.import_module(name)
        for described in vars(module).values():
            if not (inspect.isclass(described) or inspect.isfunction(described)) or described in contracts:
                continue
            if described.__module__ == name and not described.__name__.startswith("_"):
                yield described


def _described(described: Any) -> Iterator[str]:
    """A type or function for the page: a protocol in full, a function by its signature, and what their docstrings say."""
    if getattr(described, "_is_protocol", False):
        yield _code(_contract(described))
        return
    if inspect.isfunction(described):
        source = _contract(described)
        (node,) = ast.parse(source).body
        assert isinstance(node, ast.FunctionDef)
        yield _code("\n".join(source.splitlines()[: node.body[0].lineno - 1]).removesuffix(":"))
    yield from _docstring(described)
    if inspect.isclass(described) and issubclass(described, Enum):
        yield "\n".join(f"- `{member.name}`: {member.value!r}" for member in described)
    if described is sample.Sample:
        yield "What hooks may read of it besides, and call:"
        yield _code("\n\n\n".join(_method(vars(described)[name]) for name in OF_SAMPLES))


def _method(member: Any) -> str:
    """A property or method: its signature and docstring."""
    source = textwrap.dedent(inspect.getsource(member.fget if isinstance(member, property) else member))
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef)
    return "\n".join(source.splitlines()[: node.body[0].end_lineno])


def _contract(contract: Any) -> str:
    """The source of a contract, which is nothing but signatures and docstrings."""
    source = re.sub(r"^@runtime_checkable\n", "", textwrap.dedent(inspect.getsource(contract)))
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
