"""`slime data preview`: reads every row as a run would, shows a sample of them, and says what is wrong with which.

Imports nothing heavy before it is called.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from slime_core.display import told
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.remote_code import trust_remote_code
from slime_rollout_sft.image_options import IMAGE_OPTIONS, add_image_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments
    from slime_core.contracts.data import MaskedTokens
    from slime_core.data.notices import Notices
    from slime_rollout_sft.lint import Look, Looked, Tally

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_OF_FINE_TUNING = ("loss_mask_type", "over_long_sample", "no_trainable_token", "dropped_text")
_PROGRESS_SECONDS = 2.0


def add_preview(commands: Commands) -> None:
    """Declare the command and its options, which have the names and the meaning that they have in a run."""
    preview = commands.add_parser(
        "preview",
        help="show what is trained, and what is wrong with which row",
        description="Read every row as a run would, and say what is wrong with which, before any training. A sample of the rows "
        "is shown token by token, with the trained ones marked.",
    )
    add = preview.add_argument
    add("input", nargs="+", help="files, globs, dataset folders, slices: as --prompt-data")
    add("--hf-checkpoint", required=True, help="folder with the tokenizer")
    add("--trust-remote-code", action="store_true", help="execute Python code that this folder brings")
    add("--input-key", default="input", help="column with the messages")
    add("--label-key", help="column with the label")
    add("--tool-key", default="tools", help="column with the tools")
    add("--metadata-key", default="metadata", help="column that is handed on to hooks")
    add_image_options(preview)
    add("--image-min-pixels", type=_at_least(1), metavar="N", help="smaller images are enlarged to so many pixels")
    add("--image-max-pixels", type=_at_least(1), metavar="N", help="larger images are made smaller, to so many pixels")
    add("--apply-chat-template-kwargs", default="{}", metavar="JSON", help="variables of the template")
    add("--chat-template-date", metavar="DAY", help="the day that templates write; default: today")
    add("--malformed-row", choices=("error", "skip"), default="error", help="a row that cannot be used")
    add("--rollout-max-context-len", type=_at_least(2), metavar="N", help="longest row in tokens")
    shown = preview.add_argument_group("what is shown")
    shown.add_argument("--rows", type=_at_least(0), default=3, help="how many rows to show, from the whole file (3)")
    shown.add_argument("--html", metavar="FILE", help="write a page with the rows instead of printing them")
    shown.add_argument("--report", metavar="FILE", help="write every row with a warning, as JSON Lines")
    shown.add_argument(
        "--strict", action="store_true", help="exit status 1 if a run would stop at a row or a row has a warning"
    )
    tuned = preview.add_argument_group("fine-tuning")
    tuned.add_argument("--loss-mask-type", help="the loss-mask generator (auto)")
    tuned.add_argument("--over-long-sample", choices=("error", "skip", "truncate"), help="a row that is too long")
    tuned.add_argument("--no-trainable-token", choices=("error", "skip"), help="a row without a trained token")
    tuned.add_argument("--dropped-text", choices=("error", "skip", "train"), help="a row whose text the template drops")
    rl = preview.add_argument_group("reinforcement learning")
    rl.add_argument("--rl", action="store_true", help="the rows are prompts: show what the model is asked")
    rl.add_argument(
        "--apply-chat-template", action="store_true", help="render the prompts with the chat template; implies --rl"
    )
    rl.add_argument("--rollout-max-prompt-len", type=_at_least(1), metavar="N", help="longest prompt in tokens")


def preview(options: argparse.Namespace, plugins: Plugins) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 1 with `--strict` if something is wrong with a row.

    Raises:
        DataError: every row is malformed, so that there was nothing to show.
    """
    from slime_core.data import Columns, open_rows
    from slime_core.data.notices import Notices
    from slime_core.data.tokenizer import load_tokenizer
    from slime_core.errors import DataError
    from slime_rollout_sft.lint import Tally, look_at
    from slime_rollout_sft.preview import LISTED_ROWS, counts, wrong_rows

    _require_sense(options)
    trust_remote_code(options.trust_remote_code)
    tokenizer, args, notices = load_tokenizer(options.hf_checkpoint), _arguments(options), Notices(warn)
    look = _look(options, args, tokenizer, plugins, notices)
    rows, tally = open_rows(options.input), Tally()
    show = _Shown(options, tokenizer, len(rows))
    first = ""
    with _report(options.report) as report:
        for looked in look_at(rows, Columns.of(args), look, args.malformed_row == "skip", notices):
            tally.add(looked)
            show.progress(tally)
            show.row(looked, tally)
            first = first or (f"{looked.source}: {looked.problem}" if looked.problem else "")
            if looked.sentences and report is not None:
                line = {"row": looked.source, "fate": looked.fate, "warnings": looked.sentences}
                report.write(json.dumps(line, ensure_ascii=False) + "\n")
    show.end(tally)
    print("\n".join([*counts(tally, len(rows)), *wrong_rows(tally, LISTED_ROWS)]))
    if not tally.tokenised:
        hint = "" if _is_rl(options) else " Prompts of reinforcement learning are read with --rl."
        raise DataError(f"None of the {len(rows)} rows can be used. The first: {first}{hint}")
    return 1 if options.strict and not tally.is_clean() else 0


class _Shown:
    """Shows a sample of the rows, taken from the whole file, on the terminal or on a page; and how far it is."""

    def __init__(self, options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, total: int) -> None:
        from rich.console import Console

        from slime_rollout_sft.preview import PAGE_BYTES, TOKEN_BYTES

        self._page, self._wanted, self._total = options.html, options.rows, total
        self._tokenizer, self._count = tokenizer, 0
        self._of_page: list[tuple[Looked, MaskedTokens]] = []
        self._tokens_left = PAGE_BYTES // TOKEN_BYTES
        self._console = Console(file=sys.stdout, highlight=False)
        self._told = time.monotonic()

    def row(self, looked: Looked, tally: Tally) -> None:
        """Show a row, if it is one of the sample: row n of it is the first that has tokens behind n - 1 parts of the file."""
        if looked.masked is None or self._count * self._total >= tally.rows * self._wanted:
            return
        self._count += 1
        if not self._page:
            self._print(looked, looked.masked)
        elif self._tokens_left > 0:
            self._tokens_left -= len(looked.masked.token_ids)
            self._of_page.append((looked, looked.masked))

    def progress(self, tally: Tally) -> None:
        """Say on a terminal how many rows were read."""
        if sys.stderr.isatty() and time.monotonic() - self._told > _PROGRESS_SECONDS:
            self._told = time.monotonic()
            rate = tally.rows / tally.seconds
            print(f"\r{tally.rows:,} of {self._total:,} rows, {rate:,.0f} rows/s ", end="", file=sys.stderr, flush=True)

    def end(self, tally: Tally) -> None:
        """Write the page, if one is wanted."""
        from slime_rollout_sft.preview import html

        if self._page:
            Path(self._page).write_text(html(self._of_page, self._count, self._tokenizer, tally), encoding="utf-8")
            print(f"{self._page}: {self._count} of {self._total} rows")

    def _print(self, looked: Looked, masked: MaskedTokens) -> None:
        from slime_rollout_sft.preview import marked, terminal

        if self._console.is_terminal and self._console.color_system and not self._console.no_color:
            self._console.rule(looked.source, align="left")
            self._console.print(terminal(looked, masked, self._tokenizer))
        else:
            print(f"── {looked.source}\n{marked(looked, masked, self._tokenizer)}\n")


def warn(sentence: str) -> None:
    """Say something on stderr."""
    print(f"warning: {told(sentence)}", file=sys.stderr)


def _look(
    options: argparse.Namespace,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    plugins: Plugins,
    notices: Notices,
) -> Look:
    """Return what reads a row as the run would."""
    from slime_core.data.tokenizer import template_variables
    from slime_core.data.vision import load_processor
    from slime_rollout_sft.conversations import Conversations, Policy, with_variables
    from slime_rollout_sft.looks import as_conversations, as_prompts

    variables = template_variables(tokenizer, args)
    if _is_rl(options):
        limits = [(options.rollout_max_prompt_len, "--rollout-max-prompt-len")]
        if options.rollout_max_context_len is not None:  # which leaves room for a token of the answer
            limits.append((options.rollout_max_context_len - 1, "--rollout-max-context-len"))
        processor = load_processor(options.hf_checkpoint, args.image_min_pixels, args.image_max_pixels)
        limit = min((pair for pair in limits if pair[0] is not None), default=None)
        return as_prompts(args, tokenizer, variables, limit, processor, notices)
    policy = Policy(
        options.hf_checkpoint,
        args.input_key,
        options.rollout_max_context_len,
        args.malformed_row,
        image_min_pixels=args.image_min_pixels,
        image_max_pixels=args.image_max_pixels,
        **{name: value for name in _OF_FINE_TUNING[1:] if (value := getattr(options, name)) is not None},
    )
    generator = with_variables(plugins.select("loss_mask", options.loss_mask_type or "auto"), variables)
    return as_conversations(Conversations(policy, generator, notices), tokenizer, variables)


def _is_rl(options: argparse.Namespace) -> bool:
    return bool(options.rl or options.apply_chat_template)


def _require_sense(options: argparse.Namespace) -> None:
    """Check that every option has an effect, and none loses a file that is read or written."""
    from slime_core.data.files import require_other_file

    if _is_rl(options):
        given = [name for name in _OF_FINE_TUNING if getattr(options, name) is not None]
        why = "belongs to fine-tuning; leave it out, or --rl and --apply-chat-template"
    else:
        given = ["rollout_max_prompt_len"] if options.rollout_max_prompt_len is not None else []
        why = "belongs to reinforcement learning; add --rl, or leave it out"
    if given:
        raise ArgumentError(f"--{given[0].replace('_', '-')} {why}.")
    if options.over_long_sample is not None and options.rollout_max_context_len is None:
        raise ArgumentError("--over-long-sample has no effect without --rollout-max-context-len; give both.")
    page, report = options.html, options.report
    if page is not None and report is not None and os.path.realpath(page) == os.path.realpath(report):
        raise ArgumentError(f"--html {page} and --report {report} are one file, of which one is lost; name two.")
    for option in ("html", "report"):
        if (output := getattr(options, option)) is not None:
            require_other_file(f"--{option}", output, options.input)
            _require_place(f"--{option}", Path(output))


def _require_place(option: str, output: Path) -> None:
    """Make the folder of a file that is to be written, before anything is read."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{option} {output} cannot be written: {error.strerror}. Choose another file.") from None
    if output.is_dir():
        raise ArgumentError(f"{option} {output} is a folder; name a file in it.")


@contextmanager
def _report(path: str | None) -> Iterator[IO[str] | None]:
    """Give the file of `--report`, if one is wanted."""
    if path is None:
        yield None
        return
    with Path(path).open("w", encoding="utf-8") as file:
        yield file


def _arguments(options: argparse.Namespace) -> DataArguments:
    """Return the options of a run that the preview shares with it, checked."""
    shared = (
        *("input_key", "label_key", "tool_key", "metadata_key", "malformed_row"),
        *("apply_chat_template", "apply_chat_template_kwargs", "chat_template_date"),
        *(*IMAGE_OPTIONS, "image_min_pixels", "image_max_pixels"),
    )
    return checked_arguments(options, shared)


def checked_arguments(options: argparse.Namespace, names: Iterable[str]) -> DataArguments:
    """Return options of a command as those of a run of the same names, checked."""
    from pydantic import ValidationError

    from slime_core.arguments.groups.data import DataArguments

    try:
        return DataArguments(prompt_data=options.input, **{name: getattr(options, name) for name in names})
    except ValidationError as error:
        what = error.errors()[0]
        raise ArgumentError(f"--{str(what['loc'][0]).replace('_', '-')}: {what['msg']}") from None


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"given {text!r}, expected a whole number of at least {least}")
        return int(text)

    return number
