"""Qwen's byte-level BPE as a `tokenizers.Tokenizer`, made from the rank file that Qwen publishes. For `assets.py`."""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_FIRST_ADDED = 151643
# fmt: off
QWEN_SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]
QWEN_PLAIN = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]
QWEN3_PLAIN = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
# fmt: on


def bpe_from_ranks(ranks: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A tiktoken file (lines of base64 token and rank) as the vocabulary and merges of a byte-level BPE.

    The rank file holds no merges. The last merge that makes a token joins the two parts which BPE leaves when it may
    use lower ranks only.
    """
    rank_of = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in ranks.splitlines())}
    letters = _byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in sorted(rank_of.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [rank_of.get(left + right, rank) for left, right in pairwise(parts)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[best] >= rank:
                raise ValueError(f"the rank file holds token {token!r}, which no two lower-ranked tokens make.")
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        merges.append((spell(parts[0]), spell(parts[1])))
    return {spell(token): rank for token, rank in rank_of.items()}, merges


def qwen_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]], plain: list[str]) -> Any:
    """Qwen's byte-level BPE with its added tokens; `plain` ones are those that decoding keeps."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    for position, text in enumerate([*QWEN_SPECIAL, *plain]):
        tokenizer.add_tokens([AddedToken(text, special=text in QWEN_SPECIAL, normalized=False)])
        if tokenizer.token_to_id(text) != QWEN_FIRST_ADDED + position:
            raise ValueError(f"the vocabulary gave {text} the id {tokenizer.token_to_id(text)}; it is not Qwen's.")
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """The printable letter by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
