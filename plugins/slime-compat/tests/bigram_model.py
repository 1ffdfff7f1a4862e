"""A small model that writes like given turns: the next token depends on the last one alone. So a run on two CPU cores makes
answers that hooks can read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LIKELY = 18.0
"""The logit of a token that follows in the texts; those of all others spread by 1."""


def bigram_checkpoint(
    folder: Path, tokenizer_folder: Path, turns: Sequence[tuple[str, str]], context: int = 2048
) -> Path:
    """Write a Hugging Face checkpoint into `folder` and return it.

    Args:
        tokenizer_folder: that of the tokenizer.
        turns: pairs of (how what it reads ends, what it writes then). Where a token is followed by several others, it chooses.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()  # what came before the last token is not looked at
        layer.mlp.down_proj.weight.zero_()
        read = torch.nn.functional.rms_norm(model.model.embed_tokens.weight, (config.hidden_size,))
        model.lm_head.weight.normal_(std=config.hidden_size**-0.5)  # logits of all others spread by 1
        before: dict[int, set[int]] = {}
        for read_last, written in turns:
            last = tokenizer.encode(read_last, add_special_tokens=False)[-1:]
            for token, following in pairwise(last + tokenizer.encode(written, add_special_tokens=False)):
                before.setdefault(following, set()).add(token)
        for following, tokens in before.items():  # the smallest change that gives all of them this logit
            inputs, row = read[sorted(tokens)], model.lm_head.weight[following]
            row += torch.linalg.pinv(inputs) @ (LIKELY - inputs @ row)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
