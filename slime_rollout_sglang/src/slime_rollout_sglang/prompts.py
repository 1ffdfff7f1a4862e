"""From a prompt to the token ids that the model reads, for rollouts and evaluations."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slime_core.contracts.data import next_groups
from slime_core.data import is_tokenised
from slime_core.data.prompts import read_prompt
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import processor_of
from slime_core.errors import DataError
from slime_core.sample import Group, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.contracts.data import DataSource
    from slime_rollout_sglang.arguments import RlRunArguments

logger = logging.getLogger(__name__)


@dataclass
class PromptTokenizer:
    """Gives groups their prompt tokens, and counts the prompts that cannot be used.

    They are read by `slime_core.data.prompts.read_prompt`. The text that the model reads becomes the sample's prompt; what a chat
    template rendered is its `asked` from then on.

    Attributes:
        args: `hf_checkpoint`, `apply_chat_template`, `apply_chat_template_kwargs`, `chat_template_date`, `malformed_row` and the
            limits of image sizes are read.
        limit: the longest prompt in tokens; None for no limit.
        limit_option: what sets the limit, for messages: an option, or the model's context.
        counts: how many prompts were left out, as "skipped_over_long_prompt" and "skipped_malformed"; and how many are asked without
            some of their text, which the chat template drops, as "with_dropped_text".
    """

    args: RlRunArguments
    limit: int | None
    limit_option: str
    counts: Counter[str] = field(default_factory=Counter)

    def tokenize(self, group: Group) -> bool:
        """Set `tokens` of the samples that have none yet. False means that the options leave the prompt out.

        Raises:
            ArgumentError: the prompt has messages, and --apply-chat-template is not given.
            DataError: the prompt cannot be rendered, its question is not in the rendering, or it has no tokens, and --malformed-row
                is "error".
        """
        text, tokens, read = "", None, None
        for sample in group:
            if sample.tokens:
                continue
            if tokens is None or (sample.prompt, sample.images) != read:
                read = sample.prompt, sample.images
                try:
                    prompt = read_prompt(
                        sample, self._tokenizer, self.args, self.args.apply_chat_template, processor_of(self.args)
                    )
                except DataError as error:
                    if self.args.malformed_row == "error":
                        raise
                    return self._left_out("skipped_malformed", str(error))
                text, tokens = prompt.text, prompt.tokens
                if prompt.dropped:
                    self._count(
                        "with_dropped_text", f"{_place(sample)}: {prompt.dropped[0].sentence}. It is asked without."
                    )
            if self.limit is not None and len(tokens) > self.limit:
                return self._left_out(
                    "skipped_over_long_prompt",
                    f"{_place(sample)}: the prompt has {len(tokens)} tokens, more than the {self.limit} that "
                    f"{self.limit_option} allows.",
                )
            sample.tokens = list(tokens)
            if is_tokenised(sample.prompt):
                sample.loss_mask = None  # of the row's tokens, while a sample's is of its response
            elif self.args.apply_chat_template and not sample.is_rendered:
                sample.note(asked=sample.prompt)
            sample.prompt = text
        return True

    def take(self, data_source: DataSource, count: int) -> list[Group]:
        """Return the next `count` groups of a data source that can be used, each with its prompt tokens.

        Raises:
            DataError: no prompt of a whole epoch can be used; or as `tokenize`.
            ArgumentError: as `tokenize`.
            PluginError: the data source returns something else than groups.
        """
        groups: list[Group] = []
        skipped_in_a_row = 0
        while len(groups) < count:
            for group in next_groups(data_source, count - len(groups), self.args.n_samples_per_prompt):
                if self.tokenize(group):
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

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.args.hf_checkpoint)

    def _left_out(self, kind: str, why: str) -> bool:
        self._count(kind, f"{why} It is left out.")
        return False

    def _count(self, kind: str, why: str) -> None:
        if not self.counts[kind]:
            logger.warning("%s Further ones are counted in the metric %s.", why, kind)
        self.counts[kind] += 1


def _place(sample: Sample) -> str:
    """Return how messages about a prompt begin: file and row if they are known, else the sample's name."""
    return sample.source or sample.name
