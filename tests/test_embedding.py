"""A model has an embedding for every token that text may become, and is tied only where its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_llama import small_llama

from slime_core.errors import ArgumentError
from slime_core.tensors.embedding import require_rows, require_tied, stored_rows


class Tokenizer:
    pad_token = "pad"

    def __init__(self, **vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)


def test_a_token_behind_the_embedding_is_named_and_a_placeholder_of_images_is_not() -> None:
    require_rows(Tokenizer(a=0, b=7, image_soft_token=8, pad=9), 8, "--hf-checkpoint")  # type: ignore[arg-type]
    require_rows(Tokenizer(a=0), 100, "--hf-checkpoint")  # type: ignore[arg-type]  # padded, as most are
    with pytest.raises(
        ArgumentError, match=r"knows 2 tokens .* model of --ref-load .* 8 rows: 'new' \(8\), 'newer' \(9\)"
    ):
        require_rows(Tokenizer(newer=9, new=8, a=7), 8, "--ref-load")  # type: ignore[arg-type]


def test_a_token_that_is_added_later_is_seen() -> None:
    tokenizer: Any = Tokenizer(a=0)
    require_rows(tokenizer, 1, "--hf-checkpoint")
    tokenizer.vocabulary["new"] = 1
    with pytest.raises(ArgumentError, match=r"'new' \(1\)"):
        require_rows(tokenizer, 1, "--hf-checkpoint")


@pytest.mark.parametrize("stored", ["tied", "twice the same", "different", "untied and different"])
def test_a_tied_flag_over_two_matrices_is_an_error(tmp_path: Path, stored: str) -> None:
    tied = stored != "untied and different"
    small_llama(tied).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    if stored in ("twice the same", "different"):
        own = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"] = own if stored == "twice the same" else torch.flip(own, (0,))
        save_file(weights, file, {"format": "pt"})
    assert stored_rows(str(tmp_path)) == 16
    if stored != "different":
        require_tied(str(tmp_path), tied, "--hf-checkpoint")
        return
    with pytest.raises(
        ArgumentError, match=r"config\.json says tie_word_embeddings, but .* lm_head\.weight and model\.embed"
    ):
        require_tied(str(tmp_path), tied, "--hf-checkpoint")
    require_tied(str(tmp_path), False, "--hf-checkpoint")
