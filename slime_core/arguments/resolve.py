"""From defaults, recipe, environment and command line to the run's frozen arguments, with where each value came from.

Later sources win: defaults < recipe < environment < command line < --custom-config-path. Values that follow from others are computed once,
in `derive`, after all sources have been read. An unknown name is an error that offers the nearest one.
"""

from __future__ import annotations

import os
import time
import typing
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from slime_core.arguments.command_line import parse_command_line
from slime_core.arguments.custom_config import read_custom_config
from slime_core.arguments.derived import derived
from slime_core.arguments.eval_config import METADATA, read_eval_config
from slime_core.arguments.groups import RunArguments
from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.arguments.namespace import Namespace, Option
from slime_core.arguments.recipe import Stage
from slime_core.arguments.rollout_paths import as_template, has_rollout
from slime_core.errors import ArgumentError, SlimeError, together
from slime_core.remote_code import trust_remote_code
from slime_core.sample import RESERVED
from slime_core.secrets import MASK, masked, masked_data, remember_secret, secret_from

BY_TIME = "the time of start"
_LONGEST_SHOWN = 500


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
        given = {name: getattr(self.args, name) for name in ("run_dir", "save")}
        absolute = {name: os.path.abspath(folder) for name, folder in given.items() if folder}
        if self.args.save_hf:
            absolute["save_hf"] = os.path.normpath(os.path.join(as_template(os.getcwd()), self.args.save_hf))
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
        return {n: v for n, v in shown_arguments(self.args).items() if options[n].affects_result}


@dataclass(frozen=True)
class Resolution:
    """What the sources of options say, as far as it can be used.

    Attributes:
        resolved: the arguments, in which every option that is wrong has its default; None if there can be none.
        errors: everything that is wrong.
        set_aside: names of the options that are wrong.
    """

    resolved: Resolved | None
    errors: list[SlimeError]
    set_aside: frozenset[str] = frozenset()


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
    found = read_sources(namespace, argv, recipe, env)
    if found.errors or found.resolved is None:
        raise together(found.errors)
    return found.resolved


def read_sources(
    namespace: Namespace, argv: Iterable[str], recipe: Stage | None = None, env: Mapping[str, str] | None = None
) -> Resolution:
    """As `resolve`, but everything that is wrong is collected, and the rest is merged and validated without it."""
    values: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    errors: list[SlimeError] = []
    sources: list[tuple[str, dict[str, Any]]] = []
    if recipe:
        own, wrong = recipe.read(namespace)
        sources.append((f"recipe {recipe.name}", own))
        errors += wrong
    sources.append(("environment", _read_environment(namespace, os.environ if env is None else env)))
    try:
        own, wrong = parse_command_line(namespace, list(argv))
    except ArgumentError as error:
        return Resolution(None, [*errors, error])
    sources.append(("command line", own))
    errors += wrong
    for where, source in sources:
        for name, value in source.items():
            values[name] = value
            provenance[name] = where if where != "environment" else f"environment {namespace.options[name].env}"
    if path := values.get("custom_config_path"):
        own, wrong = read_custom_config(namespace, str(path), values.get("custom_config"))
        errors += wrong
        for name, value in own.items():
            also = f", not {values[name]!r} of {provenance[name]}" if name in values and name != "custom_config" else ""
            values[name], provenance[name] = value, f"custom config {path}{also}"
    if provenance.get("eval_prompt_data") == "command line" and provenance.get("eval_config", "").startswith("recipe"):
        del values["eval_config"], provenance["eval_config"]  # the sets of a later source win
    if path := values.get("eval_config"):
        try:
            pairs, of_sets = read_eval_config(str(path))
        except ArgumentError as error:
            errors.append(error)
        else:
            for name, value in (("eval_prompt_data", pairs), ("eval_set_options", of_sets)):
                also = f", not {values[name]!r} of {provenance[name]}" if name in values else ""
                values[name], provenance[name] = value, f"eval config {path}{also}"
    errors += _with_secrets(namespace, values)
    blank = {name for name, value in values.items() if _is_blank(namespace.options.get(name), value)}
    for name in blank:
        del values[name]
        flag, where = namespace.options[name].flag, provenance[name]
        errors.append(
            ArgumentError(
                f"{flag} ({where}) is empty. Is a variable of the shell unset? Give a text, or leave {flag} out."
            )
        )
    errors += [
        ArgumentError(f"{o.flag} is required: {o.field.description}")
        for o in namespace.options.values()
        if o.required and o.name not in {*values, *blank}
    ]
    set_aside = blank
    while True:
        try:
            args = namespace.model(**values)
            break
        except ValidationError as invalid:
            told = [e for e in invalid.errors() if e["type"] != "missing"]
            errors += [ArgumentError(_readable(e, namespace, provenance)) for e in told]
            wrong_names = {str(e["loc"][0]) for e in told if e["loc"]} & values.keys() or _contradicting(
                namespace, values
            )
            if not wrong_names or any(namespace.options[name].required for name in wrong_names):
                return Resolution(None, errors, frozenset(set_aside))
            set_aside |= wrong_names
            values = {name: value for name, value in values.items() if name not in wrong_names}
    args, wrong = _with_set_options(args, values, namespace, provenance)
    errors += wrong
    remember_secrets(args)
    trust_remote_code(args.trust_remote_code)
    everywhere = {name: provenance.get(name, "default") for name in namespace.options}
    suffix = f"-stage{recipe.number}" if recipe and recipe.number else ""
    resolved = derive(Resolved(args, everywhere, namespace), suffix)
    errors += [ArgumentError(text) for text in chain(_contradictions(args, set_aside), _unknown_permissions(resolved))]
    return Resolution(resolved, errors, frozenset(set_aside))


def _with_set_options(
    args: RunArguments, values: dict[str, Any], namespace: Namespace, provenance: dict[str, str]
) -> tuple[RunArguments, list[SlimeError]]:
    """The arguments with what evaluation sets have of their own as the types that the options have, and what is wrong with it."""
    found: dict[str, dict[str, Any]] = {}
    errors: list[SlimeError] = []
    try:
        named = {name for name, _ in eval_sets(args)}
    except ArgumentError:  # told with --eval-prompt-data
        named = set(args.eval_set_options)
    for name, given in args.eval_set_options.items():
        where = f"The evaluation set {name!r} ({provenance.get('eval_set_options', 'default')})"
        own = {key: value for key, value in given.items() if key != METADATA}
        metadata = given.get(METADATA)
        if name not in named:
            errors.append(
                ArgumentError(f"{where} is not among those of --eval-prompt-data: {', '.join(sorted(named))}.")
            )
        elif unknown := sorted(own.keys() - namespace.options.keys()):
            errors.append(
                ArgumentError(f"{where} sets {unknown[0]!r}, which is no option.{namespace.advice(unknown[0])}")
            )
        elif not isinstance(metadata, dict | None):
            errors.append(ArgumentError(f"{where}: {METADATA} must be a mapping, given is {metadata!r}."))
        elif metadata and RESERVED in metadata:
            errors.append(
                ArgumentError(
                    f"{where}: {METADATA} has the key {RESERVED!r}, which is reserved for what slime notes of a sample. Rename it."
                )
            )
        else:
            try:
                made = namespace.model(**{**values, **own})
                found[name] = {**given, **{key: getattr(made, key) for key in own}}
            except ValidationError as invalid:
                told = [_readable(e, namespace, {}) for e in invalid.errors() if e["loc"] and e["loc"][0] in own]
                errors += [ArgumentError(f"{where}: {text}") for text in told]
    return args.model_copy(update={"eval_set_options": found}) if args.eval_set_options else args, errors


def derive(resolved: Resolved, suffix: str = "") -> Resolved:
    """Fill in what follows from other options.

    Args:
        suffix: of the default run directory.
    """
    args = resolved.args
    per_rollout = args.rollout_batch_size * args.n_samples_per_prompt
    per_rollout_text = f"--rollout-batch-size {args.rollout_batch_size} × --n-samples-per-prompt {args.n_samples_per_prompt} = {per_rollout}"
    steps = args.num_steps_per_rollout
    if args.global_batch_size is None:
        why = per_rollout_text + (f", in {steps} steps" if steps else "")
        resolved = resolved.updated(why, global_batch_size=max(1, per_rollout // (steps or 1)))
    if steps is None:
        batch = derived(resolved.args.global_batch_size)
        resolved = resolved.updated(
            "samples per rollout / --global-batch-size", num_steps_per_rollout=max(1, per_rollout // batch)
        )
    if args.load_debug_rollout_data and not args.debug_train_only:
        resolved = resolved.updated("--load-debug-rollout-data", debug_train_only=True)
    if args.dump_details:
        for name, folder in (("save_debug_rollout_data", "rollout_data"), ("save_debug_train_data", "train_data")):
            path = os.path.join(as_template(args.dump_details), folder, "{rollout_id}.arrow")
            resolved = resolved.updated("--dump-details", **{name: path})
    if args.eval_function_path is None:
        resolved = resolved.updated("--rollout-function-path", eval_function_path=args.rollout_function_path)
    if args.run_dir is None:
        if args.save:
            resolved = resolved.updated("--save", run_dir=args.save)
        else:
            resolved = resolved.updated(BY_TIME, run_dir=time.strftime("runs/%Y%m%d-%H%M%S") + suffix)
    return resolved


def _contradictions(args: RunArguments, set_aside: Set[str]) -> Iterator[str]:
    """A sentence for everything in which options do not go together, or lack each other.

    Args:
        set_aside: options that are wrong and have their defaults, of which no more is said.
    """
    per_rollout = args.rollout_batch_size * args.n_samples_per_prompt
    per_rollout_text = f"--rollout-batch-size {args.rollout_batch_size} × --n-samples-per-prompt {args.n_samples_per_prompt} = {per_rollout}"
    steps = args.num_steps_per_rollout
    if steps is not None and per_rollout % steps:
        yield f"--num-steps-per-rollout is {steps}, but it must divide the {per_rollout_text} samples of a rollout."
    elif args.global_batch_size is not None and per_rollout % args.global_batch_size:
        yield (
            f"--global-batch-size is {args.global_batch_size}, but it must divide the samples of a rollout: {per_rollout_text}. "
            f"Change one of them, for example --global-batch-size {_nearest_divisor(per_rollout, args.global_batch_size)}."
        )
    elif args.global_batch_size is not None and steps is not None and steps * args.global_batch_size != per_rollout:
        yield (
            f"--num-steps-per-rollout {steps} and --global-batch-size {args.global_batch_size} contradict each other: "
            f"{steps} × {args.global_batch_size} is not {per_rollout_text}. Leave one of them out."
        )
    if args.use_dynamic_batch_size and args.max_tokens_per_gpu is None and "max_tokens_per_gpu" not in set_aside:
        yield "--use-dynamic-batch-size needs --max-tokens-per-gpu, the token budget of a micro-batch."
    if args.num_rollout is None and args.num_epoch is None and set_aside.isdisjoint({"num_rollout", "num_epoch"}):
        yield "Give --num-epoch (times through the data) or --num-rollout (rollouts in all)."
    if args.eval_prompt_data is not None:
        try:
            eval_sets(args)
        except ArgumentError as error:
            yield str(error)
        if args.eval_interval is None and args.num_rollout != 0 and "eval_interval" not in set_aside:
            yield "--eval-prompt-data needs --eval-interval N, or --num-rollout 0 to evaluate only."
    elif args.num_rollout == 0 and "eval_prompt_data" not in set_aside:
        yield "--num-rollout 0 evaluates only, so it needs --eval-prompt-data."
    if args.start_rollout_id and args.num_rollout is not None and args.start_rollout_id >= args.num_rollout:
        yield (
            f"--start-rollout-id {args.start_rollout_id} leaves nothing to do of --num-rollout {args.num_rollout}, the number of rollouts "
            "in all. Raise --num-rollout, or lower --start-rollout-id."
        )
    if args.calculate_per_token_loss and args.constant_length_loss:
        yield "--calculate-per-token-loss and --constant-length-loss contradict each other; give one."
    if (args.loss_type == "custom_loss") != (args.custom_loss_function_path is not None):
        yield "--loss-type custom_loss and --custom-loss-function-path belong together; give both or none."
    if args.debug_rollout_only and (args.debug_train_only or args.load_debug_rollout_data):
        other = "--debug-train-only" if args.debug_train_only else "--load-debug-rollout-data"
        yield f"--debug-rollout-only and {other} contradict each other; give one of them."
    for name in ("hf_checkpoint", "ref_load", "critic_load", "load"):
        read = getattr(args, name)
        if args.debug_rollout_only or not (args.save_hf and read) or (name == "load" and read == args.save):
            continue
        if os.path.realpath(args.save_hf) == os.path.realpath(read):
            flag = f"--{name.replace('_', '-')}"
            yield f"--save-hf {args.save_hf} is the folder of {flag}, which the export would overwrite. Choose another one."
    for name in ("save_debug_rollout_data", "save_debug_train_data"):
        if args.dump_details and getattr(args, name):
            yield f"--dump-details and --{name.replace('_', '-')} both say where details of a rollout go; give only one of them."
    if args.save_debug_train_data and args.save_debug_train_data == args.save_debug_rollout_data:
        yield "--save-debug-train-data and --save-debug-rollout-data are the same file; give each its own."
    if args.save_debug_train_data and args.debug_rollout_only:
        yield "--save-debug-train-data has nothing to write under --debug-rollout-only, which trains nothing."
    for name in ("save_debug_rollout_data", "save_debug_train_data", "load_debug_rollout_data"):
        template = getattr(args, name)
        if template and not has_rollout(template) and args.num_rollout != 1:
            yield f"--{name.replace('_', '-')} is {template!r}, one file for all rollouts. Put {{rollout_id}} in it."


def _unknown_permissions(resolved: Resolved) -> Iterator[str]:
    """What `--on-resume-change` lets differ and no option is."""
    namespace = resolved.namespace
    for entry in resolved.args.on_resume_change:
        name, allows, _ = entry.partition("=")
        if allows and name not in namespace.options and not namespace.is_of_a_family(name):
            flag = name.replace("_", "-")
            yield f"--on-resume-change {flag}=allow: there is no option --{flag}.{namespace.advice(name)}"


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
    if args.start_rollout_id and args.start_rollout_id >= rollouts:
        raise ArgumentError(
            f"--start-rollout-id {args.start_rollout_id} leaves nothing to do of the {rollouts} rollouts that {why} makes. Raise --num-epoch, "
            "or lower --start-rollout-id."
        )
    return resolved.updated(why, num_rollout=rollouts)


def _contradicting(namespace: Namespace, values: dict[str, Any]) -> set[str]:
    """The name of an option without which these values go together; none if there is no such one."""
    for name in reversed(values):
        try:
            namespace.model(**{n: value for n, value in values.items() if n != name})
        except ValidationError:
            continue
        return {name}
    return set()


def _is_blank(option: Option | None, value: Any) -> bool:
    """Whether an empty text was given for an option that has a text or none: it would pass for none, in silence."""
    if option is None or not isinstance(value, str) or value.strip():
        return False
    kinds = set(typing.get_args(option.field.annotation)) or {option.field.annotation}
    return kinds == {str, type(None)} or (option.required and kinds == {str})


def _read_environment(namespace: Namespace, env: Mapping[str, str]) -> dict[str, Any]:
    return {o.name: env[o.env] for o in namespace.options.values() if o.env and env.get(o.env)}


def _with_secrets(namespace: Namespace, values: dict[str, Any]) -> list[SlimeError]:
    """Put what `env:NAME` stands for into the values of secrets, and return what is wrong with them."""
    errors: list[SlimeError] = []
    for name in [name for name in values if name in namespace.options and namespace.options[name].is_secret]:
        try:
            flag, given = namespace.options[name].flag, values[name]
            values[name] = (
                [secret_from(v, flag) for v in given] if isinstance(given, list) else secret_from(given, flag)
            )
        except ArgumentError as error:
            errors.append(error)
    return errors


def remember_secrets(args: RunArguments) -> None:
    """Let the secrets among the arguments of a run be masked in whatever this process says."""
    for value in chain.from_iterable(given if isinstance(given, list) else [given] for given in vars(args).values()):
        if isinstance(value, SecretStr):
            remember_secret(value.get_secret_value())
        elif isinstance(value, str) and "://" in value:
            with suppress(ValueError):  # no URL after all
                remember_secret(urlsplit(value).password or "")


def shown_arguments(args: RunArguments) -> dict[str, Any]:
    """The arguments of a run as plain data without secrets, for whatever is shown, stored or compared."""
    shown: dict[str, Any] = masked_data(args.model_dump(mode="json"))
    return shown


def _readable(error: Any, namespace: Namespace, provenance: dict[str, str]) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    message: str = error["msg"].removeprefix("Value error, ")
    if name not in namespace.options:
        return message
    option = namespace.options[name]
    return f"{option.flag}: given {_given(option, error)} ({provenance.get(name, 'default')}). {message}. It means: {option.field.description}"


def _given(option: Option, error: Any) -> str:
    text = MASK if option.is_secret else masked(repr(error["input"]))
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wanted), d))
