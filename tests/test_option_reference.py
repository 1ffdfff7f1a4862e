"""The option reference is up to date, and every option explains itself."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from slime_core.arguments.namespace import Namespace
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import FIRST_PARTY

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
OPTIONS = [option for option in Namespace(Plugins()).options.values() if option.distribution in FIRST_PARTY]


def test_the_page_is_what_the_script_writes() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "generate_option_reference.py"))["page"]()
    assert page == PAGE, "docs/options.md is out of date; run: python scripts/generate_option_reference.py"


def test_every_option_has_one_row_with_its_help_text_its_default_and_its_readers() -> None:
    rows = [re.split(r"(?<!\\) \| ", row[2:-2]) for row in PAGE.splitlines() if row.startswith("| `--")]
    assert all(len(row) == 6 for row in rows)
    assert sorted(row[0] for row in rows) == sorted(f"`{option.flag}`" for option in OPTIONS)
    by_flag = {row[0]: row for row in rows}
    assert by_flag["`--lr`"][1:3] == ["number ≥ 0", "`1e-06`"]
    assert by_flag["`--lr`"][4:] == ["train backend `megatron`, `torch`", "yes"]
    assert by_flag["`--kl-loss-coef`"][3].endswith("Has an effect only with `--use-kl-loss`.")
    assert by_flag["`--save`"][4:] == ["core", "no"]


def test_every_option_explains_itself_in_a_sentence() -> None:
    silent = [option.flag for option in OPTIONS if not (option.field.description or "").endswith(".")]
    assert silent == []


def test_every_option_is_read_by_something() -> None:
    unread = [
        row.split("`")[1] for row in PAGE.splitlines() if row.startswith("| `--") and re.search(r"\|  \| \w+ \|$", row)
    ]
    assert unread == []
