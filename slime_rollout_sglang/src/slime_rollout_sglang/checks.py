"""What the rollouts of reinforcement learning see of a run before it starts: the engine, prompts, rewards, sizes.

Named by the plugin as the check of both rollout functions (`slime_core.contracts.checking`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slime_core.arguments.groups.evaluation import args_of_set
from slime_core.contracts.checking import Checking
from slime_core.data.context import CONTEXT_IN_WORDS, context_of
from slime_core.data.notices import Notices
from slime_core.data.prompts import read_prompt
from slime_core.data.vision import processor_of
from slime_core.errors import ArgumentError, DataError
from slime_core.plugins import Selected
from slime_core.rollout.asking import check_images
from slime_core.rollout.checks import check_early_stopping, first_evaluated, needs_an_engine
from slime_core.rollout.components import declared_engine_use
from slime_core.sample import Sample
from slime_rollout_sglang.evaluation import components_of_set
from slime_rollout_sglang.parameters import prompt_limit

if TYPE_CHECKING:
    from slime_rollout_sglang.arguments import RlRunArguments


def check(args: RlRunArguments, checking: Checking) -> None:
    """Say what would end the run in its first rollout or evaluation."""
    rollouts = checking.components.rollouts
    if args.load_debug_rollout_data:
        if args.eval_interval and args.eval_prompt_data and declared_engine_use(rollouts.eval_rollout) == "always":
            checking.error(needs_an_engine("An evaluation of answers, --eval-prompt-data,", args))
        return
    if (args.over_sampling_batch_size or args.rollout_batch_size) < args.rollout_batch_size:
        checking.error(
            f"--over-sampling-batch-size is {args.over_sampling_batch_size}; expected at least --rollout-batch-size "
            f"{args.rollout_batch_size}."
        )
    if rollouts.engine is None and "rollout_engine" not in checking.set_aside:
        checking.error(needs_an_engine("The rollout generates text, which", args))
    _context(args, checking)
    check_images(args, checking, checking.samples)
    notices = Notices(checking.remark)
    _prompts(args, checking, checking.samples, notices)
    _scored(args, checking, checking.samples, rollouts.further)
    for sample in first_evaluated(checking):
        own = args_of_set(args, str(sample.dataset))
        check_images(own, checking, [sample])
        _prompts(own, checking, [sample], notices, evaluation=True)
        with checking.noting():
            components = components_of_set(args, own, rollouts, checking.plugins)
            _scored(own, checking, [sample], components.further)
            if (reward := components.further.get("reward")) is not None:
                checking.ask(reward, [sample])
    check_early_stopping(checking, measured=("reward",), why="an evaluation of generated answers measures no loss")


def _context(args: RlRunArguments, checking: Checking) -> None:
    """No option asks for more than the model's context."""
    model = context_of(args.hf_checkpoint) if args.hf_checkpoint else None
    for option in ("rollout_max_context_len", "eval_max_context_len"):
        given = getattr(args, option)
        if model is not None and given is not None and given > model:
            checking.remark(
                f"--{option.replace('_', '-')} is {given}, but {CONTEXT_IN_WORDS} is {model}: no sequence becomes longer than that."
            )


def _prompts(
    args: RlRunArguments, checking: Checking, samples: Sequence[Sample], notices: Notices, evaluation: bool = False
) -> None:
    """Each of these prompts can be rendered and tokenised; those that are left out are named."""
    if checking.tokenizer is None:
        return
    limit, set_by = prompt_limit(args, evaluation)
    for sample in samples:
        try:
            prompt = read_prompt(
                sample, checking.tokenizer, args, args.apply_chat_template, processor_of(args), notices
            )
            tokens = prompt.tokens
            for item in prompt.dropped:
                checking.remark(f"{sample.source}: {item.sentence}. Such prompts are asked without it, and counted.")
            if limit is not None and len(tokens) > limit:
                checking.remark(
                    f"{sample.source}: the prompt has {len(tokens)} tokens, more than the {limit} that {set_by} allows. Such prompts "
                    "are left out, and counted."
                )
        except ArgumentError as error:
            checking.error(str(error))
            return  # it is the same for all
        except DataError as error:
            told = checking.error if args.malformed_row == "error" else checking.remark
            told(str(error))


def _scored(
    args: RlRunArguments, checking: Checking, samples: Sequence[Sample], further: Mapping[str, Selected[Any]]
) -> None:
    """Something scores each of these samples, and the rewards that rows name are there."""
    if args.custom_rm_path or "rm_type" in checking.set_aside or "custom_rm_path" in checking.set_aside:
        return
    named: dict[str, list[Sample]] = {}
    for sample in samples:
        name = sample.metadata.get("rm_type")
        if isinstance(name, str):
            named.setdefault(name, []).append(sample)
        elif "reward" not in further and not args.custom_generate_function_path:
            checking.error(
                f"Nothing scores {sample.source}: choose a reward with --rm-type or --custom-rm-path, name one in the row's "
                'metadata as "rm_type", or set the reward in your generate function.'
            )
            break
    for name, own in named.items():
        with checking.noting():
            reward: Selected[float] = checking.plugins.select("reward", name, installed_only=True)
            checking.ask(reward, own)
