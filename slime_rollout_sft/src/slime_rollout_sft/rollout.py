"""The SFT rollout: conversations from the data source, tokenised and masked. No model generates anything.

Selected by `--rollout-function-path sft`. A conversation that cannot be used is treated as `--malformed-row`,
`--over-long-sample` and `--no-trainable-token` say. One that is skipped is replaced by the next row, so a batch keeps
its size (and an epoch ends a little earlier), and it is counted in the metrics. A row of token ids is used as it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.contracts.data import MaskedTokens, malformed_rows
from slime_core.contracts.rollout import uses_engine
from slime_core.data import is_tokenised, open_rows, require_known, sample_from_row, vocabulary_of
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import DataError
from slime_core.plugins import Selected
from slime_core.rollout.components import RolloutComponents
from slime_core.sample import Group, RolloutOutput, Sample, Status


@uses_engine("evaluation")
def generate_rollout(
    args: Any,
    rollout_id: int,
    data_source: Any,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    engine: Any = None,
) -> RolloutOutput:
    """The next `--rollout-batch-size` conversations or, for evaluation, all of `--eval-prompt-data`.

    Every sample gets its tokens; as response, everything from its first trained token on; and a reward of 0.
    The samples of a group are equal. Metrics, as far as they are not 0: "skipped_malformed", "skipped_over_long",
    "skipped_no_trainable_token" and "truncated", numbers of conversations, and "with_mask_warnings" (`slime data preview` shows them).

    Args:
        components: the loss-mask generator, and the reward of `--eval-generate`.
        engine: answers the questions of the evaluation sets under `--eval-generate`.

    Raises:
        DataError: a conversation cannot be used and the policy is "error", or a whole epoch was skipped.
    """
    policy = Policy.of(args)
    if evaluation:
        return _evaluate(args, policy, components, engine)
    malformed_before = malformed_rows(data_source)
    conversations = Conversations(policy, components.further["loss_mask"])
    groups: list[Group] = []
    skipped_in_a_row = 0
    while len(groups) < args.rollout_batch_size:
        for group in data_source.get_samples(args.rollout_batch_size - len(groups)):
            done = conversations.complete(group[0])
            if done is not None:
                groups.append([replace(done, index=s.index, metadata=s.metadata) for s in group])
                skipped_in_a_row = 0
                continue
            skipped_in_a_row += 1
            if skipped_in_a_row >= len(data_source):
                raise DataError(
                    f"No conversation of a whole epoch ({len(data_source)} rows) can be trained: "
                    f"{conversations.left_out()}. Repair the data, or change the options that skip."
                )
    conversations.counts["skipped_malformed"] += malformed_rows(data_source) - malformed_before
    return RolloutOutput(groups, conversations.metrics())


@dataclass(frozen=True)
class Policy:
    """The options that decide what becomes of a conversation, apart from the run's others so that they can be
    compared."""

    hf_checkpoint: str
    loss_mask_type: str
    input_key: str
    label_key: str | None
    tool_key: str | None
    metadata_key: str | None
    rollout_max_context_len: int | None
    malformed_row: str
    over_long_sample: str
    no_trainable_token: str

    @classmethod
    def of(cls, args: Any) -> Policy:
        """The run's policy."""
        return cls(**{name: getattr(args, name) for name in cls.__dataclass_fields__})


class Unusable(Exception):
    """A conversation cannot be trained. `kind` is the metric that counts it when `skip` is what the policy says."""

    def __init__(self, kind: str, skip: bool, message: str) -> None:
        super().__init__(message)
        self.kind, self.skip = kind, skip


def respond(sample: Sample, masked: MaskedTokens, policy: Policy) -> Sample:
    """`sample` with the tokens of a rendered conversation, cut and split into prompt and response. Pure.

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
    """Completes samples one by one, and counts what the policy left out or cut."""

    def __init__(self, policy: Policy, loss_mask: Selected[MaskedTokens]) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self._tokenizer = load_tokenizer(policy.hf_checkpoint)
        self._loss_mask = loss_mask

    def complete(self, sample: Sample) -> Sample | None:
        """The sample with tokens, mask and response; None when the policy says to skip it.

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
        done.response = self._tokenizer.decode(done.tokens[-done.response_length :])
        if is_tokenised(sample.prompt):
            done.prompt = self._tokenizer.decode(done.tokens[: -done.response_length])
        return done

    def metrics(self) -> dict[str, float]:
        """The counts that are not 0, under the names that `generate_rollout` documents."""
        return {kind: float(number) for kind, number in self.counts.items() if number}

    def left_out(self) -> str:
        """The counts as text."""
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


def tokenised(sample: Sample, tokenizer: Any) -> MaskedTokens:
    """The token ids of a row with its mask; without one, all are trained.

    Raises:
        DataError: the tokenizer does not know an id; without file and row.
    """
    ids: Any = sample.prompt
    require_known(ids, vocabulary_of(tokenizer))
    return MaskedTokens(ids, sample.loss_mask or [1] * len(ids))


def _evaluate(args: Any, policy: Policy, components: RolloutComponents, engine: Any) -> RolloutOutput:
    samples, metrics = _evaluation_samples(policy, components.further["loss_mask"], tuple(eval_sets(args)))
    groups = [[replace(sample, metadata=dict(sample.metadata))] for sample in samples]
    answers: list[Sample] = []
    if args.eval_generate:
        from slime_rollout_sft.answers import answer_first

        answers, counted = answer_first(
            args, components.further.get("reward"), engine, load_tokenizer(policy.hf_checkpoint), samples
        )
        metrics = {**metrics, **counted}
    return RolloutOutput(groups, dict(metrics), answers)


@lru_cache(maxsize=2)  # the same for every evaluation of a run
def _evaluation_samples(
    policy: Policy, loss_mask: Selected[MaskedTokens], sets: tuple[tuple[str, str], ...]
) -> tuple[list[Sample], dict[str, float]]:
    """All samples of all sets in the order of their rows, and the metrics. Held in memory until the run ends."""
    conversations = Conversations(policy, loss_mask)
    samples: list[Sample] = []
    for name, spec in sets:
        before = len(samples)
        rows = open_rows([spec])
        for index in range(len(rows)):
            try:
                sample = sample_from_row(policy, rows[index], rows.where(index))
            except DataError:
                if policy.malformed_row == "error":
                    raise
                conversations.counts["skipped_malformed"] += 1
                continue
            done = conversations.complete(sample)
            if done is not None:
                done.metadata["dataset"] = name
                samples.append(replace(done, index=len(samples), group_index=len(samples)))
        if len(samples) == before:
            raise DataError(
                f"No row of the evaluation set {name} ({spec}) can be used: {conversations.left_out()}. "
                "Repair the data, or change the options that skip."
            )
    return samples, conversations.metrics()
