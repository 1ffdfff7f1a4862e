"""From a prompt to the token ids that the model reads. Called by the rollout and by the evaluation."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from slime_core.contracts.data import DataSource
from slime_core.data import is_tokenised, require_known, vocabulary_of
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import Group, Sample

logger = logging.getLogger(__name__)


@dataclass
class Prompts:
    """Gives groups their prompt tokens, and counts the prompts that cannot be used.

    Text is tokenised as it is, without special tokens around it; messages are rendered with the chat template,
    generation prompt included; token ids are used as they are, and the sample's prompt becomes the text that they stand
    for.

    Attributes:
        args: reads `hf_checkpoint`, `apply_chat_template`, `apply_chat_template_kwargs` and `malformed_row`.
        limit: longest prompt in tokens; None: any.
        limit_option: what sets the limit, for messages.
        counts: prompts left out: "skipped_over_long_prompt", "skipped_malformed".
    """

    args: Any
    limit: int | None
    limit_option: str
    counts: Counter[str] = field(default_factory=Counter)

    def fill(self, group: Group) -> bool:
        """Set `tokens` of the samples that have none yet. False: the prompt is left out, as the options say.

        Raises:
            ArgumentError: it has messages, and --apply-chat-template is not given.
            DataError: it cannot be rendered, or has no tokens, and --malformed-row is "error".
        """
        tokens: list[int] | None = None
        for sample in group:
            if sample.tokens:
                continue
            if tokens is None or sample.prompt != group[0].prompt:
                try:
                    tokens = self._tokens(sample)
                except DataError as error:
                    if self.args.malformed_row == "error":
                        raise
                    return self._left_out("skipped_malformed", str(error))
            if self.limit is not None and len(tokens) > self.limit:
                return self._left_out(
                    "skipped_over_long_prompt",
                    f"{where(sample)}: the prompt has {len(tokens)} tokens, more than the {self.limit} that "
                    f"{self.limit_option} allows.",
                )
            sample.tokens = list(tokens)
            if is_tokenised(sample.prompt):
                sample.prompt = load_tokenizer(self.args.hf_checkpoint).decode(tokens)
                sample.loss_mask = None  # of the row's tokens, while a sample's is of its response
        return True

    def take(self, data_source: DataSource, count: int) -> list[Group]:
        """So many groups of a data source, each with its prompt tokens.

        Raises:
            DataError: none of a whole epoch can be used; or as `fill`.
        """
        groups: list[Group] = []
        skipped_in_a_row = 0
        while len(groups) < count:
            for group in data_source.get_samples(count - len(groups)):
                if self.fill(group):
                    groups.append(group)
                    skipped_in_a_row = 0
                    continue
                skipped_in_a_row += 1
                if skipped_in_a_row >= len(data_source):
                    left_out = ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in self.counts.items())
                    raise DataError(
                        f"No prompt of a whole epoch ({len(data_source)} rows) can be used: {left_out}. Repair the data, or "
                        "change the options that leave prompts out, such as --rollout-max-prompt-len."
                    )
        return groups

    def _left_out(self, kind: str, why: str) -> bool:
        if not self.counts[kind]:
            logger.warning("%s It is left out. Further ones are counted in the metric %s.", why, kind)
        self.counts[kind] += 1
        return False

    def _tokens(self, sample: Sample) -> list[int]:
        from jinja2 import TemplateError

        tokenizer = load_tokenizer(self.args.hf_checkpoint)
        text = sample.prompt
        if is_tokenised(text):
            return self._known(sample)
        if not isinstance(text, str):
            if not self.args.apply_chat_template:
                raise ArgumentError(
                    f"{where(sample)}: the prompt is a list of messages, which the model cannot read as it is. Give "
                    "--apply-chat-template to render it, or name a column of text with --input-key."
                )
            try:
                text = tokenizer.apply_chat_template(
                    sample.prompt,
                    tools=sample.metadata.get("tools"),
                    add_generation_prompt=True,
                    tokenize=False,
                    **self.args.apply_chat_template_kwargs,
                )
            except (TemplateError, TypeError, ValueError, KeyError) as error:
                raise DataError(
                    f"{where(sample)}: the chat template cannot render the messages: {type(error).__name__}: {error}."
                ) from error
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise DataError(f"{where(sample)}: the prompt has no tokens.")
        return tokens

    def _known(self, sample: Sample) -> list[int]:
        ids: Any = sample.prompt
        try:
            require_known(ids, vocabulary_of(load_tokenizer(self.args.hf_checkpoint)))
        except DataError as error:
            raise DataError(f"{where(sample)}: {error}.") from None
        return ids


def where(sample: Sample) -> str:
    """How messages about a prompt begin: file and row, if they are known."""
    return str(sample.metadata.get("source") or sample.name)
