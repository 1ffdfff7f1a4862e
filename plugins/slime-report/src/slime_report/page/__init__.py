"""The page that a person opens in a browser: one file that loads nothing from anywhere.

    html.py       `render`: the page of a report
    words.py      how numbers, durations and dates are written
    pack.py       the data that the page's script reads, packed so that the page stays small
    templates/    `report.html.jinja`, its parts, `report.css`, and the script in `script/`, which is put together from files

What can be said in words and tables is written into the page by the templates, and is there without the script. The script
draws the curves and shows the samples.
"""

from slime_report.page.html import render

__all__ = ["render"]
