"""How numbers, durations and dates are written on the page. Called by the templates; the script's `words.js` writes numbers alike. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def number(value: float | None) -> str:
    """Return a number for reading: whole numbers with commas, others with up to four significant digits, "–" for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    if 1e-4 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{float(digits):g}e{int(power)}".replace("-", "−")


def percent(share: float) -> str:
    """Return a share of 1 as a percentage; of a small one, one place."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Return seconds in the two largest units, such as "1 h 02 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def moment(text: str) -> str:
    """Return an ISO 8601 time as "2026-11-26 18:30 UTC"; text that is none as it is."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at.tzinfo else f"{at:%Y-%m-%d %H:%M}"
