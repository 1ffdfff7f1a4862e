"""`slime data convert` and `slime data preview`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

if TYPE_CHECKING:
    from slime_core.arguments.groups.data import DataArguments
    from slime_core.contracts.data import MaskedTokens

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
    preview.add_argument("--label-key", help="column with the label")
    preview.add_argument("--tool-key", default="tools", help="column with the tools")
    preview.add_argument("--metadata-key", default="metadata", help="column that is handed on to hooks")
    preview.add_argument("--loss-mask-type", default="auto", help="the loss-mask generator")
    preview.add_argument("--apply-chat-template-kwargs", default="{}", metavar="JSON", help="variables of the template")
    preview.add_argument("--chat-template-date", metavar="DAY", help="the day that templates write; default: today")
    preview.add_argument(
        "--malformed-row", choices=("error", "skip"), default="error", help="a row that cannot be used"
    )
    preview.add_argument("--rows", type=int, default=3, help="how many rows to show")
    preview.add_argument("--html", metavar="FILE", help="write a page instead of printing")


def _convert(options: argparse.Namespace, plugins: Plugins) -> int:
    from slime_core.data import convert_file

    report = convert_file(
        options.input,
        Path(options.output),
        plugins.select("converter", options.format),
        options.on_error,
        say=_warn,
    )
    print(f"{options.output}: {report.written} rows written, {report.skipped} skipped")
    for reason in report.reasons:
        print(f"  skipped {reason}")
    return 0


def _preview(options: argparse.Namespace, plugins: Plugins) -> int:
    from slime_core.data import Columns, open_rows, sample_from_row
    from slime_core.data.notices import Notices
    from slime_core.data.tokenizer import load_tokenizer, template_variables
    from slime_core.errors import DataError
    from slime_rollout_sft.conversations import masked_tokens, with_variables
    from slime_rollout_sft.preview import html, terminal

    if options.rows < 1:
        raise ArgumentError(f"--rows is {options.rows}; expected at least 1.")
    columns = Columns(options.input_key, options.label_key, options.tool_key, options.metadata_key)
    tokenizer = load_tokenizer(options.hf_checkpoint)
    variables = template_variables(tokenizer, _arguments(options))
    generator = with_variables(plugins.select("loss_mask", options.loss_mask_type), variables)
    rows, notices = open_rows(options.input), Notices(_warn)
    shown: list[tuple[str, MaskedTokens]] = []
    for index in range(len(rows)):
        if len(shown) == options.rows:
            break
        source = rows.where(index)
        try:
            sample = sample_from_row(columns, rows[index], source, notices.columns)
            try:
                masked = masked_tokens(sample, tokenizer, generator, notices)
                shown.append((source, masked))
            except DataError as error:
                raise DataError(f"{source}: {error}") from error
        except DataError as error:
            if options.malformed_row == "error":
                raise
            _warn(f"skipped {error}")
            continue
        for lost in masked.lost:
            _warn(f"{source}: training stops at this row, unless --dropped-text allows it: {lost}")
    if not shown:
        raise DataError(f"None of the {len(rows)} rows can be used.")
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


def _arguments(options: argparse.Namespace) -> DataArguments:
    """Return the options of a run that the preview shares with it, checked."""
    from pydantic import ValidationError

    from slime_core.arguments.groups.data import DataArguments

    values = {
        "apply_chat_template_kwargs": options.apply_chat_template_kwargs,
        "chat_template_date": options.chat_template_date,
    }
    try:
        return DataArguments(prompt_data=options.input, **values)
    except ValidationError as error:
        what = error.errors()[0]
        raise ArgumentError(f"--{str(what['loc'][0]).replace('_', '-')}: {what['msg']}") from None


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr)
