"""Checks of subcommands of `slime`, and of conversions, which are subcommands of one of them."""

from __future__ import annotations

import contextlib
import io

from slime_core.testing.subject import Check, Subject


def explains_itself(subject: Subject[int]) -> None:
    """explains itself with --help and ends with status 0"""
    printed = io.StringIO()
    status: object = None
    with contextlib.redirect_stdout(printed):
        try:
            status = subject.call(["--help"], subject.plugins)
        except SystemExit as end:
            status = end.code
    subject.expect(
        status in (0, None) and bool(printed.getvalue().strip()),
        f"--help ended with status {status} and {len(printed.getvalue())} characters on stdout; print how to use it.",
    )


COMMAND: list[Check] = [explains_itself]
CONVERSION: list[Check] = [explains_itself]
