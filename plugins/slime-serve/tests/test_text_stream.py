"""Text of tokens that come one by one: whole characters, no more and no less than all of them, and nothing beyond a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from slime_serve.text_stream import TextStream
from slime_serve.vocabulary import Vocabulary

TEXTS = st.text(st.sampled_from("ab é你🦋👩‍👧\u0301\n ▁�"), max_size=12)


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind: a few characters, and bytes for all others."""
    pieces = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ab\n"]
    model = models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<s>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module", params=["bytes as characters", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest, assets: Callable[[str], Path]) -> Any:
    if request.param == "byte fallback":
        return byte_fallback()
    return AutoTokenizer.from_pretrained(assets("tokenizers") / "smollm2")


def pieces_of(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), stop)
    return [*(stream.add(token) for token in tokens), stream.finish()]


def test_pieces_are_whole_characters_and_together_the_text(tokenizer: Any) -> None:
    @given(text=TEXTS)
    def check(text: str) -> None:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = pieces_of(tokenizer, tokens)
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        assert "".join(pieces) == whole
        for piece in pieces[:-1]:  # half a character would have become U+FFFD
            assert piece.count("\ufffd") <= text.count("�")

    check()


def test_special_tokens_between_bytes_add_nothing(tokenizer: Any) -> None:
    tokens = tokenizer("a🦋", add_special_tokens=False)["input_ids"]
    special = tokenizer.bos_token_id
    pieces = pieces_of(tokenizer, [special, tokens[0], special, special, *tokens[1:], special])
    assert "".join(pieces) == "a🦋"
    assert "🦋" in pieces


def test_tokens_without_text_are_not_decoded_again_and_again(tokenizer: Any) -> None:
    decoded = list[int]()

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    stream = TextStream(decode)
    tokens = tokenizer("a b", add_special_tokens=False)["input_ids"]
    said = [stream.add(token) for token in [tokens[0], *[tokenizer.bos_token_id] * 300, *tokens[1:]]]
    assert "".join(said) + stream.finish() == "a b"
    assert max(decoded) < 20


def test_bytes_that_become_no_character_do_not_hold_the_text_up(tokenizer: Any) -> None:
    half = tokenizer("🦋", add_special_tokens=False)["input_ids"][:1]
    pieces = pieces_of(tokenizer, half * 40)
    assert any(pieces[:20])
    assert set("".join(pieces)) == {"\ufffd"}
    assert "".join(pieces_of(tokenizer, [*half, *tokenizer("ab", add_special_tokens=False)["input_ids"]])).endswith(
        "ab"
    )


@settings(max_examples=300)
@given(text=st.text("ab你🦋", max_size=14), stop=st.lists(st.text("ab你🦋", min_size=1, max_size=4), max_size=3))
def test_nothing_is_told_from_the_first_stop_string_on(text: str, stop: list[str]) -> None:
    points = [ord(character) for character in text]
    stream = TextStream(lambda ids: "".join(map(chr, ids)), stop)
    told = "".join([*(stream.add(point) for point in points), stream.finish()])
    # The first one that is complete ends the text; of those that are complete with the same character, the one that begins first.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(each) for each in stop)]
    expected = (
        text[: min(text[: ends[0]].find(each) for each in stop if text[: ends[0]].endswith(each))] if ends else text
    )
    assert told == expected
    assert stream.is_stopped == bool(ends)
    assert stream.length == len(expected)


def test_what_may_be_a_stop_string_is_told_when_it_is_none() -> None:
    stream = TextStream(lambda ids: "".join(map(chr, ids)), ["abc"])
    assert [stream.add(ord(c)) for c in "xabxab"] == ["x", "", "", "abx", "", ""]
    assert stream.finish() == "ab"


def test_a_token_has_the_bytes_that_it_stands_for(tokenizer: Any) -> None:
    vocabulary = Vocabulary(tokenizer)

    @given(text=TEXTS.filter(lambda text: "▁" not in text))
    def check(text: str) -> None:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(vocabulary.bytes_of(token) for token in tokens) == text.encode()
        for token in tokens:
            written = vocabulary.text_of(token)
            assert written.startswith("bytes:\\x") or written.encode() == vocabulary.bytes_of(token)

    check()
    assert vocabulary.bytes_of(tokenizer.bos_token_id) == tokenizer.bos_token.encode()
    assert vocabulary.bytes_of(10**6) == b""
