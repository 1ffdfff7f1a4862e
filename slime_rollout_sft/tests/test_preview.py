"""The preview shows every token, which ones are trained, and what is wrong, and needs nothing but itself."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from slime_core.contracts.data import MaskedTokens
from slime_rollout_sft.lint import Looked, Tally
from slime_rollout_sft.masks.generators import auto
from slime_rollout_sft.preview import html, marked, page_tokens, terminal

Loader = Callable[[str], Any]
MESSAGES = [
    {"role": "user", "content": "Show <b>markup</b> & $money\t🦥"},
    {"role": "assistant", "content": "<script>alert('no')</script>\nline 🦥 two", "reasoning_content": "Why?"},
]


class Tokens(HTMLParser):
    """Collects the `<i title=…>` elements: (classes, title, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[set[str], str, str]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.attributes |= set(values)
        self._open = tag == "i" and "title" in values
        if self._open:
            self.found.append((set((values.get("class") or "").split()), values["title"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            classes, title, text = self.found[-1]
            self.found[-1] = (classes, title, text + data)


@pytest.fixture
def masked(family: Loader) -> MaskedTokens:
    return auto(family("llama-3"), MESSAGES, None)


def looked(masked: MaskedTokens, source: str = "rows.jsonl:1", label: Any = None) -> Looked:
    roles = ["assistant" if on else "template" for on in masked.loss_mask]
    return Looked(source, "used", "", masked.warnings, masked, roles, label)


def page(tokenizer: Any, *rows: Looked, **how: Any) -> str:
    tally = Tally()
    for row in rows:
        tally.add(row)
    return html([(row, row.masked) for row in rows if row.masked], len(rows), tokenizer, tally, **how)


def parse(page: str) -> Tokens:
    parser = Tokens()
    parser.feed(page)
    return parser


def test_the_page_shows_every_token_with_its_id_and_colours_the_trained_ones(
    family: Loader, masked: MaskedTokens
) -> None:
    found = parse(page(family("llama-3"), looked(masked))).found
    assert [int(re.match(r"id (\d+),", title)[1]) for _, title, _ in found] == masked.token_ids
    assert ["t" in classes for classes, _, _ in found] == [bool(trained) for trained in masked.loss_mask]
    shown = "".join(text for _, _, text in found).replace("⋯", "")
    assert shown == masked.text.replace("\n", "↵\n").replace("\t", "⇥\t")
    special = {text for classes, _, text in found if "s" in classes}
    assert {"<BOS>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"} == special


def test_the_page_loads_nothing_and_runs_nothing(family: Loader, masked: MaskedTokens) -> None:
    text = page(family("llama-3"), looked(masked, "<img src=x>", label="<img src=y>"))
    parser = parse(text)
    assert not parser.tags & {"script", "img", "link", "iframe", "object", "b"}
    assert not parser.attributes & {"src", "href", "onload", "onclick"}
    assert not re.search(r"https?://|url\(|@import", text)


def test_the_page_tells_counts_and_warnings_first(family: Loader, masked: MaskedTokens) -> None:
    tokenizer = family("llama-3")
    clean = auto(tokenizer, [MESSAGES[0], {"role": "assistant", "content": "Fine."}], None)
    text = page(tokenizer, looked(masked), looked(clean, "rows.jsonl:2"))
    tokens = len(masked.token_ids) + len(clean.token_ids)
    trained = sum(masked.loss_mask) + sum(clean.loss_mask)
    assert text.index("<dd>2</dd>") < text.index(f"<dd>{tokens}</dd>") < text.index(f"<dd>{trained} (")
    assert f"<dt>assistant</dt><dd>{trained} of {trained} tokens are trained</dd>" in text
    assert "rows.jsonl:1: the chat template drops the reasoning of message 2 (assistant): 'Why?'" in unescape(text)
    assert "'Why?'" not in text
    assert '<div class="bad"><dt>with warnings</dt><dd>1</dd></div>' in text
    assert text.index("drops the reasoning") < text.index('<div class="tokens">')
    assert f"{len(clean.token_ids)} tokens, {sum(clean.loss_mask)} trained" in text


def test_a_page_stays_small_and_says_what_it_leaves_out(family: Loader, masked: MaskedTokens) -> None:
    tokenizer = family("llama-3")
    times = 4000
    long = replace(
        masked,
        token_ids=masked.token_ids * times,
        loss_mask=masked.loss_mask * times,
        offsets=[],
        warnings=["x" * 9000],
    )
    rows = [looked(long, f"rows.jsonl:{number}", label="<" * 5000) for number in range(3)]
    text = page(tokenizer, *rows)
    assert 4_000_000 < len(text.encode()) < 10_000_000
    assert re.search(r"[\d,]+ further tokens are left out", text)
    assert "2 further rows are left out" in text
    short = page(tokenizer, looked(masked), looked(masked), room=2000)
    assert len(parse(short).found) < len(masked.token_ids)
    assert "1 further rows are left out" in short


def test_a_character_of_several_tokens_is_shown_once(family: Loader, masked: MaskedTokens) -> None:
    texts = [token.text for token in page_tokens(masked, family("llama-3"))]
    assert "⋯" in texts
    assert "".join(texts).count("🦥") == 2


def test_the_terminal_shows_counts_label_warnings_and_colours(family: Loader, masked: MaskedTokens) -> None:
    console = Console(width=10_000, record=True, force_terminal=True, file=io.StringIO())
    shown = terminal(looked(masked, label="42"), masked, family("llama-3"))
    console.print(shown)
    text = console.export_text(clear=False)
    assert text.splitlines()[0].startswith(f"{len(masked.token_ids)} tokens, {sum(masked.loss_mask)} trained")
    assert text.splitlines()[1] == 'label: "42"'
    assert "warning: the chat template drops the reasoning" in text.splitlines()[2]
    assert "<script>alert('no')</script>↵" in text
    body: Any = shown.renderables[-1]
    coloured = "".join(body.plain[span.start : span.end] for span in body.spans if " on " in str(span.style))
    assert coloured.replace("⋯", "") == "<script>alert('no')</script>↵\nline 🦥 two<|eot_id|>"


def test_without_colours_the_trained_parts_stand_in_brackets(family: Loader, masked: MaskedTokens) -> None:
    text = marked(looked(masked), masked, family("llama-3")).replace("⋯", "")
    assert re.findall("⟦(.*?)⟧", text, re.DOTALL) == ["<script>alert('no')</script>↵\nline 🦥 two<|eot_id|>"]
    assert "warning: the chat template drops the reasoning" in text


def test_masks_without_positions_are_shown_too(family: Loader) -> None:
    tokenizer = family("smollm2")
    ids = tokenizer("Hello there!")["input_ids"]
    shown = list(page_tokens(MaskedTokens(ids, [0] * (len(ids) - 1) + [1]), tokenizer))
    assert "".join(token.text for token in shown) == "Hello there!"
    assert [token.trained for token in shown] == [False] * (len(ids) - 1) + [True]
