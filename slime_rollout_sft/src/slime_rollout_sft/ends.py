"""The tokens that end trained turns, and those at which the checkpoint is known to stop. Called by the SFT rollout.

A base model whose end token is `<|endoftext|>` may be trained with a template whose turns end in `<|im_end|>`. It learns to
write that, but whatever generates from it goes on behind it, unless somebody says where to stop.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def trained_end(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the last trained part of a completed sample ends; None if it ends otherwise.

    Earlier turns say less: gpt-oss ends them with a token that means no end where it is generated.
    """
    mask = sample.trained_mask
    if 1 not in mask:
        return None
    last = sample.tokens[len(sample.tokens) - 1 - mask[::-1].index(1)]
    return last if last in _special(tokenizer) else None


@lru_cache(maxsize=4)
def known_ends(folder: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the end tokens of a checkpoint: the tokenizer's, and those of generation_config.json or config.json."""
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        try:
            value = json.loads((Path(folder) / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            continue
        found |= set(value) if isinstance(value, list) else {value}
    return frozenset(token for token in found if isinstance(token, int))


@lru_cache(maxsize=4)
def _special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
