"""From defaults, recipe, environment and command line to the run's frozen arguments, with where each value came from.

Later sources win: defaults < recipe < environment < command line. Values that follow from others are computed once,
in `derive`, after all sources have been read. An unknown name is an error that offers the nearest one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from slime_core.arguments.command_line import parse_command_line
from slime_core.arguments.derived import derived
from slime_core.arguments.groups import RunArguments
from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import Stage
from slime_core.errors import ArgumentError

BY_TIME = "the time of start"


@dataclass(frozen=True)
class Resolved:
    """The arguments of a run.

    Attributes:
        args: the frozen object with slime's flat names that every hook receives.
        provenance: per option "default", "recipe FILE", "environment NAME", "command line" or "derived: why".
        namespace: all options that exist.
    """

    args: RunArguments
    provenance: dict[str, str]
    namespace: Namespace

    def updated(self, why: str, **values: Any) -> Resolved:
        """A copy with derived values filled in."""
        provenance = {**self.provenance, **dict.fromkeys(values, f"derived: {why}")}
        return Resolved(self.args.model_copy(update=values), provenance, self.namespace)

    def with_absolute_folders(self) -> Resolved:
        """A copy whose folders to write into are absolute, so that whoever changes the current folder changes nothing."""
        given = {name: getattr(self.args, name) for name in ("run_dir", "save", "save_hf")}
        absolute = {name: os.path.abspath(folder) for name, folder in given.items() if folder}
        return Resolved(self.args.model_copy(update=absolute), self.provenance, self.namespace)

    @property
    def run_dir_by_time(self) -> bool:
        """Whether the run directory is called by the time of start, as nobody gave one."""
        return self.provenance["run_dir"] == f"derived: {BY_TIME}"

    @property
    def set_by_user(self) -> list[str]:
        """Names of the options that somebody set."""
        return [n for n, where in self.provenance.items() if where != "default" and not where.startswith("derived")]

    def result_arguments(self) -> dict[str, Any]:
        """The values that can change the trained weights, as plain data: what a resumed run is compared with."""
        options = self.namespace.options
        return {n: v for n, v in self.args.model_dump(mode="json").items() if options[n].affects_result}


def resolve(
    namespace: Namespace, argv: Iterable[str], recipe: Stage | None = None, env: Mapping[str, str] | None = None
) -> Resolved:
    """Merge all sources and validate.

    Args:
        argv: the command line after the recipe.
        recipe: one run of a recipe file.
        env: environment; the process's own by default.

    Raises:
        ArgumentError: with one line for every option that is wrong.
    """
    values: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    for where, source in (
        (f"recipe {recipe.name}", recipe.options(namespace)) if recipe else ("", {}),
        ("environment", _read_environment(namespace, os.environ if env is None else env)),
        ("command line", parse_command_line(namespace, list(argv))),
    ):
        for name, value in source.items():
            values[name] = value
            provenance[name] = where if where != "environment" else f"environment {namespace.options[name].env}"
    missing = [o for o in namespace.options.values() if o.required and o.name not in values]
    if missing:
        raise ArgumentError("\n".join(f"{o.flag} is required: {o.field.description}" for o in missing))
    try:
        args = namespace.model(**values)
    except ValidationError as error:
        raise ArgumentError("\n".join(_readable(e, namespace, provenance) for e in error.errors())) from None
    everywhere = {name: provenance.get(name, "default") for name in namespace.options}
    return derive(Resolved(args, everywhere, namespace), f"-stage{recipe.number}" if recipe and recipe.number else "")


def derive(resolved: Resolved, suffix: str = "") -> Resolved:
    """Fill in what follows from other options, and check what only makes sense together.

    Args:
        suffix: of the default run directory.
    """
    args = resolved.args
    per_rollout = args.rollout_batch_size * args.n_samples_per_prompt
    per_rollout_text = f"--rollout-batch-size {args.rollout_batch_size} × --n-samples-per-prompt {args.n_samples_per_prompt} = {per_rollout}"
    steps = args.num_steps_per_rollout
    if steps is not None and per_rollout % steps:
        raise ArgumentError(
            f"--num-steps-per-rollout is {steps}, but it must divide the {per_rollout_text} samples of a rollout."
        )
    if args.global_batch_size is None:
        why = per_rollout_text + (f", in {steps} steps" if steps else "")
        resolved = resolved.updated(why, global_batch_size=per_rollout // (steps or 1))
    elif per_rollout % args.global_batch_size:
        raise ArgumentError(
            f"--global-batch-size is {args.global_batch_size}, but it must divide the samples of a rollout: {per_rollout_text}. "
            f"Change one of them, for example --global-batch-size {_nearest_divisor(per_rollout, args.global_batch_size)}."
        )
    elif steps is not None and steps * args.global_batch_size != per_rollout:
        raise ArgumentError(
            f"--num-steps-per-rollout {steps} and --global-batch-size {args.global_batch_size} contradict each other: "
            f"{steps} × {args.global_batch_size} is not {per_rollout_text}. Leave one of them out."
        )
    if steps is None:
        batch = derived(resolved.args.global_batch_size)
        resolved = resolved.updated(
            "samples per rollout / --global-batch-size", num_steps_per_rollout=per_rollout // batch
        )
    if args.use_dynamic_batch_size and args.max_tokens_per_gpu is None:
        raise ArgumentError("--use-dynamic-batch-size needs --max-tokens-per-gpu, the token budget of a micro-batch.")
    if args.num_rollout is None and args.num_epoch is None:
        raise ArgumentError("Give --num-epoch (times through the data) or --num-rollout (rollouts in all).")
    if args.eval_prompt_data is not None:
        eval_sets(args)
        if args.eval_interval is None and args.num_rollout != 0:
            raise ArgumentError("--eval-prompt-data needs --eval-interval N, or --num-rollout 0 to evaluate only.")
    elif args.num_rollout == 0:
        raise ArgumentError("--num-rollout 0 evaluates only, so it needs --eval-prompt-data.")
    if args.rm_type and args.custom_rm_path:
        raise ArgumentError("--rm-type and --custom-rm-path both choose the reward; give only one of them.")
    if args.calculate_per_token_loss and args.constant_length_loss:
        raise ArgumentError("--calculate-per-token-loss and --constant-length-loss contradict each other; give one.")
    if (args.loss_type == "custom_loss") != (args.custom_loss_function_path is not None):
        raise ArgumentError(
            "--loss-type custom_loss and --custom-loss-function-path belong together; give both or none."
        )
    if args.debug_rollout_only and (args.debug_train_only or args.load_debug_rollout_data):
        other = "--debug-train-only" if args.debug_train_only else "--load-debug-rollout-data"
        raise ArgumentError(f"--debug-rollout-only and {other} contradict each other; give one of them.")
    for name in ("save_debug_rollout_data", "load_debug_rollout_data"):
        template = getattr(args, name)
        if template and "{rollout_id}" not in template and args.num_rollout != 1:
            raise ArgumentError(
                f"--{name.replace('_', '-')} is {template!r}, one file for all rollouts. Put {{rollout_id}} in it."
            )
    if args.load_debug_rollout_data and not args.debug_train_only:
        resolved = resolved.updated("--load-debug-rollout-data", debug_train_only=True)
    if args.eval_function_path is None:
        resolved = resolved.updated("--rollout-function-path", eval_function_path=args.rollout_function_path)
    if args.run_dir is None:
        if args.save:
            resolved = resolved.updated("--save", run_dir=args.save)
        else:
            resolved = resolved.updated(BY_TIME, run_dir=time.strftime("runs/%Y%m%d-%H%M%S") + suffix)
    return resolved


def with_data_length(resolved: Resolved, prompts: int) -> Resolved:
    """Derive `num_rollout` from `num_epoch` once the length of the data is known (in prompts).

    The last, incomplete rollout of an epoch is filled up from the next epoch, so that no prompt is left out; the number
    of rollouts is therefore num_epoch × prompts / rollout_batch_size, rounded down but at least 1.
    """
    args = resolved.args
    if args.num_rollout is not None:
        return resolved
    epochs = derived(args.num_epoch)
    rollouts = epochs * prompts // args.rollout_batch_size
    if rollouts == 0:
        raise ArgumentError(
            f"--num-epoch {epochs} of {prompts} prompts is less than one rollout of --rollout-batch-size "
            f"{args.rollout_batch_size}. Lower --rollout-batch-size to at most {epochs * prompts}."
        )
    why = f"--num-epoch {epochs} × {prompts} prompts // --rollout-batch-size {args.rollout_batch_size}"
    return resolved.updated(why, num_rollout=rollouts)


def _read_environment(namespace: Namespace, env: Mapping[str, str]) -> dict[str, Any]:
    return {o.name: env[o.env] for o in namespace.options.values() if o.env and env.get(o.env)}


def _readable(error: Any, namespace: Namespace, provenance: dict[str, str]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    message: str = error["msg"].removeprefix("Value error, ")
    if name not in namespace.options:
        return message
    option = namespace.options[name]
    return f"{option.flag}: given {error['input']!r} ({provenance.get(name, 'default')}). {message}. It means: {option.field.description}"


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))
