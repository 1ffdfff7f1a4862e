"""The page of a report, opened in a real browser from a file: what it shows, and that it asks for nothing and obeys no text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser
from opened_pages import DESKTOP, HEALTHY, PHONE, REPORTS, said, shown, texts
from synthetic_reports import FAULTS, alarms, faulty, report, report_of, run

from slime_report.page import render
from slime_report.page.html import PAGE_BYTES
from slime_report.page.words import number
from slime_report.report import Samples, Series

SCRIPT = Path(__file__).parents[1] / "src/slime_report/page/templates/script"


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


def test_what_alarms_link_to_is_there_and_is_shown(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    shown(browser, pages["alarmed"])
    links = browser.eval("[...document.querySelectorAll('.alarms a')].map((one) => one.getAttribute('href'))")
    assert links == ["#chart-length", "#sample-0-7"]
    for link in links:
        browser.eval(f"document.querySelector('.alarms a[href=\"{link}\"]').click()")
        browser.wait(f"document.getElementById('{link[1:]}') !== null")
    assert said(browser, "chart-length").startswith("step 60;")
    assert "Sample s7" in texts(browser, "#sample-0-7 h3")
    assert browser.eval("document.querySelector('#chart-length .alarm title').textContent") == alarms()[0].text
    after = replace(
        run(samples=0, steps=6), alarms=[replace(alarms()[0], step=7)]
    )  # the step that ended the run has no numbers
    (tmp_path / "ended.html").write_text(render(report_of(after)), "utf-8")
    shown(browser, tmp_path / "ended.html")
    assert texts(browser, "#chart-length .alarm title") == [after.alarms[0].text]

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
    source = (SCRIPT / "words.js").read_text("utf-8")
    assert browser.eval(f"{source}; {json.dumps(values)}.map(words)") == [number(value) for value in values]


def test_no_two_files_of_the_script_say_the_same_name() -> None:
    source = "".join(path.read_text("utf-8") for path in sorted(SCRIPT.glob("*.js")))
    names = re.findall(r"(?m)^(?:async )?(?:function\*?|class|const|let) (\w+)", source)
    assert len(names) > 50
    assert sorted(names) == sorted(set(names))


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


def test_many_runs_and_runs_of_one_name_can_be_told_apart(browser: Browser, tmp_path: Path) -> None:
    small = run(samples=0, steps=6)
    (tmp_path / "many.html").write_text(
        render(report_of(*(replace(small, path=f"/runs/{n}/run") for n in range(8)))), "utf-8"
    )
    shown(browser, tmp_path / "many.html")
    assert texts(browser, "h2.run-name") == [f"/runs/{n}/run" for n in range(8)]
    look = "[...document.querySelectorAll('{}')].map((one) => getComputedStyle(one).stroke + getComputedStyle(one).strokeDasharray)"
    lines = browser.eval(look.format("#chart-loss path.line"))
    assert len(set(lines)) == 8
    assert set(browser.eval(look.format(".toggle line"))) == set(lines)
    assert len(texts(browser, "#chart-loss .resumed title")) == 1


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
