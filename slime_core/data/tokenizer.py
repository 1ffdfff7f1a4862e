"""`load_tokenizer`: the one place where tokenizers of Hugging Face checkpoints are loaded."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from slime_core.data.checkpoint_folders import require_hugging_face
from slime_core.errors import ArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@lru_cache(maxsize=4)
def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face checkpoint, loaded once per path in a process. Needs transformers.

    Raises:
        ArgumentError: the folder holds none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        require_hugging_face(path, "--hf-checkpoint")
        raise ArgumentError(f"--hf-checkpoint {path} holds no tokenizer that can be loaded: {error}") from error
    return tokenizer
