"""Shows masked conversations token by token before any training. Called by `slime data preview`. Pure.

`terminal` gives something that a rich console prints, `html` a page that needs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from rich.console import Group
from rich.text import Text

from slime_core.contracts.data import MaskedTokens

_VISIBLE = str.maketrans({"\n": "↵\n", "\r": "␍", "\t": "⇥\t", "\u00a0": "⍽", "\u200b": "[ZWSP]", "\ufeff": "[BOM]"})
_REST = "⋯"  # a token that holds only a further part of the character before it


@dataclass(frozen=True)
class Piece:
    """One token: its text with line ends and tabs made visible, its id, whether it is trained, whether it is special."""

    text: str
    token_id: int
    trained: bool
    special: bool


def pieces(masked: MaskedTokens, tokenizer: Any) -> Iterator[Piece]:
    """The tokens of a conversation. Together their texts are the rendering, unless `masked` has no offsets."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown = 0
    for i, (token_id, trained) in enumerate(zip(masked.token_ids, masked.loss_mask, strict=True)):
        if masked.offsets:
            start, end = masked.offsets[i]
            text = masked.text[max(start, shown) : end] or (_REST if end > start else "")
            shown = max(shown, end)
        else:
            text = tokenizer.decode([token_id])
        yield Piece(text.translate(_VISIBLE), token_id, bool(trained), token_id in special)


def summary(masked: MaskedTokens) -> str:
    """Such as "120 tokens, 45 trained (38 %)"."""
    count, trained = len(masked.token_ids), sum(masked.loss_mask)
    return f"{count:,} tokens, {trained:,} trained ({100 * trained / max(1, count):.0f} %)"


def terminal(masked: MaskedTokens, tokenizer: Any) -> Group:
    """What a rich console prints: counts, warnings, then the text with the trained tokens on colour."""
    body = Text()
    for i, piece in enumerate(pieces(masked, tokenizer)):
        shade = ("black on green3", "black on spring_green3")[i % 2] if piece.trained else ("grey62", "grey50")[i % 2]
        body.append(piece.text, f"{shade} bold" if piece.special else shade)
    return Group(
        Text(summary(masked), "bold"),
        *(Text(f"warning: {warning}", "yellow") for warning in masked.warnings),
        body,
    )


def html(samples: Sequence[tuple[str, MaskedTokens]], tokenizer: Any) -> str:
    """A page with one section per (title, masked conversation); loads nothing from anywhere."""
    page = Template(files("slime_rollout_sft").joinpath("preview.html").read_text(encoding="utf-8"))
    tokens = sum(len(masked.token_ids) for _, masked in samples)
    trained = sum(sum(masked.loss_mask) for _, masked in samples)
    warned = sum(bool(masked.warnings) for _, masked in samples)
    return page.substitute(
        conversations=f"{len(samples):,}",
        tokens=f"{tokens:,}",
        trained=f"{trained:,}",
        share=f"{100 * trained / max(1, tokens):.0f}",
        warned=f"{warned:,}",
        warned_class="bad" if warned else "",
        sections="\n".join(_section(title, masked, tokenizer) for title, masked in samples),
    )


def _section(title: str, masked: MaskedTokens, tokenizer: Any) -> str:
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in masked.warnings)
    shown = "".join(_token(i, piece) for i, piece in enumerate(pieces(masked, tokenizer)))
    return (
        f"<section><h2>{escape(title)}</h2><p>{summary(masked)}</p>"
        + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
        + f'<div class="tokens">{shown}</div></section>'
    )


def _token(position: int, piece: Piece) -> str:
    kind = " ".join(name for name, is_on in (("t", piece.trained), ("s", piece.special)) if is_on)
    state = "trained" if piece.trained else "not trained"
    tip = f"id {piece.token_id}, position {position}, {state}"
    return f'<i{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} title="{tip}">{escape(piece.text)}</i>'
