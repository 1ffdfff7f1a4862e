"""`slime data convert` and `slime data preview`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime data …`."""
    parser = argparse.ArgumentParser(prog="slime data", description="Prepare and look at training data.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_convert(commands, plugins)
    _add_preview(commands)
    options = parser.parse_args(argv)
    return (_convert if options.command == "convert" else _preview)(options, plugins)


def _add_convert(commands: Commands, plugins: Plugins) -> None:
    formats = "\n".join(f"  {c.name:<16} {c.summary}" for c in plugins.components("converter").values())
    convert = commands.add_parser(
        "convert",
        help="convert a data file into chat rows",
        description="Convert a data file into rows with a column of messages, streaming.",
        epilog=f"formats:\n{formats}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    convert.add_argument("input", nargs="+", help="files, globs, dataset folders, slices: as --prompt-data")
    convert.add_argument("output", help="a .jsonl or .parquet file")
    convert.add_argument(
        "--from", dest="format", required=True, metavar="FORMAT", help="a name below or an import path"
    )
    convert.add_argument("--on-error", choices=("error", "skip"), default="error", help="a row that does not fit")


def _add_preview(commands: Commands) -> None:
    preview = commands.add_parser(
        "preview",
        help="show which tokens of conversations are trained",
        description="Show conversations token by token, with the trained ones marked, before any training.",
    )
    preview.add_argument("input", nargs="+", help="files, globs, dataset folders, slices: as --prompt-data")
    preview.add_argument("--hf-checkpoint", required=True, help="folder with the tokenizer")
    preview.add_argument("--input-key", default="input", help="column with the messages")
    preview.add_argument("--tool-key", default="tools", help="column with the tools")
    preview.add_argument("--loss-mask-type", default="auto", help="the loss-mask generator")
    preview.add_argument("--rows", type=int, default=3, help="how many rows to show")
    preview.add_argument("--html", metavar="FILE", help="write a page instead of printing")


def _convert(options: argparse.Namespace, plugins: Plugins) -> int:
    from slime_core.data import convert_file

    report = convert_file(
        options.input, Path(options.output), plugins.select("converter", options.format), options.on_error
    )
    print(f"{options.output}: {report.written} rows written, {report.skipped} skipped")
    for reason in report.reasons:
        print(f"  skipped {reason}")
    return 0


def _preview(options: argparse.Namespace, plugins: Plugins) -> int:
    from slime_core.data import Columns, is_tokenised, open_rows, sample_from_row
    from slime_core.data.tokenizer import load_tokenizer
    from slime_core.errors import DataError
    from slime_rollout_sft.conversations import tokenised
    from slime_rollout_sft.preview import html, terminal

    if options.rows < 1:
        raise ArgumentError(f"--rows is {options.rows}; expected at least 1.")
    columns = Columns(options.input_key, tool_key=options.tool_key)
    tokenizer = load_tokenizer(options.hf_checkpoint)
    generator = plugins.select("loss_mask", options.loss_mask_type)
    rows = open_rows(options.input)
    shown = []
    for index in range(min(options.rows, len(rows))):
        sample = sample_from_row(columns, rows[index], rows.where(index))
        if isinstance(sample.prompt, str):
            raise DataError(f"{rows.where(index)}: {options.input_key!r} is text; name the messages with --input-key.")
        try:
            if is_tokenised(sample.prompt):
                masked = tokenised(sample, tokenizer)
            else:
                masked = generator(tokenizer, sample.prompt, sample.metadata.get("tools"))
            shown.append((rows.where(index), masked))
        except DataError as error:
            raise DataError(f"{rows.where(index)}: {error}") from error
    if options.html:
        Path(options.html).write_text(html(shown, tokenizer), encoding="utf-8")
        print(f"{options.html}: {len(shown)} of {len(rows)} rows")
        return 0
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    for title, masked in shown:
        console.rule(title, align="left")
        console.print(terminal(masked, tokenizer))
    return 0
