"""Alarms of runs whose images show nothing, so that a model trains blind. Pure; called by `slime_report.reading.alarms`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slime_report.reading.facts import Facts
from slime_report.report import Alarm, SampleRow

BLANK = SAME = 0.9
ROWS = 4
"""So many different rows must be recorded before images that are the same in them are told of."""


def blank_images(facts: Facts) -> Alarm | None:
    """Nearly all recorded images have one colour."""
    shown = [image for row in _with_images(facts) for image in row.images if image.size is not None]
    if not shown:
        return None
    share = sum(image.blank for image in shown) / len(shown)
    if share <= BLANK:
        return None
    return Alarm(
        "blank_images",
        f"{share:.0%} of the {len(shown):,} recorded images are blank: all of their pixels have the same colour (threshold: {BLANK:.0%}), "
        "so the model learns without seeing. Look at what wrote the images; what is transparent becomes white.",
        *(BLANK, share, 1),
        chart="images",
        sample=facts.sample(lambda row: any(image.blank for image in row.images)),
    )


def same_image(facts: Facts) -> Alarm | None:
    """Different rows show the same images."""
    rows = _with_images(facts)
    shown = {row.prompt: tuple(image.pixels for image in row.images) for row in rows}
    if len(shown) < ROWS or blank_images(facts):
        return None
    most, count = Counter(shown.values()).most_common(1)[0]
    if (share := count / len(shown)) <= SAME:
        return None
    return Alarm(
        "same_image",
        f"{share:.0%} of the {len(shown):,} rows that were recorded show the same image{'s' if len(most) > 1 else ''} (threshold: "
        f"{SAME:.0%}), so nothing in them tells one row from another. Look at the column of images, and at what wrote the files.",
        *(SAME, share, 1),
        chart="images",
        sample=facts.sample(lambda row: tuple(image.pixels for image in row.images) == most),
    )


def _with_images(facts: Facts) -> Sequence[SampleRow]:
    return [row for row in facts.rows if row.dataset is None and row.images]
