"""Tokenizers and processors as `slime.utils.processing_utils` loads them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from slime_compat.elsewhere import IMAGES
from slime_core.data import tokenizer
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(name_or_path: str, trust_remote_code: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face checkpoint, loaded once per path where no further options are given.

    Args:
        trust_remote_code: run the code that the checkpoint brings, if its tokenizer needs that.
        options: for `AutoTokenizer.from_pretrained`.
    """
    if not options:
        try:
            return tokenizer.load_tokenizer(name_or_path)
        except ArgumentError:
            if not trust_remote_code:
                raise
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        name_or_path, trust_remote_code=trust_remote_code, **options
    )
    return loaded


@cache
def load_processor(name_or_path: str, trust_remote_code: bool = False) -> Any:
    """Return what prepares images and sound for a model; None for a model that reads text alone.

    Raises:
        ArgumentError: the model has one that cannot be loaded, as many cannot without torchvision; says what to use instead.
    """
    import transformers

    load: Any = transformers.AutoProcessor.from_pretrained
    try:
        processor = load(name_or_path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # the checkpoint has none
        return None
    except Exception as error:  # transformers raises whatever its parsers raise
        said = " ".join(str(error).split())[:400].rstrip(".")
        raise ArgumentError(
            f"transformers cannot load the processor of {name_or_path}: {said}. Install what it asks for, or do without it. {IMAGES}"
        ) from error
    return processor if isinstance(processor, transformers.ProcessorMixin) else None
