"""The templates of a package extend the shared ones, and nothing that is put into them is read as markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from slime_core.pages import PageToken, page_environment, visible

TEMPLATE = """{% extends "page.html.jinja" %}
{% from "tokens.html.jinja" import token_strip %}
{% block title %}{{ title }}{% endblock %}
{% block body %}
{{ token_strip(tokens) }}
{% endblock %}
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`report(**values)`: a page of a package of somebody's own."""
    (tmp_path / "own_report" / "templates").mkdir(parents=True)
    (tmp_path / "own_report" / "__init__.py").touch()
    (tmp_path / "own_report" / "templates" / "report.html.jinja").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    return page_environment("own_report").get_template("report.html.jinja").render


def test_a_page_has_the_shared_style_and_token_strip(report) -> None:
    page = report(title="Mine", tokens=[PageToken("a", 7, True, True), PageToken("b", 8, False, False)])
    assert page.startswith("<!doctype html>")
    assert "<title>Mine</title>" in page
    assert ".tokens {" in page
    strip = page.partition('<div class="tokens">')[2].partition("</div>")[0]
    assert strip == (
        '<i class="t s" title="id 7, position 0, trained">a</i><i title="id 8, position 1, not trained">b</i>'
    )


def test_what_is_put_in_is_escaped(report) -> None:
    page = report(title="</title><script>", tokens=[PageToken("<b>'\"&", 7, True, False)])
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in page
    assert "&lt;b&gt;&#39;&#34;&amp;</i>" in page
    assert "<script" not in page


def test_a_value_that_is_missing_is_an_error(report) -> None:
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        report(tokens=[])


def test_what_is_invisible_is_shown() -> None:
    assert visible("a\tb\r\n\u00a0\u200b\ufeff") == "a⇥\tb␍↵\n⍽[ZWSP][BOM]"


def test_what_turns_text_around_or_has_no_form_is_named() -> None:
    assert visible("a\u202eb\u200d\x1b[31m\x00\u2028") == "a[U+202E]b[U+200D][U+001B][31m[U+0000][U+2028]"
    assert visible("a\u3164b\u2800") == "a[U+3164]b[U+2800]"  # drawn as nothing, though a letter and a symbol
    assert visible("é好🦥 <ok>") == "é好🦥 <ok>"
