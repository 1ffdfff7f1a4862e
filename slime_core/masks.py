"""`MaskedTokens`: what a loss-mask generator returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MaskedTokens:
    """A rendered conversation with its mask.

    Attributes:
        token_ids: N ids of the whole chat-template rendering.
        loss_mask: N ints, 1 where the token is trained.
        text: the rendering as text.
        offsets: N (start, end) character positions in `text`, for previews.
        warnings: things a person should look at, such as text that the template dropped.
    """

    token_ids: list[int]
    loss_mask: list[int]
    text: str = ""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
