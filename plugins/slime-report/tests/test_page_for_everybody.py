"""The page of a report for people with a keyboard, a screen reader, a dark room, other colours of the eye, or paper."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser
from opened_pages import frame, said, shown, texts


def test_dragging_and_keys_choose_the_steps_of_all_charts(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    ends = "[document.getElementById('from-step').value, document.getElementById('to-step').value].map(Number)"
    where = browser.eval(
        "document.querySelector('#chart-reward .plot').scrollIntoView({block: 'center'}), document.querySelector('#chart-reward .plot').getBoundingClientRect().toJSON()"
    )
    middle = where["y"] + where["height"] / 2
    browser.mouse("mousePressed", where["x"] + where["width"] * 0.4, middle, "left")
    browser.mouse("mouseMoved", where["x"] + where["width"] * 0.7, middle, "left")
    browser.mouse("mouseReleased", where["x"] + where["width"] * 0.7, middle, "left")
    first, last = browser.eval(ends)
    assert 30 < first < 50
    assert 70 < last < 90
    browser.eval("document.querySelector('#chart-loss .plot').focus()")
    browser.press("Home")
    assert said(browser, "chart-loss").startswith(f"step {first};")
    browser.press("+")
    assert browser.eval(ends)[1] < last
    browser.press("Escape")
    assert browser.eval(ends) == [1, 120]
    assert browser.eval("document.querySelector('#chart-grad-norm .tool').hidden") is False
    assert (
        browser.eval("document.querySelector('#chart-entropy .tool').hidden") is True
    )  # a logarithm would show nothing


def test_the_keyboard_reaches_everything_in_order(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    names, seen = (
        "(document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent.trim()) || document.activeElement.id",
        [],
    )
    for _ in range(90):
        browser.press("Tab")
        seen.append(browser.eval(names))
        if seen[-1].startswith("Samples; arrow"):
            break
    places = [
        seen.index(wanted)
        for wanted in (
            "Skip to the report",
            "Alarms 2",
            "Response length at step 60",
            "Reward: values at a step",
            "Samples; arrow keys choose one",
        )
    ]
    assert places == sorted(places)
    before = texts(browser, ".detail h3")
    browser.press("ArrowDown", "ArrowDown")
    browser.wait(f"document.querySelector('.detail h3').textContent !== {json.dumps(before[0])}")
    active = browser.eval(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent"
    )
    browser.press("End")
    browser.wait("document.querySelector('.detail').id === document.querySelector('[aria-selected=true]').id.slice(4)")
    assert (
        browser.eval(
            "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent"
        )
        != active
    )
    for _ in range(8):
        browser.press("Tab")
        if browser.eval(names).startswith("Tokens;"):
            break
    browser.press("Home", "ArrowRight")
    assert texts(browser, ".detail .readout")[0].startswith("token 2 of ")


def test_nothing_moves_while_the_page_is_drawn_and_pointed_at(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("alarmed", "three"):
        shown(browser, pages[name])
        browser.eval("document.querySelector('#chart-reward .plot').focus({preventScroll: true})")
        browser.press("Home", "ArrowRight")
        frame(browser)
        moved = "new Promise((done) => { new PerformanceObserver((list) => done(list.getEntries().reduce((sum, one) => sum + one.value, 0))).observe({type: 'layout-shift', buffered: true}); setTimeout(() => done(0), 50) })"
        assert browser.eval(moved) < 0.01


CONTRAST = """(() => {
  const parts = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  const behind = (one) => { for (; one; one = one.parentElement) { const c = parts(getComputedStyle(one).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const found = [];
  const check = (one, colour, least) => { const got = ratio(parts(colour), behind(one)); if (got < least) found.push([one.outerHTML.slice(0, 90), colour, behind(one).join(), got]); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode()); ) {
    const one = node.parentElement;
    if (!node.data.trim() || !one.checkVisibility() || one.closest('script, style, title, :disabled')) continue;
    const style = getComputedStyle(one);
    check(one, one.namespaceURI.includes('svg') ? style.fill : style.color, 4.5);
  }
  const strip = document.querySelector('.tokens');
  for (const name of ['', 'prompt', 'trained', ...'pns'.split('').flatMap((sign) => [1, 2, 3, 4, 5].map((level) => sign + level))]) {
    const token = document.createElement('i'); token.className = name; token.textContent = 'x'; strip.append(token);
    check(token, getComputedStyle(token).color, 4.5);
  }
  for (const line of document.querySelectorAll('.plot path.line, .plot .area, .stack rect, .bar-of rect')) {
    const style = getComputedStyle(line); check(line, line.matches('.line') ? style.stroke : style.fill, 3);
  }
  for (const field of document.querySelectorAll('input:not([type=radio], [type=checkbox]), select')) check(field.parentElement, getComputedStyle(field).borderTopColor, 3);
  return found;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_in_light_and_dark(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    shown(browser, pages["three"], scheme=scheme)
    assert browser.eval(CONTRAST) == []


def test_the_theme_can_be_chosen_against_the_system(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["sft"], scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.eval(ground)
    choose = "(() => {{ const s = document.getElementById('theme'); s.value = '{}'; s.dispatchEvent(new Event('change')) }})()"
    browser.eval(choose.format("dark"))
    assert browser.eval(ground) != light
    shown(browser, pages["three"], scheme="light")  # it is kept
    assert browser.eval(ground) != light
    browser.eval(choose.format(""))
    assert browser.eval(ground) == light


def test_people_who_hear_the_page_get_names_headings_and_landmarks(browser: Browser, pages: dict[str, Path]) -> None:
    for name in ("alarmed", "three", "sft"):
        shown(browser, pages[name])
        levels = browser.eval(
            "[...document.querySelectorAll('h1, h2, h3, h4')].filter((one) => one.checkVisibility()).map((one) => Number(one.tagName[1]))"
        )
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert (
            browser.eval(
                "[...document.querySelectorAll('[id]')].map((one) => one.id).filter((id, place, all) => all.indexOf(id) !== place)"
            )
            == []
        )
        assert (
            browser.eval(
                "[...document.querySelectorAll('[aria-labelledby], [aria-activedescendant]')].filter((one) => !document.getElementById(one.getAttribute('aria-labelledby') ?? one.getAttribute('aria-activedescendant'))).length"
            )
            == 0
        )
        nodes: list[dict[str, Any]] = browser.call("Accessibility.getFullAXTree")["nodes"]
        heard = [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        ]
        assert [
            role
            for role, name in heard
            if role
            in {
                "button",
                "link",
                "textbox",
                "searchbox",
                "spinbutton",
                "combobox",
                "radio",
                "checkbox",
                "slider",
                "grid",
                "region",
                "image",
            }
            and not name.strip()
        ] == []
        assert {"main", "navigation", "banner", "contentinfo"} - {role for role, _ in heard} <= {"banner"}
        assert browser.eval("document.documentElement.lang") == "en"


def test_what_is_printed_is_on_paper_whole(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"], scheme="dark")
    browser.call("Page.printToPDF")
    browser.prefer("dark", media="print")
    assert browser.eval("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.eval("document.querySelector('.bar').checkVisibility()") is False
    assert browser.eval(
        "[...document.querySelectorAll('.chart')].every((one) => one.querySelector('path.line, path.area'))"
    )
