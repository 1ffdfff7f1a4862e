"""`load_tokenizer`: the one place where tokenizers of Hugging Face checkpoints are loaded; and `template_variables`, what
their chat templates are given in a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from slime_core.data.checkpoint_folders import require_hugging_face
from slime_core.errors import ArgumentError
from slime_core.remote_code import from_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face checkpoint, loaded once per path in a process. Needs transformers.

    Raises:
        ArgumentError: the folder holds none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, path)
    except ArgumentError as error:
        raise ArgumentError(f"--hf-checkpoint {error}") from error
    except Exception as error:  # the library that reads tokenizer.json raises bare ones, for a file newer than itself
        require_hugging_face(path, "--hf-checkpoint")
        raise ArgumentError(
            f"--hf-checkpoint {path} holds no tokenizer that can be loaded: {_one_line(error)}"
        ) from error
    return tokenizer


@dataclass(frozen=True)
class FixedDay:
    """What templates call as `strftime_now`: the same day in a whole run, so that the prompts of its rows stay the same.

    Attributes:
        day: YYYY-MM-DD.
    """

    day: str

    def __call__(self, format: str) -> str:
        """Return the beginning of the day in a format of `time.strftime`."""
        return datetime.fromisoformat(self.day).strftime(format)


def template_variables(tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> dict[str, Any]:
    """Return what the chat templates of a tokenizer are given in a run besides messages and tools,
    `--apply-chat-template-kwargs`; and fix the day that they write, `--chat-template-date`."""
    fix_day(tokenizer, args.chat_template_date or date.today().isoformat())
    return dict(args.apply_chat_template_kwargs)


def fix_day(tokenizer: PreTrainedTokenizerBase, day: str) -> None:
    """Let the chat templates of a tokenizer take `day`, YYYY-MM-DD, for today, in this process.

    transformers gives templates the function `strftime_now` and takes none in its place, so it is replaced where the
    compiled template keeps it.
    """
    from transformers.utils import chat_template_utils

    compiled: Any = chat_template_utils._compile_jinja_template  # not public
    templates: Any = getattr(tokenizer, "chat_template", None)
    for source in templates.values() if isinstance(templates, dict) else [templates]:
        if source and "strftime_now" in source:
            compiled(source).environment.globals["strftime_now"] = FixedDay(day)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
