"""`load_tokenizer`: the one place where tokenizers of Hugging Face checkpoints are loaded; and `template_variables`, what
their chat templates are given in a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.checkpoint_folders import require_hugging_face
from slime_core.errors import ArgumentError
from slime_core.remote_code import from_pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments.groups.data import DataArguments

_FAST = (
    "llama",
    "mistral",
    "mixtral",
    "smollm3",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "granite",
    "gpt_oss",
)
"""Model types whose checkpoints have a tokenizer.json that no class of their own reads, where tokenizer_config.json says so."""
_KINDS = {
    "TokenizersBackend": ("TokenizersBackend", _FAST),
    "PreTrainedTokenizerFast": ("TokenizersBackend", _FAST),
    "Qwen2Tokenizer": ("Qwen2Tokenizer", ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next")),
    "Qwen2TokenizerFast": ("Qwen2Tokenizer", ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next")),
    "GemmaTokenizer": ("GemmaTokenizer", ("gemma", "gemma2", "gemma3", "gemma3_text")),
    "GemmaTokenizerFast": ("GemmaTokenizer", ("gemma", "gemma2", "gemma3", "gemma3_text")),
}
"""The `tokenizer_class` of tokenizer_config.json: the class of transformers that AutoTokenizer takes for it, and for which model types."""
_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
"""What a tokenizer is stored in: one of these is there, or there is no tokenizer."""


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face checkpoint, loaded once per path in a process. Needs transformers.

    AutoTokenizer first imports torch and the classes of all models, which takes four seconds of the five until a command has a
    tokenizer. Where it is known which class it takes, that is asked itself, and reads the folder as it would for AutoTokenizer.

    Raises:
        ArgumentError: the folder holds none that can be loaded.
    """
    import transformers

    try:
        known = _known_class(Path(path))
        tokenizer: PreTrainedTokenizerBase
        if known:
            tokenizer = getattr(transformers, known).from_pretrained(path)
        else:
            tokenizer = from_pretrained(transformers.AutoTokenizer, path)
    except ArgumentError as error:
        raise ArgumentError(f"--hf-checkpoint {error}") from error
    except Exception as error:  # the library that reads tokenizer.json raises bare ones, for a file newer than itself
        require_hugging_face(path, "--hf-checkpoint")
        if not any(found for name in _FILES for found in Path(path).glob(name)):
            raise ArgumentError(
                f"--hf-checkpoint {path} holds no tokenizer that can be loaded: none of {', '.join(_FILES)} is there. Copy the "
                "tokenizer's files (tokenizer.json, tokenizer_config.json, …) from the model that this one was made of."
            ) from error
        raise ArgumentError(
            f"--hf-checkpoint {path} holds no tokenizer that can be loaded: {_one_line(error)}"
        ) from error
    return tokenizer


def _known_class(folder: Path) -> str | None:
    """The class that AutoTokenizer takes for a checkpoint; None where that is for AutoTokenizer to find out."""
    try:
        tokenizer, model = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in ("tokenizer_config.json", "config.json")
        )
        known, types = _KINDS.get(tokenizer["tokenizer_class"], (None, ()))
        own_code = "auto_map" in tokenizer or "auto_map" in model
        return (
            known if model["model_type"] in types and not own_code and (folder / "tokenizer.json").is_file() else None
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


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
