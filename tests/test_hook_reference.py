"""The hook reference is up to date and complete, and no hook or kind of component goes untested."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from slime_core import hookspecs
from slime_core.contracts.kinds import KINDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "hooks.md").read_text()
PROVIDERS = {kind.hook for kind in KINDS.values()}
HOOKS = [name for name in vars(hookspecs) if name.startswith("slime_")]


@pytest.fixture(scope="module")
def tests() -> str:
    """The text of all tests. The guide counts as one: another test runs every block of it."""
    trees = ("tests", "slime_*/tests", "plugins/*/tests", "examples/*/tests")
    files = [path for tree in trees for path in ROOT.glob(f"{tree}/*.py") if path != Path(__file__)]
    return "\n".join(path.read_text() for path in [*files, ROOT / "docs" / "write-a-plugin.md"])


def test_the_page_is_what_the_script_writes():
    page = runpy.run_path(str(ROOT / "scripts" / "generate_hook_reference.py"))["page"]()
    assert page == PAGE, "docs/hooks.md is out of date; run: python scripts/generate_hook_reference.py"


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_section_with_its_text_and_a_line_in_the_overview(hook):
    section = re.search(rf"^### {hook}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, f"{hook} is not documented"
    assert f"def {hook}(" in section[1]
    assert (getattr(hookspecs, hook).__doc__ or "").strip().split("\n")[0] in section[1]
    assert hook == "slime_argument_groups" or f"| [`{hook}`](#{hook}) |" in PAGE


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_documented_with_its_contract_and_its_options(name):
    kind = KINDS[name]
    section = re.search(rf"^### {kind.hook}\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
    assert section
    for contract in filter(None, (kind.contract, kind.alternative)):
        assert re.search(rf"^(async def|def|class) {contract.__name__}\(", section[1], re.MULTILINE)
    for extra in kind.extras:
        assert f"`{extra}`, " in section[1]
    overview = next(line for line in PAGE.splitlines() if line.startswith(f"| [`{kind.hook}`]"))
    assert all(f"`{option}`" in overview for option in kind.options)


def test_every_link_of_the_page_leads_somewhere():
    headings = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", PAGE, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert target[1:] in headings if target.startswith("#") else (ROOT / "docs" / target).exists(), target


def test_every_kind_of_component_is_chosen_by_some_test(tests):
    def chosen(name: str) -> bool:
        options = [option for option in KINDS[name].options if option.startswith("--")]
        recipe_keys = [option.removeprefix("--").replace("-", "_") + ":" for option in options]
        return any(
            word in tests
            for word in (f'select("{name}"', *(f"{o} " for o in options), *(f'"{o}"' for o in options), *recipe_keys)
        )

    assert [name for name in KINDS if not chosen(name) and name != "command"] == [], "no test selects these kinds"
    assert "main([" in tests, "no test runs a command"


def test_every_hook_that_chooses_no_component_is_implemented_by_some_test(tests):
    missing = [hook for hook in HOOKS if hook not in PROVIDERS and f"def {hook}(" not in tests]
    assert missing == [], "no test implements these hooks"
