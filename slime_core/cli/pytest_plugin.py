"""`pytest --slime-check my-package`: the contract kit as tests, one for each plugin and component of a distribution.

pytest loads this module wherever slime-core is installed, so it imports nothing until the option is given; this is
also why it lies outside `slime_core.testing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from slime_core.testing import Part


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("slime").addoption(
        "--slime-check",
        action="append",
        default=[],
        metavar="DISTRIBUTION",
        help="also check that everything which this installed distribution provides to slime keeps its contract",
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    names = config.getoption("--slime-check")
    if not names:
        return
    from slime_core.errors import SlimeError
    from slime_core.plugins import Plugins
    from slime_core.testing import parts_of

    try:
        parts = [part for name in names for part in parts_of(name, Plugins())]
    except SlimeError as error:
        raise pytest.UsageError(f"--slime-check: {error}") from None
    items += [ContractItem.from_parent(session, name=f"slime: {part.title}", part=part) for part in parts]


class ContractItem(pytest.Item):
    """All checks of one plugin or component."""

    def __init__(self, *, part: Part, **others: Any) -> None:
        super().__init__(**others)
        self._part = part

    def runtest(self) -> None:
        from slime_core.cli.check_plugin import findings_table
        from slime_core.cli.tables import as_text
        from slime_core.testing import raise_for

        findings = self._part.inspect()
        self.add_report_section("call", "checks", as_text(findings_table(findings)))
        raise_for(findings)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[str, None, str]:
        return "slime", None, self.name
