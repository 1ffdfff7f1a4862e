"""Tables of the commands: fitted to a terminal, and whole where the output goes to a file or another program."""

from __future__ import annotations

import io
import sys

from rich.console import Console
from rich.table import Table

_WIDE = 1_000_000
"""Columns of text that no table fills."""


def new_table(*headings: str) -> Table:
    """Return a table without lines; a cell that does not fit into a terminal goes on below."""
    table = Table(box=None, pad_edge=False, show_header=bool(headings), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print a table, as wide as the terminal at most. Into a file or pipe, every row is one line of plain text."""
    if sys.stdout.isatty():
        Console().print(table)
    else:
        print(as_text(table))


def as_text(table: Table) -> str:
    """Return the table as plain text, in which no cell is cut or goes on below."""
    text = io.StringIO()
    Console(file=text, width=_WIDE, force_terminal=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
