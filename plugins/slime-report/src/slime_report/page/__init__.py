"""The page that a person opens in a browser. `render` is called by the command `slime report`."""

from __future__ import annotations

import html

from slime_report.report import Report


def render(report: Report) -> str:
    """The whole page as HTML text. It needs no other file and no network."""
    verdicts = "".join(f"<p>{html.escape(run.verdict)}</p>" for run in report.runs)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>slime report</title>{verdicts}</html>\n'
