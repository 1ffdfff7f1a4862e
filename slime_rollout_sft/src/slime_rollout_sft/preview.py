"""Shows masked conversations token by token before any training. Called by `slime data preview`. Pure.

`terminal` gives something that a rich console prints, `html` a page that needs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

from rich.console import Group
from rich.text import Text

from slime_core.contracts.data import MaskedTokens
from slime_core.pages import PageToken, page_environment, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REST = "⋯"  # a token that holds only a further part of the character before it


def page_tokens(masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[PageToken]:
    """Yield the tokens of a conversation. Together their texts are the rendering, unless `masked` has no offsets."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown = 0
    for i, (token_id, trained) in enumerate(zip(masked.token_ids, masked.loss_mask, strict=True)):
        if masked.offsets:
            start, end = masked.offsets[i]
            text = masked.text[max(start, shown) : end] or (_REST if end > start else "")
            shown = max(shown, end)
        else:
            text = cast(str, tokenizer.decode([token_id]))  # a list of texts is for a batch only
        yield PageToken(visible(text), token_id, bool(trained), token_id in special)


def summary(masked: MaskedTokens) -> str:
    """Return the counts of a conversation, such as "120 tokens, 45 trained (38 %)"."""
    count, trained = len(masked.token_ids), sum(masked.loss_mask)
    return f"{count:,} tokens, {trained:,} trained ({100 * trained / max(1, count):.0f} %)"


def terminal(masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase) -> Group:
    """Return what a rich console prints: counts, warnings, then the text with the trained tokens on colour."""
    body = Text()
    for i, token in enumerate(page_tokens(masked, tokenizer)):
        shade = ("black on green3", "black on spring_green3")[i % 2] if token.trained else ("grey62", "grey50")[i % 2]
        body.append(token.text, f"{shade} bold" if token.special else shade)
    return Group(
        Text(summary(masked), "bold"),
        *(Text(f"warning: {warning}", "yellow") for warning in masked.warnings),
        body,
    )


def html(samples: Sequence[tuple[str, MaskedTokens]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a page with one section per (title, masked conversation); it loads nothing from anywhere."""
    tokens = sum(len(masked.token_ids) for _, masked in samples)
    trained = sum(sum(masked.loss_mask) for _, masked in samples)
    return (
        page_environment("slime_rollout_sft")
        .get_template("preview.html.jinja")
        .render(
            conversations=[
                {
                    "title": title,
                    "summary": summary(masked),
                    "warnings": masked.warnings,
                    "tokens": page_tokens(masked, tokenizer),
                }
                for title, masked in samples
            ],
            tokens=tokens,
            trained=trained,
            share=100 * trained / max(1, tokens),
            warned=sum(bool(masked.warnings) for _, masked in samples),
        )
    )
