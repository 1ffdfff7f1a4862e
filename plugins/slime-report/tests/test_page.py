"""The page of a report, opened in a real browser from a file: what it shows, and that it asks for nothing and obeys no text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, chromium
from synthetic_reports import FAULTS, alarms, faulty, report, report_of, run, sft

from slime_report.page import render
from slime_report.page.html import PAGE_BYTES
from slime_report.page.words import number
from slime_report.report import Report, Samples, Series

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium: apt-get install chromium")

DESKTOP, PHONE = 1440, 360
HEALTHY = run(metrics=12)
REPORTS = {
    "alarmed": report_of(replace(HEALTHY, alarms=alarms())),
    "three": report_of(HEALTHY, run("grpo-b", 1, samples=0), run("grpo-c", 2, alarms=alarms())),
    "sft": sft(),
    "nothing yet": report_of(
        run(
            steps=2,
            samples=0,
            state="running",
            verdict="Running: the first step is not done yet.",
            series={},
            charts=[],
            time=[],
        )
    ),
    "no run": Report("2026-11-26T18:30:00+00:00", "0.1.0", []),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(str(chromium()), tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, made in REPORTS.items():
        (folder / f"{name}.html").write_text(render(made), "utf-8")
    return {name: folder / f"{name}.html" for name in REPORTS}


def shown(browser: Browser, page: Path, fragment: str = "", width: int = DESKTOP, scheme: str = "light") -> None:
    """Open a page, and wait until its samples are there."""
    browser.resize(width)
    browser.prefer(scheme, motion="reduce")
    browser.open(page, fragment)
    browser.wait("document.documentElement.dataset.samples === 'yes'")


def texts(browser: Browser, selector: str) -> list[str]:
    """The text of all elements that a selector finds."""
    found: list[str] = browser.eval(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent.trim())"
    )
    return found


def frame(browser: Browser) -> None:
    """Wait until what was asked for is drawn."""
    browser.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def said(browser: Browser, chart: str) -> str:
    """The value that a chart says."""
    frame(browser)
    value: str = browser.eval(f"document.querySelector('#{chart} .plot').getAttribute('aria-valuetext')")
    return value


@pytest.mark.parametrize("name", REPORTS)
def test_every_kind_of_report_opens_without_network_complaint_or_sideways_scrolling(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    for width in (DESKTOP, PHONE):
        shown(browser, pages[name], width=width)
        assert browser.eval("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert browser.requests == []


def test_the_page_forbids_the_network_even_to_its_own_script(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["sft"])
    assert browser.eval("fetch('https://example.org').then(() => 'asked', () => 'refused')") == "refused"
    assert (
        browser.eval(
            "new Promise((done) => { const i = new Image(); i.onerror = () => done('refused'); i.src = 'https://example.org/x.png' })"
        )
        == "refused"
    )
    assert (
        browser.eval(
            "(() => { const s = document.createElement('script'); s.textContent = 'window.attacked = 1'; document.body.append(s); return window.attacked })()"
        )
        is None
    )


def test_sections_stand_in_the_order_in_which_people_look(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["three"])
    order = ["alarms", "curves", "time", "samples", "groups", "losses", "provenance", "comparison"]
    assert browser.eval("[...document.querySelectorAll('main > section')].map((one) => one.id)") == order
    assert [
        link[1:]
        for link in browser.eval("[...document.querySelectorAll('.bar nav a')].map((one) => one.getAttribute('href'))")
    ] == order
    assert browser.eval("document.querySelector('main > header .sentence').textContent") == HEALTHY.verdict


def test_what_alarms_link_to_is_there_and_is_shown(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    links = browser.eval("[...document.querySelectorAll('.alarms a')].map((one) => one.getAttribute('href'))")
    assert links == ["#chart-length", "#sample-0-7"]
    for link in links:
        browser.eval(f"document.querySelector('.alarms a[href=\"{link}\"]').click()")
        browser.wait(f"document.getElementById('{link[1:]}') !== null")
    assert said(browser, "chart-length").startswith("step 60;")
    assert "Sample s7" in texts(browser, "#sample-0-7 h3")
    assert browser.eval("document.querySelector('#chart-length .alarm title').textContent") == alarms()[0].text

    shown(browser, pages["three"], "#sample-2-7")  # the address alone is enough, of any run
    browser.wait("document.getElementById('sample-2-7') !== null")
    assert browser.eval("document.querySelector('input[name=run]:checked').value") == "2"


def test_the_value_that_a_chart_says_is_the_value_in_the_data(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    for chart in HEALTHY.charts:
        if chart.kind == "stacked":
            continue
        series = HEALTHY.series[chart.metrics[0]]
        browser.eval(f"document.querySelector('#chart-{chart.id} .plot').focus()")
        for key, place in (("Home", 0), ("ArrowRight", 1), ("End", -1), ("ArrowLeft", -2)):
            browser.press(key)
            heard = said(browser, f"chart-{chart.id}")
            assert heard.startswith(f"step {series.x[place]}; {number(series.y[place])}"), chart.id
            if series.low and series.high:
                assert heard.endswith(f"({number(series.low[place])} to {number(series.high[place])})")
            assert texts(browser, f"#chart-{chart.id} .readout")[0].startswith(f"step {series.x[place]}")
    where = browser.eval(
        "document.querySelector('#chart-reward .plot').scrollIntoView({block: 'center'}), document.querySelector('#chart-reward .plot').getBoundingClientRect().toJSON()"
    )
    browser.mouse("mouseMoved", where["x"] + where["width"] / 2, where["y"] + 50)
    step = int(re.match(r"step (\d+);", said(browser, "chart-reward"))[1])  # type: ignore[index]  # it says a step, or the test fails
    assert abs(step - 60) < 8
    assert number(HEALTHY.series["train/loss"].y[step - 1]) in said(browser, "chart-loss")  # all charts follow
    assert number(HEALTHY.series["time/train"].y[step - 1]) in said(browser, "chart-phases")


def test_numbers_are_written_alike_by_the_page_and_its_script(browser: Browser) -> None:
    values = [
        0,
        1,
        -1,
        12,
        1234567,
        0.5,
        -0.25,
        0.30000000000000004,
        1 / 3,
        123.456,
        99999.9,
        1e-4,
        1.25e-7,
        -3e-9,
        1e6 + 0.5,
        1e20,
        None,
    ]
    source = (Path(__file__).parents[1] / "src/slime_report/page/templates/script/words.js").read_text("utf-8")
    assert browser.eval(f"{source}; {json.dumps(values)}.map(words)") == [number(value) for value in values]


def test_steps_without_a_number_and_missing_steps_are_gaps(browser: Browser, tmp_path: Path) -> None:
    x = [*range(1, 21), *range(60, 81)]  # nothing between 20 and 60
    y: list[float | None] = [0.5 + step / 100 for step in x]
    y[4:7] = [None] * 3
    made = replace(
        run(samples=0, resumed=[]), series={"train/loss": Series(x, y, None, None, len(x))}, charts=[HEALTHY.charts[2]]
    )
    (tmp_path / "gaps.html").write_text(render(report_of(made)), "utf-8")
    shown(browser, tmp_path / "gaps.html")
    assert browser.eval("document.querySelector('#chart-loss path.line').getAttribute('d').split('M').length - 1") == 3
    assert texts(browser, "#chart-loss .hole title") == ["no finite number at steps 5 to 7"]
    browser.eval("document.querySelector('#chart-loss .plot').focus()")
    browser.press("Home", *["ArrowRight"] * 4)
    assert said(browser, "chart-loss") == "step 5; no finite number"


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


def test_samples_are_found_sorted_and_filtered(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    rows = HEALTHY.samples.rows
    column = lambda place: texts(browser, f".space .row :nth-child({place})")  # noqa: E731
    browser.eval("document.querySelectorAll('.head button')[1].click()")
    assert (
        column(2) == [number(row.reward) for row in sorted(rows, key=lambda row: -(row.reward or 0))][: len(column(2))]
    )
    browser.eval("document.querySelectorAll('.head button')[1].click()")
    assert column(2) == [number(row.reward) for row in sorted(rows, key=lambda row: row.reward or 0)][: len(column(2))]
    assert (
        browser.eval("[...document.querySelectorAll('.head [aria-sort]')].map((one) => one.getAttribute('aria-sort'))")[
            1
        ]
        == "ascending"
    )

    browser.eval("document.querySelector('#samples input[type=search]').focus()")
    browser.type("Question 3:")
    wanted = [row for row in rows if "question 3:" in "".join(row.pieces).lower()]
    browser.wait(f"document.querySelector('#samples output').textContent === '{len(wanted)} of {len(rows)} samples'")
    browser.eval(
        "(() => { const s = document.querySelectorAll('#samples select')[1]; s.value = 'worst'; s.dispatchEvent(new Event('change')) })()"
    )
    wanted = [row for row in wanted if "worst" in row.why]
    browser.wait(f"document.querySelector('#samples output').textContent.startsWith('{len(wanted)} of ')")
    browser.type("no such text")
    browser.wait("document.querySelector('#samples .nothing:not([hidden])') !== null")

    shown(browser, pages["alarmed"])
    browser.eval("document.querySelector('#groups a[data-prompt]').click()")
    of_prompt = [row for row in rows if row.prompt == "prompt-0"]
    browser.wait(f"document.querySelector('#samples output').textContent.startsWith('{len(of_prompt)} of ')")


def test_the_values_of_a_token_are_those_of_the_data(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"], "#sample-0-11")
    row = HEALTHY.samples.rows[11]
    browser.wait("document.getElementById('sample-0-11') !== null")
    assert "".join(texts(browser, ".detail .tokens")) == "".join(row.pieces).replace("\n", "↵\n").strip()
    browser.eval("document.querySelector('.tokens').focus()")
    browser.press("Home", *["ArrowRight"] * row.prompt_tokens)
    heard = texts(browser, ".detail .readout")[0].replace("−", "-")
    assert f"token {row.prompt_tokens + 1} of {len(row.pieces)}" in heard
    for name, values in (
        ("advantage", row.advantage),
        ("log-prob", row.log_prob),
        ("difference", row.difference),
        ("entropy", row.entropy),
    ):
        value = float(re.search(rf"{name} ([-+]?[\d.e-]+)", heard)[1])  # type: ignore[index]  # a value is said, or the test fails
        assert values is not None
        assert value == pytest.approx(values[0], rel=6e-3, abs=1e-6)
    for channel in ("mask", "advantage", "log_prob", "difference", "entropy"):
        browser.eval(f"document.querySelector('input[value={channel}]').click()")
        browser.wait(
            f"document.querySelector('input[value={channel}]').checked && document.querySelector('.detail .legend li') !== null"
        )
    browser.wait("[...document.querySelectorAll('.tokens i')].some((one) => /^s[1-5]/.test(one.className))")
    browser.eval("document.querySelector('.siblings button').click()")
    browser.wait("document.querySelectorAll('.detail .tokens').length === 2")
    early, late = (int(text) for text in texts(browser, ".card dl > div:first-child dd"))
    assert early < late


@pytest.mark.parametrize("fault", FAULTS)
def test_texts_are_shown_and_never_obeyed(browser: Browser, tmp_path: Path, fault: str) -> None:
    page = tmp_path / "fault.html"
    page.write_text(render(faulty(FAULTS[fault])), "utf-8")
    shown(browser, page, "#sample-0-0", width=PHONE)
    assert browser.complaints == []
    assert browser.eval("window.attacked") is None
    assert browser.eval("[document.images.length, document.scripts.length]") == [0, 4]
    everything = browser.eval(
        "document.body.innerText + [...document.querySelectorAll('*')].flatMap((one) => [...one.attributes].map((a) => a.value)).join(' ')"
    )
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\u3164\u2800\ud800-\udfff]",
        everything,
    )
    assert browser.eval("document.documentElement.scrollWidth") <= PHONE
    wanted = {
        "bidi": "user[U+202E]gpj.exe",
        "control": "bell[U+0007] null[U+0000] escape[U+001B][31m",
        "surrogate": "half [U+D800] of a pair",
    }
    told = wanted.get(fault, FAULTS[fault].split("\u200b")[0].split("\u2028")[0])
    for selector in (
        "h2.run-name",
        ".sentence",
        ".alarms p",
        ".chart h3",
        "figcaption",
        "#time th",
        ".detail h3",
        ".row",
        ".tokens",
        "#groups th",
        "#losses th",
        "#provenance dd",
        ".arguments td",
        "#comparison td",
    ):
        assert any(told in text for text in texts(browser, selector)), selector


def test_a_very_long_run_with_very_many_samples_opens_quickly_from_a_small_file(
    browser: Browser, tmp_path: Path
) -> None:
    made = report(steps=100_000, metrics=30, samples=10_000, tokens=80)
    html = render(made)
    page = tmp_path / "large.html"
    page.write_text(html, "utf-8")
    assert page.stat().st_size < PAGE_BYTES < 10_000_000
    shown(browser, page)
    assert browser.eval("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    assert browser.eval("document.querySelector('[role=grid]').getAttribute('aria-rowcount')") == "10001"
    assert len(texts(browser, ".space .row")) < 60  # the rest of the rows exist when they come into sight
    (left_out,) = texts(browser, "[data-left-out]")
    assert re.search(r"it has the tokens' values of [\d,]+ of them", left_out)
    browser.eval("document.querySelector('.rows').scrollTop = 1e9")
    browser.wait("[...document.querySelectorAll('.space .row')].at(-1)?.getAttribute('aria-rowindex') === '10001'")


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


def test_what_a_run_has_not_is_said_in_words(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["sft"])
    assert "No samples were recorded in this run" in texts(browser, "#samples .nothing")[0]
    assert "No groups" in texts(browser, "#groups .nothing")[0]
    assert "No data was lost" in texts(browser, "#losses .healthy")[0]
    assert "No alarms" in texts(browser, "#alarms .healthy")[0]
    assert browser.eval("document.getElementById('browser').checkVisibility()") is False
    shown(browser, pages["nothing yet"])
    assert texts(browser, "header .state") == ["Running"]
    assert "No curves yet" in texts(browser, "#curves .nothing")[0]
    assert "No times were recorded yet" in texts(browser, "#time .nothing")[0]
    assert texts(browser, "#alarms .healthy") == ["No alarms so far."]


def test_runs_are_compared_on_the_same_axes(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["three"])
    lines = "document.querySelectorAll('#chart-reward path.line').length"
    assert browser.eval(lines) == 3
    assert (
        browser.eval(
            "new Set([...document.querySelectorAll('#chart-reward g[class^=r]')].map((one) => getComputedStyle(one.querySelector('.line')).stroke + getComputedStyle(one.querySelector('.line')).strokeDasharray)).size"
        )
        == 3
    )
    browser.eval("document.querySelector('[data-shows=\"1\"]').click()")
    browser.wait(f"{lines} === 2")
    assert texts(browser, "#comparison tbody tr") == ["--lr1e-062e-063e-06", "--advantage-estimatorgrpodapogrpo"]
    browser.eval("document.querySelector('input[name=run][value=\"1\"]').click()")
    browser.wait(
        "document.querySelector('#samples [data-run=\"1\"]').hidden === false && document.getElementById('browser').hidden"
    )
    assert "No samples were recorded in grpo-b" in "".join(texts(browser, "#samples [data-run='1']"))


def test_arguments_are_found_and_their_sources_are_told(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"])
    visible = "[...document.querySelectorAll('.arguments tbody tr')].filter((one) => one.checkVisibility()).map((one) => one.innerText.split(/\\s*\\t\\s*/).join(' | '))"
    assert browser.eval(visible) == [
        "--lr | 1e-06 | command line",
        "--rollout-batch-size | 16 | recipe.yaml",
        "--prompt-data | data/gsm8k.jsonl | recipe.yaml",
    ]
    browser.eval("document.querySelector('.find-arguments [type=checkbox]').click()")
    browser.eval("document.querySelector('.find-arguments [type=search]').focus()")
    browser.type("option-149")
    assert browser.eval(visible) == ["--option-149 | 149 | default"]


def test_what_is_printed_is_on_paper_whole(browser: Browser, pages: dict[str, Path]) -> None:
    shown(browser, pages["alarmed"], scheme="dark")
    browser.call("Page.printToPDF")
    browser.prefer("dark", media="print")
    assert browser.eval("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.eval("document.querySelector('.bar').checkVisibility()") is False
    assert browser.eval(
        "[...document.querySelectorAll('.chart')].every((one) => one.querySelector('path.line, path.area'))"
    )


def test_samples_without_room_are_listed_and_that_is_said(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slime_report.page.html.PAGE_BYTES", 0)
    monkeypatch.setattr("slime_report.page.html.LEAST_ROOM", 20_000)
    rows = run(samples=200).samples.rows
    page = tmp_path / "tight.html"
    page.write_text(render(report_of(replace(HEALTHY, samples=Samples(200, 200, rows)))), "utf-8")
    shown(browser, page)
    (said_left_out,) = texts(browser, "[data-left-out]")
    assert "it has the tokens of " in said_left_out
    last = next(number for number, row in reversed(list(enumerate(rows))) if row.why == ["random"])
    shown(browser, page, f"#sample-0-{last}")
    browser.wait("document.querySelector('.detail .nothing') !== null")
    assert "left out" in texts(browser, ".detail .nothing")[0]
