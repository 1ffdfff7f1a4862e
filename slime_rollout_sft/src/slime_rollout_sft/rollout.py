"""The SFT rollout: conversations from the data source, tokenised and masked. No model generates anything.

Selected by `--rollout-function-path sft`. A conversation that cannot be used is treated as `--malformed-row`,
`--over-long-sample`, `--dropped-text` and `--no-trainable-token` say. One that is skipped is replaced by the next row, so a batch keeps
its size (and an epoch ends a little earlier), and it is counted in the metrics. A row of token ids is used as it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from weakref import WeakKeyDictionary

from slime_core.contracts.data import DataSource, MaskedTokens, malformed_rows, next_groups
from slime_core.contracts.engine import InferenceEngine
from slime_core.contracts.rollout import uses_engine
from slime_core.data import EvaluationSet, evaluation_sets
from slime_core.data.tokenizer import load_tokenizer, template_variables
from slime_core.errors import DataError
from slime_core.plugins import Plugins, Selected
from slime_core.rollout.components import RolloutComponents
from slime_core.sample import Group, RolloutOutput, Sample
from slime_rollout_sft.arguments import SftRunArguments
from slime_rollout_sft.conversations import Conversations, Policy, with_variables
from slime_rollout_sft.workers import ConversationWorkers, Work


@uses_engine("evaluation")
def generate_rollout(
    args: SftRunArguments,
    rollout_id: int,
    data_source: DataSource,
    evaluation: bool = False,
    *,
    components: RolloutComponents,
    engine: InferenceEngine | None = None,
    plugins: Plugins | None = None,
    at_end: ExitStack | None = None,
) -> RolloutOutput:
    """Return the next `--rollout-batch-size` conversations or, for evaluation, all of `--eval-prompt-data`.

    Every sample gets its tokens; as response, everything from its first trained token on; and a reward of 0. The
    samples of a group are equal. Metrics, as far as they are not 0: "skipped_malformed", "skipped_over_long",
    "skipped_no_trainable_token", "skipped_dropped_text" and "truncated", numbers of conversations, and
    "with_mask_warnings", "with_special_token_text" and "with_dropped_text" (`slime data preview` shows the warnings).

    Args:
        components: the loss-mask generator, and the reward of `--eval-generate`.
        engine: answers the questions of the evaluation sets under `--eval-generate`.
        plugins, at_end: of a run, whose `--num-workers` processes complete the conversations until it ends, and which keeps the samples of
            its evaluation sets as long; without them there are no processes, and nothing is kept. Plugins also provide the rewards
            that evaluation sets and their rows name.

    Raises:
        DataError: a conversation cannot be used and the policy is "error", or a whole epoch was skipped.
    """
    policy = Policy.of(args)
    variables = template_variables(load_tokenizer(args.hf_checkpoint), args)
    loss_mask = with_variables(components.further["loss_mask"], variables)
    if evaluation:
        return _evaluate(args, policy, loss_mask, components, engine, plugins, at_end)
    malformed_before = malformed_rows(data_source)
    conversations = Conversations(policy, loss_mask)
    groups: list[Group] = []
    skipped_in_a_row = 0
    workers = None
    if args.num_workers and plugins is not None and at_end is not None:
        work = Work(policy, args.loss_mask_type, variables, plugins.switches, args.trust_remote_code)
        workers = _workers(work, min(args.num_workers, args.rollout_batch_size), at_end)
    while len(groups) < args.rollout_batch_size:
        taken = next_groups(data_source, args.rollout_batch_size - len(groups), args.n_samples_per_prompt)
        firsts = [group[0] for group in taken]
        completed = workers.complete(firsts, conversations) if workers else map(conversations.complete, firsts)
        for group, done in zip(taken, completed, strict=True):
            if done is not None:
                made = [done.changed(index=s.index, metadata=s.metadata) for s in group]
                for sample in made:
                    if done.tools and not sample.tools:  # they stood in its metadata
                        sample.note(tools=done.tools)
                groups.append(made)
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


def _workers(work: Work, count: int, at_end: ExitStack) -> ConversationWorkers:
    """The processes of the run that ends with this stack: those of its earlier rollouts, or new ones."""
    workers = _of_runs.get(at_end)
    if workers is None or not workers.is_open or workers.work != work:
        workers = _of_runs[at_end] = ConversationWorkers(work, count)
        at_end.callback(workers.close)
    return workers


_of_runs: WeakKeyDictionary[ExitStack, ConversationWorkers] = WeakKeyDictionary()


def _evaluate(
    args: SftRunArguments,
    policy: Policy,
    loss_mask: Selected[MaskedTokens],
    components: RolloutComponents,
    engine: InferenceEngine | None,
    plugins: Plugins | None,
    at_end: ExitStack | None,
) -> RolloutOutput:
    key = policy, loss_mask, evaluation_sets(args)
    kept = None if at_end is None else _evaluated.get(at_end)
    if kept is None or kept[0] != key:
        kept = key, _evaluation_samples(*key)
        if at_end is not None:
            _evaluated[at_end] = kept
    samples, metrics = kept[1]
    groups = [[replace(sample, metadata=dict(sample.metadata))] for sample in samples]
    answers: list[Sample] = []
    if args.eval_generate:
        from slime_rollout_sft.answers import answer_first

        reward, tokenizer = components.further.get("reward"), load_tokenizer(policy.hf_checkpoint)
        answers, counted = answer_first(args, reward, plugins, engine, tokenizer, samples)
        metrics = {**metrics, **counted}
    return RolloutOutput(groups, dict(metrics), answers)


_Sets = tuple[Policy, Selected[MaskedTokens], tuple[EvaluationSet, ...]]
_evaluated: WeakKeyDictionary[ExitStack, tuple[_Sets, tuple[list[Sample], dict[str, float]]]] = WeakKeyDictionary()
"""The samples that are the same in every evaluation of a run. The next run of this process may find other rows in the files."""


def _evaluation_samples(
    policy: Policy, loss_mask: Selected[MaskedTokens], sets: tuple[EvaluationSet, ...]
) -> tuple[list[Sample], dict[str, float]]:
    """Return all samples of all sets in the order of their rows, and the metrics."""
    conversations = Conversations(policy, loss_mask)
    samples: list[Sample] = []
    for evaluation_set in sets:
        before = len(samples)
        for sample in evaluation_set.samples(conversations.counts):
            done = conversations.complete(sample)
            if done is not None:
                samples.append(replace(done, index=len(samples), group_index=len(samples)))
        if len(samples) == before:
            raise DataError(
                f"No row of the evaluation set {evaluation_set.name} ({evaluation_set.spec}) can be used: "
                f"{conversations.left_out()}. Repair the data, or change the options that skip."
            )
    return samples, conversations.metrics()
