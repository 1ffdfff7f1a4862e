"""Reports whose pages the tests open, and what they ask an open page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from chromium import Browser
from synthetic_reports import alarms, report_of, run, sft

from slime_report.report import Report

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
