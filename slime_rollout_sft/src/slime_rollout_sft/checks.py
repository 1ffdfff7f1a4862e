"""What the SFT rollout sees of a run before it starts: conversations, evaluation sets, what `--eval-generate` needs.

Named by the plugin as the check of the rollout function (`slime_core.contracts.checking`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.arguments.eval_config import METADATA, OPTION_OF
from slime_core.arguments.groups.evaluation import args_of_set
from slime_core.contracts.checking import Checking
from slime_core.contracts.loss import may_skip_zero_advantage
from slime_core.data.image_rows import count_places
from slime_core.data.rows import LOOKED_AT, first_rows
from slime_core.data.tokenizer import template_variables
from slime_core.data.vision import processor_of
from slime_core.rollout.asking import check_images
from slime_core.rollout.checks import check_early_stopping, first_evaluated, needs_an_engine
from slime_core.sample import Sample
from slime_rollout_sft.answers import question_of, read_question, rewards_of_set
from slime_rollout_sft.conversations import Conversations, Policy, with_variables

if TYPE_CHECKING:
    from slime_rollout_sft.arguments import SftRunArguments


def check(args: SftRunArguments, checking: Checking) -> None:
    """Say what would end the run at its first rows or in its first evaluation."""
    rollouts = checking.components.rollouts
    if (
        args.eval_generate
        and args.eval_prompt_data
        and rollouts.engine is None
        and "rollout_engine" not in checking.set_aside
    ):
        checking.error(needs_an_engine(f"--eval-generate {args.eval_generate}", args))
    _options_of_sets(args, checking)
    _something_to_learn(args, checking)
    evaluated = first_evaluated(checking)
    check_early_stopping(
        checking,
        measured=("loss", "reward") if args.eval_generate and _are_scored(args, checking, evaluated) else ("loss",),
        why="only --eval-generate with a reward measures one",
    )
    if checking.tokenizer is None or "loss_mask" not in rollouts.further or args.load_debug_rollout_data:
        return
    with checking.noting():
        _look_at_images(args, checking)
    loss_mask = None
    with checking.noting():
        loss_mask = with_variables(rollouts.further["loss_mask"], template_variables(checking.tokenizer, args))
    if loss_mask is None:
        return
    conversations = Conversations(Policy.of(args), loss_mask)
    if args.eval_generate:
        check_images(args, checking, evaluated)
    for sample in checking.samples:
        with checking.noting():
            conversations.complete(copy.deepcopy(sample))
    for sample in evaluated:
        with checking.noting():
            done = conversations.complete(copy.deepcopy(sample))
            if done is not None and args.eval_generate:
                read_question(args, checking.tokenizer, question_of(done))
    if left_out := conversations.left_out():
        checking.remark(f"Of the first rows of all files, some are left out or cut: {left_out}.")


def _something_to_learn(args: SftRunArguments, checking: Checking) -> None:
    """Conversations have no rewards, from which the default loss would learn."""
    training = checking.components.training
    own = (
        args.custom_advantage_function_path
        or args.custom_reward_post_process_path
        or args.rollout_data_postprocess_path
    )
    told = checking.set_aside & {"loss_type", "custom_loss_function_path", "advantage_estimator"}
    if checking.components.rollouts.rollout.name != "sft" or training.advantage is None or own or told:
        return
    if args.advantage_estimator == "grpo" and may_skip_zero_advantage(training.loss, args):
        checking.error(
            f"The rollout 'sft' gives no rewards, of which --loss-type {args.loss_type} learns: every advantage would be 0. Choose "
            "--loss-type sft_loss."
        )


_OF_ROWS = frozenset({"eval_input_key", "eval_label_key", "eval_tool_key", "metadata_key", "multimodal_keys", METADATA})
_OF_ANSWERS = frozenset({"eval_temperature", "eval_max_response_len", "rm_type", "custom_rm_path"})
"""What an evaluation set may have of its own: for its rows, and for the answers of `--eval-generate`."""


def _options_of_sets(args: SftRunArguments, checking: Checking) -> None:
    """What evaluation sets have of their own is of use here."""
    key_of = {option: key for key, option in OPTION_OF.items()}
    for name, own in args.eval_set_options.items():
        useless = {option: key_of.get(option, option) for option in own if option not in _OF_ROWS | _OF_ANSWERS}
        if useless:
            checking.error(
                f"The evaluation set {name!r} sets {', '.join(useless.values())}, which fine-tuning has no use for. Leave that out; "
                f"a set may have {', '.join(sorted(key_of.get(option, option) for option in _OF_ROWS | _OF_ANSWERS))} of its own."
            )


def _are_scored(args: SftRunArguments, checking: Checking, evaluated: Sequence[Sample]) -> bool:
    """Whether something scores answers to one of these questions. The rewards that sets and rows name are there."""
    scored = False
    for sample in evaluated:
        with checking.noting():
            own = args_of_set(args, str(sample.dataset))
            reward = checking.components.rollouts.further.get("reward")
            scored |= rewards_of_set(args, own, reward, checking.plugins).caller(sample) is not None
    return scored


def _look_at_images(args: SftRunArguments, checking: Checking) -> None:
    """A model that reads images has some to read, or is said to be trained on text alone."""
    processor = processor_of(args)
    if processor is None:
        if args.text_only:
            checking.error(
                f"--text-only: the checkpoint {args.hf_checkpoint} reads no images anyway. Leave the option out."
            )
        return
    if args.text_only or not checking.samples or any(sample.images for sample in checking.samples):
        return
    if args.data_source_path != "global":
        checking.not_seen(
            "Whether rows have images was looked for in the first row of every file alone: they have none."
        )
    elif not any(_has_image(args, row) for row in first_rows(args.prompt_data)):
        checking.error(
            f"The checkpoint {args.hf_checkpoint} reads images, and none of the first {LOOKED_AT:,} rows of any file has one, so that "
            'it would be trained blind. Name the column of images with --multimodal-keys \'{"image": "images"}\' or, to train its '
            "text alone, add --text-only."
        )


def _has_image(args: SftRunArguments, row: dict[str, Any]) -> bool:
    messages = row.get(args.input_key)
    return isinstance(messages, list) and bool(count_places(messages, bool(args.multimodal_keys)))
