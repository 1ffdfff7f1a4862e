"""`slime train`, `slime train-async` and `slime check`: the same options, planned the same way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from slime_core.another_machine import for_another_machine
from slime_core.arguments.command_line import split_recipe
from slime_core.arguments.derived import derived
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.of_a_run import OWN_FOLDERS
from slime_core.arguments.recipe import read_recipe
from slime_core.arguments.resolve import Resolution, read_sources
from slime_core.cli.as_slime.report import judge, read_as_slime
from slime_core.cli.look_options import LookOptions, is_an_example, read_look_options
from slime_core.cli.parity import HELP, read_parity, refuse_parity
from slime_core.data import UNKNOWN_LENGTH
from slime_core.data.absent import AbsentData
from slime_core.display import log_to_stderr, told
from slime_core.errors import ArgumentError, SlimeError, together
from slime_core.plugins import Plugins
from slime_core.run.memory_lines import memory_lines
from slime_core.run.plan import Plan, survey
from slime_core.unread import write_on

_RECIPE = """RECIPE.yaml is a file of options, or @NAME (`slime recipes` lists them). Every option may stand in it, or be a flag; flags win."""
_HELP = {
    "slime train": f"Runs a recipe: gets samples, trains on them, hands the weights back.\n{_RECIPE}",
    "slime train-async": f"Runs a recipe as `slime train` does, and makes the next samples while this batch trains.\n{_RECIPE}",
    "slime check": f"Says all that is wrong with a run, and prints it; starts nothing.\n{_RECIPE}\n{HELP}",
}


def train(argv: list[str], plugins: Plugins) -> int:
    """Run a recipe: one run after the other if it has several stages."""
    return _start(argv, plugins, "slime train", ahead=False)


def train_async(argv: list[str], plugins: Plugins) -> int:
    """Run a recipe as `train` does, but make the samples of the next rollout while this one is trained."""
    return _start(argv, plugins, "slime train-async", ahead=True)


def check(argv: list[str], plugins: Plugins) -> int:
    """Print the run that a recipe describes and everything that is wrong with it, and start nothing; with `--parity`, compare
    its train backend with transformers; with `--as-slime`, say first what becomes of the options of a launch script of slime."""
    look, argv = read_look_options(argv)
    parity, argv = read_parity(argv)
    if (as_slime := read_as_slime(argv)) is not None:
        namespace = Namespace(plugins)
        report = judge(*as_slime, namespace)
        print(told("\n".join(report.lines(namespace))), end="\n\n", flush=True)
        argv = report.argv
    with _plans(argv, plugins, "slime check", look) as plans:
        print(told("\n\n".join(describe(plan, look.gpu_memory) for plan in plans)), flush=True)
        if parity is not None:
            from slime_core.run.parity import check_parity

            for plan in plans:
                check_parity(plan, parity, partial(print, flush=True))
    return 0


def _start(argv: list[str], plugins: Plugins, prog: str, ahead: bool) -> int:
    refuse_parity(argv, prog)
    write_on()  # whoever reads may go away, the run stays
    log_to_stderr()
    with _plans(argv, plugins, prog) as plans:
        from slime_core.run.launch import launch

        for plan in plans:
            launch(plan, ahead)
    return 0


@contextmanager
def _plans(argv: list[str], plugins: Plugins, prog: str, look: LookOptions | None = None) -> Iterator[list[Plan]]:
    """Give one plan for each stage of the recipe, and close at the end what the plans have opened.

    All of them are made before the first one starts, so that a mistake in any stage is found at once.

    Args:
        look: of `slime check`; None: the run is to start here.

    Raises:
        SlimeError: everything that is wrong in any stage; notes name plugins that failed to load, whose option it may be.
    """
    namespace = Namespace(plugins)
    recipe, flags = split_recipe(namespace, argv, prog, _HELP[prog])
    errors: dict[str, SlimeError] = {}
    remarks: dict[str, None] = {}
    to_come: dict[str, str] = {}
    taken: dict[tuple[str, str], str] = {}
    plans = []
    with ExitStack() as stack:
        try:
            stages = read_recipe(recipe) if recipe else [None]
            if look is not None:
                stack.enter_context(for_another_machine(look.elsewhere or is_an_example(stages, recipe, flags)))
            for stage in stages:
                resolution = read_sources(namespace, flags, stage)
                found = survey(resolution, plugins, starts=prog != "slime check", to_come=to_come)
                if found.plan is not None:
                    stack.callback(found.plan.close)
                    plans.append(found.plan)
                shared = _shared_folders(resolution, stage.name, taken) if stage else []
                errors |= {str(error): error for error in [*found.errors(), *shared]}
                remarks |= dict.fromkeys(found.remarks())
                to_come |= _written(resolution, to_come)
            if errors:
                raise together(list(errors.values()))
        except SlimeError as error:
            if remarks and prog == "slime check":
                print(told("\n".join(["notes", *(f"  {remark}" for remark in remarks)])), flush=True)
            elif isinstance(error, ArgumentError):  # the option may be one of a plugin that is not there
                for info in plugins.broken():
                    error.add_note(info.left_out)
            raise
        yield plans


def _shared_folders(resolution: Resolution, stage: str, taken: dict[tuple[str, str], str]) -> list[SlimeError]:
    """What a stage would write over what an earlier one has written.

    Args:
        stage: its name.
        taken: options and the folders that they name → the stage that writes there; added to.
    """
    if resolution.resolved is None:
        return []
    args, found = resolution.resolved.args, list[SlimeError]()
    for name in sorted(OWN_FOLDERS & set(resolution.resolved.set_by_user)):
        if not (folder := getattr(args, name)):
            continue
        key = name, os.path.abspath(folder)
        earlier = taken.setdefault(key, stage)
        goes_on = name == "save" and args.load is not None and os.path.abspath(args.load) == key[1]
        if earlier != stage and not goes_on:
            flag = f"--{name.replace('_', '-')}"
            found.append(
                ArgumentError(
                    f"{flag} {folder} of {stage} is that of {earlier} too, over which it would write. Give each stage its own."
                )
            )
    return found


def _written(resolution: Resolution, earlier: dict[str, str]) -> dict[str, str]:
    """What a stage will have written that later ones may read, as its options name it, each with the checkpoint that it began with."""
    if resolution.resolved is None:
        return {}
    args = resolution.resolved.args
    origin = earlier.get(args.hf_checkpoint, args.hf_checkpoint)
    return {folder: origin for folder in (args.save_hf, args.save, args.save_debug_rollout_data) if folder}


def describe(plan: Plan, gpu_memory: float | None = None) -> str:
    """Return a planned run as text: components, placement, memory, every argument that is not a default, notes.

    Args:
        gpu_memory: GiB of a GPU that the run is for; None: nobody said.
    """
    lines = ["components"]
    for role, component in plan.components.roles():
        role = "tracker" if component.kind == "tracker" else role
        lines.append(f"  {role:<14} {component.name}  ({component.origin})")
    args, provenance = plan.args, plan.resolved.provenance
    lines += [
        "run",
        f"  {_length(plan)}",
        "placement",
        *(f"  {line}" for line in (plan.layout.describe() if plan.layout else ["one process"])),
        "memory (GiB; docs/memory.md)",
        *(f"  {line}" for line in memory_lines(plan, gpu_memory)),
        "arguments",
    ]
    shown = sorted(n for n, where in provenance.items() if where != "default")
    width = max((len(n) for n in shown), default=0)
    lines += [f"  {name:<{width}}  {getattr(args, name)!r}  ({provenance[name]})" for name in shown]
    lines += ["notes", *(f"  {note}" for note in plan.notes)] if plan.notes else []
    return "\n".join(lines)


def _length(plan: Plan) -> str:
    """How long a run is, in words."""
    args, length = plan.args, len(plan.data_source)
    per_rollout = args.rollout_batch_size * args.n_samples_per_prompt
    if args.num_rollout is None:  # of data that is not here
        return (
            f"{args.num_epoch} epochs of data that was not counted, rollouts of {per_rollout} samples, optimizer steps of "
            f"{args.global_batch_size} samples"
        )
    prompts = "a stream of" if length == UNKNOWN_LENGTH else length
    if isinstance(plan.data_source, AbsentData):
        prompts = "an unknown number of"
    return (
        f"{prompts} prompts, {args.num_rollout} rollouts of {per_rollout} samples, "
        f"{args.num_rollout * derived(args.num_steps_per_rollout)} optimizer steps of {args.global_batch_size} samples"
    )
