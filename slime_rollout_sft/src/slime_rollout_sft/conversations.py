"""From a conversation, or a row of token ids, to a sample that can be trained.

Called by the SFT rollout, for training data and evaluation sets alike, and by the mask preview.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from slime_core.contracts.data import MaskedTokens
from slime_core.data import is_tokenised, require_known, vocabulary_of
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import DataError
from slime_core.sample import Sample, Status

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.plugins import Selected
    from slime_rollout_sft.arguments import SftRunArguments


@dataclass(frozen=True)
class Policy:
    """The options that decide what becomes of a conversation, apart from the run's others so that two can be compared.

    Attributes:
        hf_checkpoint: the checkpoint whose tokenizer is used.
        input_key: the column of the conversation, for messages.
        rollout_max_context_len: the longest conversation in tokens; None: any.
        malformed_row, over_long_sample, no_trainable_token: what to do with a conversation that cannot be used.
    """

    hf_checkpoint: str
    input_key: str
    rollout_max_context_len: int | None = None
    malformed_row: Literal["error", "skip"] = "error"
    over_long_sample: Literal["error", "skip", "truncate"] = "error"
    no_trainable_token: Literal["error", "skip"] = "error"

    @classmethod
    def of(cls, args: SftRunArguments) -> Policy:
        """The policy of a run."""
        return cls(
            hf_checkpoint=args.hf_checkpoint,
            input_key=args.input_key,
            rollout_max_context_len=args.rollout_max_context_len,
            malformed_row=args.malformed_row,
            over_long_sample=args.over_long_sample,
            no_trainable_token=args.no_trainable_token,
        )


class Unusable(Exception):
    """A conversation cannot be trained.

    Attributes:
        kind: the metric that counts it if it is skipped.
        skip: whether the policy says to skip it.
    """

    def __init__(self, kind: str, skip: bool, message: str) -> None:
        super().__init__(message)
        self.kind, self.skip = kind, skip


def respond(sample: Sample, masked: MaskedTokens, policy: Policy) -> Sample:
    """Return `sample` with the tokens of its rendered conversation, cut and split into prompt and response. Pure.

    The first token is never trained, since nothing precedes it to predict it from.

    Raises:
        Unusable: it is over-long, or no token (that is left) is trained.
    """
    tokens, mask = masked.token_ids, [0, *masked.loss_mask[1:]]
    limit = policy.rollout_max_context_len
    is_over_long = limit is not None and len(tokens) > limit
    if is_over_long and policy.over_long_sample != "truncate":
        raise Unusable(
            "skipped_over_long",
            policy.over_long_sample == "skip",
            f"the conversation has {len(tokens)} tokens, more than --rollout-max-context-len {limit}. Raise the "
            "limit, shorten the row, or choose --over-long-sample skip or truncate.",
        )
    if is_over_long:
        tokens, mask = tokens[:limit], mask[:limit]
    if 1 not in mask:
        remedy = (
            "one behind the first that 'loss_mask' or 'labels' trains; repair the row"
            if is_tokenised(sample.prompt)
            else "an assistant message that is not masked out; add one"
        )
        raise Unusable(
            "skipped_no_trainable_token",
            policy.no_trainable_token == "skip",
            f"no token of the conversation is trained{f' within its first {limit} tokens' if is_over_long else ''}. "
            f"It needs {remedy}, or choose --no-trainable-token skip.",
        )
    first = mask.index(1)
    return replace(
        sample,
        tokens=tokens,
        response_length=len(tokens) - first,
        loss_mask=mask[first:],
        reward=0.0,
        status=Status.TRUNCATED if is_over_long else Status.COMPLETED,
    )


class Conversations:
    """Completes samples one by one, and counts those that the policy left out or cut.

    Attributes:
        policy: what becomes of a conversation that cannot be used as it is.
        counts: numbers of conversations, under the names of the metrics that `generate_rollout` documents.
    """

    def __init__(self, policy: Policy, loss_mask: Selected[MaskedTokens]) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self._tokenizer = load_tokenizer(policy.hf_checkpoint)
        self._loss_mask = loss_mask

    def complete(self, sample: Sample) -> Sample | None:
        """Return the sample with tokens, mask and response; None when the policy says to skip it.

        Raises:
            DataError: it cannot be used, and the policy is to stop. Names file and row.
        """
        try:
            masked = self._render(sample)
            done = respond(sample, masked, self.policy)
        except Unusable as problem:
            if not problem.skip:
                raise DataError(f"{sample.metadata.get('source', sample.name)}: {problem}") from problem.__cause__
            self.counts[problem.kind] += 1
            return None
        self.counts["truncated"] += done.status is Status.TRUNCATED
        self.counts["with_mask_warnings"] += bool(masked.warnings)
        done.response = self._text(done.tokens[-done.response_length :])
        if is_tokenised(sample.prompt):
            done.prompt = self._text(done.tokens[: -done.response_length])
        return done

    def metrics(self) -> dict[str, float]:
        """The counts that are not 0."""
        return {kind: float(number) for kind, number in self.counts.items() if number}

    def left_out(self) -> str:
        """The counts that are not 0, as text for messages."""
        return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in self.counts.items() if number)

    def _render(self, sample: Sample) -> MaskedTokens:
        skip = self.policy.malformed_row == "skip"
        if isinstance(sample.prompt, str):
            raise Unusable(
                "skipped_malformed",
                skip,
                f"{self.policy.input_key!r} is text, but fine-tuning needs messages, which say what is trained. "
                "Name the column of messages with --input-key, or make one with `slime data convert`.",
            )
        try:
            if is_tokenised(sample.prompt):
                return tokenised(sample, self._tokenizer)
            return self._loss_mask(self._tokenizer, sample.prompt, sample.metadata.get("tools"))
        except DataError as error:
            raise Unusable("skipped_malformed", skip, str(error)) from error

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self._tokenizer.decode(tokens))  # a list of texts is for a batch only


def tokenised(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> MaskedTokens:
    """Return the token ids of a row with its mask; without one, all are trained.

    Raises:
        DataError: the tokenizer does not know an id; without file and row.
    """
    ids: Any = sample.prompt
    require_known(ids, vocabulary_of(tokenizer))
    return MaskedTokens(ids, sample.loss_mask or [1] * len(ids))
