"""`Vocabulary`: what a single token stands for. A token may be a part of a character only, so it has bytes rather than text."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # which SentencePiece writes for a space


class Vocabulary:
    """The bytes of the tokens of a tokenizer.

    Two families of tokenizers have tokens that are single bytes: one writes each byte as a character of its own (GPT-2's, and most
    newer ones), the other as `<0xE2>` beside ordinary text (SentencePiece with byte fallback).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = {token: id for id, token in _added(tokenizer).items()}
        self._bytes = _byte_characters() if _writes_bytes_as_characters(tokenizer) else None

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; of one that nothing stands for, none."""
        written = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(written, str):
            return b""  # the model's vocabulary may be larger than the tokenizer's
        if written in self._special:
            return written.encode()
        if self._bytes is not None and all(character in self._bytes for character in written):
            return bytes(self._bytes[character] for character in written)
        if found := _BYTE.fullmatch(written):
            return bytes([int(found[1], 16)])
        return written.replace(_SPACE, " ").encode()

    def text_of(self, token: int) -> str:
        """A token as text; as `bytes:\\xe2\\x82` where its bytes are no characters, as OpenAI writes it."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}


def _writes_bytes_as_characters(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


@cache
def _byte_characters() -> dict[str, int]:
    """{character: byte}: printable characters of Latin-1 stand for themselves, the other bytes for the characters from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
