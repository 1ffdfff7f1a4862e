"""Masks that rows of token ids bring with them: what cannot be right in them. Called for rows that are tokenised already.

Nothing says where the messages of such a row are, but the tokens that a chat template writes around messages do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, cast

from slime_core.data.chat_template import Template
from slime_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Q, _A, _B = "question\ue001", "first\ue001", "second\ue001"  # private use: no template contains them


def ready_mask_warnings(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], mask: Sequence[int]) -> list[str]:
    """Return what a person should look at: trained parts that no token ends, and headers of messages that are trained.

    Args:
        ids, mask: N token ids, and 1 for each that is trained.
    """
    ends = {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}
    runs = [[i for i, _ in run] for trained, run in groupby(enumerate(mask), key=lambda entry: entry[1]) if trained]
    warnings = []
    if ends and (open_ended := [run[-1] + 1 for run in runs if ids[run[-1]] not in ends]):
        warnings.append(
            f"no token ends the trained part up to token {_listed(open_ended)}: the model does not learn to stop there"
        )
    known = headers(tokenizer)
    texts = [cast(str, tokenizer.decode([ids[i] for i in run])) for run in runs] if known else []
    for role, header in known.items():
        if any(header in text for text in texts):
            warnings.append(f"the header of messages of the {role} is trained: {header!r}")
    return warnings


def headers(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the text that the chat template writes before messages of each role, as far as it can be found."""
    return _headers(tokenizer, str(getattr(tokenizer, "chat_template", None)))


@lru_cache(maxsize=4)
def _headers(tokenizer: PreTrainedTokenizerBase, template_text: str) -> dict[str, str]:
    """Find them once for each template that a tokenizer is given."""
    try:
        template = Template(tokenizer, None)
    except DataError:
        return {}
    found = {}
    for role in ("user", "assistant", "tool"):
        if role == "assistant":
            question = [{"role": "user", "content": _A}]
            asked, prompt = template.try_render(question), template.try_render(question, prompt=True)
            if asked is not None and prompt is not None and prompt.startswith(asked):
                found[role] = prompt[len(asked) :].partition("<think>")[0].strip()
            continue
        before = [{"role": "user", "content": _Q}, {"role": "assistant", "content": _A}]
        text = template.try_render([*before, {"role": role, "content": _B}])
        if text is None or _A not in text or _B not in text:
            continue
        between = text.rpartition(_A)[2].partition(_B)[0]
        end = template.special.search(between)
        header = (between[end.end() :] if end else "").strip()
        of_questions = template.special.search(text, text.find(_Q) + len(_Q)) if _Q in text else None
        if of_questions:  # answers may end with a token before that with which all messages do
            header = header.removeprefix(of_questions[0]).strip()
        found[role] = header
    return {role: header for role, header in found.items() if template.special.search(header)}


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5} others" if len(numbers) > 5 else "")
