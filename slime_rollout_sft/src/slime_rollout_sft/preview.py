"""Shows rows token by token before any training, and what was counted of all rows. Called by `slime data preview`. Pure.

`terminal` gives something that a rich console prints, `marked` plain text, `html` a page that needs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from markupsafe import escape
from rich.console import Group
from rich.text import Text

from slime_core.contracts.data import MaskedTokens
from slime_core.data.shown import shown
from slime_core.pages import PageToken, page_environment, visible
from slime_rollout_sft.image_notes import image_lines, thumbnails
from slime_rollout_sft.lint import Looked, Tally
from slime_rollout_sft.masks.roles import TEMPLATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_BYTES = 80
"""How much of a page a token takes, besides its text."""
PAGE_BYTES = 8_000_000
"""How much of a page the tokens may take; with its lists the page stays under 10 MB."""
LISTED_ROWS = 50
_REST = "⋯"  # a token that holds only a further part of the character before it
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", TEMPLATE)


def page_tokens(masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[PageToken]:
    """Yield the tokens of a row. Together their texts are the rendering, unless `masked` has no offsets."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    so_far = 0
    for i, (token_id, trained) in enumerate(zip(masked.token_ids, masked.loss_mask, strict=True)):
        if masked.offsets:
            start, end = masked.offsets[i]
            text = masked.text[max(start, so_far) : end] or (_REST if end > start else "")
            so_far = max(so_far, end)
        else:
            text = cast(str, tokenizer.decode([token_id]))  # a list of texts is for a batch only
        yield PageToken(visible(text), token_id, bool(trained), token_id in special)


def summary(masked: MaskedTokens) -> str:
    """Return the counts of a row, such as "120 tokens, 45 trained (38 %)"."""
    count, trained = len(masked.token_ids), sum(masked.loss_mask)
    return f"{count:,} tokens, {trained:,} trained ({100 * trained / max(1, count):.0f} %)"


def notes(looked: Looked, masked: MaskedTokens) -> list[str]:
    """Return what stands above the tokens of a row: counts and the label."""
    lines = [summary(masked)]
    if looked.label is not None:
        lines.append(f"label: {visible(shown(looked.label))}")
    return lines + image_lines(looked, masked)


def terminal(looked: Looked, masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase) -> Group:
    """Return what a rich console prints: counts, label, warnings, then the text with the trained tokens on colour."""
    body = Text()
    for i, token in enumerate(page_tokens(masked, tokenizer)):
        shade = ("black on green3", "black on spring_green3")[i % 2] if token.trained else ("grey62", "grey50")[i % 2]
        body.append(token.text, f"{shade} bold" if token.special else shade)
    return Group(
        *(Text(line, "bold") for line in notes(looked, masked)),
        *(Text(f"warning: {sentence}", "yellow") for sentence in looked.sentences),
        body,
    )


def marked(looked: Looked, masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the same for a file or a pipe: without colours, with the trained parts in ⟦ ⟧."""
    text, on = "", False
    for token in page_tokens(masked, tokenizer):
        if token.trained != on:
            text, on = text + ("⟧" if on else "⟦"), token.trained
        text += token.text
    warnings = [f"warning: {sentence}" for sentence in looked.sentences]
    return "\n".join([*notes(looked, masked), *warnings, text + "⟧" * on])


def counts(tally: Tally, total: int) -> list[str]:
    """Return what was counted of all rows, line by line.

    Args:
        total: how many rows there are.
    """
    fates = {"used": "used", "cut": "used after a cut", "skipped": "skipped", "stops": "at which a run stops"}
    said = [f"{tally.fates[fate]:,} {name}" for fate, name in fates.items() if tally.fates[fate] or fate == "used"]
    rate = tally.rows / tally.seconds if tally.seconds else 0
    tokens, trained = tally.tokens.total(), tally.trained.total()
    return [
        f"{tally.rows:,} of {total:,} rows: {', '.join(said)}",
        f"{tokens:,} tokens, {trained:,} trained ({100 * trained / max(1, tokens):.0f} %)",
        *(f"  {role}: {tally.trained[role]:,} of {tally.tokens[role]:,} tokens are trained" for role in _roles(tally)),
        f"rows with warnings: {tally.num_wrong:,}",
        *(f"  {number:,} × {visible(kind)}" for kind, number in tally.kinds.most_common(LISTED_ROWS)),
        f"read in {tally.seconds:,.1f} s, {rate:,.0f} rows/s",
    ]


def wrong_rows(tally: Tally, limit: int) -> list[str]:
    """Return the rows of which something is to be said, one line for each sentence, at most of `limit` rows."""
    lines = [
        f"{visible(source)}: {visible(sentence)}" for source, sentences in tally.wrong[:limit] for sentence in sentences
    ]
    further = tally.num_wrong - min(limit, len(tally.wrong))
    return [*lines, *([f"and {further:,} more; --report FILE writes all of them"] if further else [])]


def fitting(masked: MaskedTokens, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[int, int]:
    """Return (how many tokens of a row fit into `room` bytes of a page, how many bytes they take)."""
    fit = used = 0
    for token in page_tokens(masked, tokenizer):
        size = TOKEN_BYTES + len(str(escape(token.text)).encode())
        if used + size > room:
            break
        fit, used = fit + 1, used + size
    return fit, used


def html(
    samples: Sequence[tuple[Looked, MaskedTokens]],
    wanted: int,
    tokenizer: PreTrainedTokenizerBase,
    tally: Tally,
    room: int = PAGE_BYTES,
) -> str:
    """Return a page with the counts of all rows and a section for each sample; it loads nothing from anywhere.

    Args:
        samples: the rows that are shown.
        wanted: how many were to be shown.
        room: how many bytes of the page their tokens may take; what does not fit is left out, and that is said.
    """
    sections: list[dict[str, Any]] = []
    for looked, masked in samples:
        fit, used = fitting(masked, tokenizer, room)
        room -= used
        if not fit:
            break
        left_out = len(masked.token_ids) - fit
        room -= sum(len(source) for source, _ in thumbnails(looked, masked))
        sections.append(
            {
                "title": visible(looked.source),
                "notes": notes(looked, masked),
                "warnings": _shortened(looked.sentences),
                "tokens": islice(page_tokens(masked, tokenizer), fit),
                "left_out": left_out,
                "thumbnails": thumbnails(looked, masked),
            }
        )
    return (
        page_environment("slime_rollout_sft")
        .get_template("preview.html.jinja")
        .render(
            sections=sections,
            not_shown=wanted - len(sections),
            tally=tally,
            tokens=tally.tokens.total(),
            trained=tally.trained.total(),
            share=100 * tally.trained.total() / max(1, tally.tokens.total()),
            roles=_roles(tally),
            kinds=[(visible(kind), number) for kind, number in tally.kinds.most_common(LISTED_ROWS)],
            wrong=_shortened(wrong_rows(tally, LISTED_ROWS)),
        )
    )


def _roles(tally: Tally) -> list[str]:
    return sorted(tally.tokens, key=lambda role: (_ROLES.index(role) if role in _ROLES else -1, role))


def _shortened(lines: Iterable[str]) -> list[str]:
    """Return lines as they are shown on a page: not longer than 1,000 characters, and not more than 200."""
    return [line if len(line) <= 1000 else f"{line[:1000]}…" for line in islice(lines, 200)]
