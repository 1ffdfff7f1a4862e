"""`slime data convert` and `slime data preview`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.display import told
from slime_core.plugins import Plugins
from slime_rollout_sft.image_options import IMAGE_OPTIONS, add_image_options
from slime_rollout_sft.preview_command import add_preview, checked_arguments, preview, warn

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime data …`."""
    parser = argparse.ArgumentParser(prog="slime data", description="Prepare and look at training data.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_convert(commands, plugins)
    add_preview(commands)
    options = parser.parse_args(argv)
    return (_convert if options.command == "convert" else preview)(options, plugins)


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
    convert.add_argument("output", help="a .jsonl or .parquet file that is not there yet")
    convert.add_argument(
        "--from", dest="format", required=True, metavar="FORMAT", help="a name below or an import path"
    )
    add_image_options(convert)
    convert.add_argument("--force", action="store_true", help="replace an output that is there already")
    convert.add_argument("--on-error", choices=("error", "skip"), default="error", help="a row that does not fit")


def _convert(options: argparse.Namespace, plugins: Plugins) -> int:
    from slime_core.data import convert_file
    from slime_core.data.samples import Columns

    columns = Columns.of(checked_arguments(options, IMAGE_OPTIONS))
    report = convert_file(
        options.input,
        Path(options.output),
        plugins.select("converter", options.format),
        options.on_error,
        say=warn,
        image_key=columns.image_key,
        image_rules=columns.images,
        force=options.force,
    )
    print(f"{told(options.output)}: {report.written} rows written, {report.skipped} skipped")
    for reason in report.reasons:
        print(f"  skipped {told(reason)}")
    return 0
