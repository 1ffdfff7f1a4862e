"""From arguments to a validated run: components chosen, imported and checked, with nothing heavy loaded yet.

`slime check` prints a plan and stops; `slime train` makes the same plan and starts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from slime_core.another_machine import is_for_another_machine
from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.readers import without_effect
from slime_core.arguments.recipe_names import model_card
from slime_core.arguments.resolve import Resolution, Resolved, shown_arguments, with_data_length
from slime_core.contracts.checking import Finding, noting
from slime_core.contracts.data import Closes, DataSource
from slime_core.contracts.engine import Offloads
from slime_core.contracts.loss import what_reads
from slime_core.contracts.train_backend import SavesInBackground
from slime_core.data import UNKNOWN_LENGTH
from slime_core.data.absent import AbsentData, absent_files
from slime_core.errors import ArgumentError, NotInstalled, SlimeError, together
from slime_core.plugins import Plugins
from slime_core.plugins.calls import policies
from slime_core.run.checkpoints import find_checkpoint, stored_arguments
from slime_core.run.components import Components, choose_components
from slime_core.run.looks import LOOKS, look_at
from slime_core.run.looks.look import Scene
from slime_core.run.periods import Periods
from slime_core.runtime.layout import Layout, make_layout


@dataclass(frozen=True)
class Plan:
    """A validated run.

    Attributes:
        resolved: all arguments, `num_rollout` included.
        components: everything that they choose.
        data_source: opened, at its beginning.
        notes: what a person should know: options without effect, prompts that are left over.
        layout: what the run asks of a Ray cluster; None if it is one process.
        configuration: a folder with the configuration of the model; None where there is none on this machine.
        opened: what `close` gives back.
    """

    resolved: Resolved
    plugins: Plugins
    components: Components
    data_source: DataSource
    notes: list[str]
    layout: Layout | None
    configuration: str | None = None
    opened: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    @property
    def args(self) -> RunArguments:
        return self.resolved.args

    @property
    def periods(self) -> Periods:
        """After which rollouts the run evaluates and saves."""
        return Periods(self.args, len(self.data_source) if _counts_epochs(self.resolved) else None)

    def config(self) -> dict[str, Any]:
        """The run as plain data, for the run directory, trackers and checkpoints."""
        return {
            "arguments": shown_arguments(self.args),
            "provenance": self.resolved.provenance,
            "components": {role: f"{c.name} of {c.origin}" for role, c in self.components.roles()},
            "plugins": self.plugins.fingerprint(),
        }

    def close(self) -> None:
        """Close the data source. May be called again."""
        self.opened.close()


@dataclass(frozen=True)
class Survey:
    """What was seen of a run before it started.

    Attributes:
        plan: None if something is wrong.
        findings: everything that was said: errors, remarks, and what could not be looked at.
    """

    plan: Plan | None
    findings: list[Finding]

    def require_plan(self) -> Plan:
        """Return the plan.

        Raises:
            SlimeError: everything that is wrong, in one message.
        """
        if self.plan is None:
            raise together(self.errors())
        return self.plan

    def errors(self) -> list[SlimeError]:
        """Everything that is wrong."""
        found = [finding for finding in self.findings if finding.weight == "error"]
        return [finding.error or ArgumentError(finding.text) for finding in found]

    def remarks(self) -> list[str]:
        """Everything else that was said."""
        return _remarks(self.findings)


def make_plan(resolved: Resolved, plugins: Plugins) -> Plan:
    """Choose and check every component, open the data, derive the number of rollouts, and take all looks.

    Raises:
        SlimeError: something is missing, does not fit, or contradicts something else; says everything that is wrong.
    """
    return survey(Resolution(resolved, []), plugins).require_plan()


def survey(
    resolution: Resolution, plugins: Plugins, *, starts: bool = False, to_come: Mapping[str, str] | None = None
) -> Survey:
    """As `make_plan`, but go on behind what is wrong, and tell all of it.

    Args:
        resolution: what the sources of options say.
        starts: the run is to start on this machine, so that what is not installed here is missing.
        to_come: what earlier stages will have written, as their options name it, each with the checkpoint that theirs began with.
    """
    found = [Finding("remark", info.left_out) for info in plugins.broken()]
    for error in resolution.errors:
        elsewhere = isinstance(error, NotInstalled) and not starts
        found.append(Finding("not seen" if elsewhere else "error", str(error), error))
    # A run with wrong options ends before anything is imported.
    if resolution.resolved is None or (starts and resolution.errors):
        return Survey(None, found)
    resolved, set_aside = resolution.resolved.with_absolute_folders(), set(resolution.set_aside)
    with noting(found):
        policies(resolved.args.failure_policy)
    components, resolved = _choose(resolved, plugins, found, set_aside, starts)
    if components is None:
        return Survey(None, found)
    args = resolved.args
    layout, remarks = None, list[str]()
    with noting(found):
        layout, remarks = make_layout(args, components.rollouts.engine)
    if args.offload and args.colocate:
        with noting(found):
            _require_offload(components)
    with noting(found):
        _require_known_versions(args, components)
    with ExitStack() as opened:
        data_source: DataSource | None = None
        length = None
        if "prompt_data" not in set_aside:
            with noting(found):
                absent = absent_files(args.prompt_data or ()) if is_for_another_machine() else []
                if absent:
                    text = f"--prompt-data {', '.join(absent)} is not on this machine: no row of it was looked at."
                    found.append(Finding("not seen", text))
                data_source = AbsentData(absent) if absent else components.rollouts.open_data(args)
                if isinstance(data_source, Closes):
                    opened.callback(data_source.close)
                length = len(data_source)
                if not absent and (resolved.args.num_rollout is not None or resolved.args.num_epoch is not None):
                    resolved = _with_length(resolved, length)
        with noting(found):
            resolved = _with_template_date(resolved)
        to_come = to_come or {}
        seen = _with_stand_ins(resolved.args, to_come)
        scene = Scene(
            seen,
            plugins,
            components,
            set_aside=frozenset(set_aside),
            found=found,
            data_source=data_source,
            to_come=to_come,
        )
        if scene.is_elsewhere(seen.hf_checkpoint) and (card := model_card(seen.hf_checkpoint)) is not None:
            scene.card = str(card)
        look_at(scene, LOOKS)
        if data_source is None or any(finding.weight == "error" for finding in found):
            return Survey(None, _unique(found))
        counted = None if isinstance(data_source, AbsentData) else length
        notes = _notes(resolved, components, plugins, layout, counted, [*remarks, *_remarks(found)])
        plan = Plan(
            resolved, plugins, components, data_source, notes, layout, scene.configuration_folder(), opened.pop_all()
        )
        return Survey(plan, _unique(found))


def _choose(
    resolved: Resolved, plugins: Plugins, found: list[Finding], set_aside: set[str], starts: bool
) -> tuple[Components | None, Resolved]:
    """Choose the components. Where one cannot be had, that is noted, its option is set aside, and the default takes its place,
    so that the others are chosen all the same. None if the default does not help, or if the run is to start: then nobody
    waits for the others, which may take seconds to import.

    Args:
        found, set_aside: are added to.
    """
    while True:
        try:
            return choose_components(resolved.args, resolved.namespace, plugins), resolved
        except SlimeError as error:
            found.append(Finding("error", str(error), error))
            name = error.option.removeprefix("--").replace("-", "_")
            option = resolved.namespace.options.get(name)
            if starts or option is None or name in set_aside or getattr(resolved.args, name) == option.default:
                return None, resolved
            set_aside.add(name)
            values = {name: option.default}
            if name == "rollout_function_path":
                values["eval_function_path"] = None
            args = resolved.args.model_copy(update=values)
            resolved = Resolved(args, resolved.provenance, resolved.namespace)


def _with_stand_ins(args: RunArguments, to_come: Mapping[str, str]) -> RunArguments:
    """The arguments to look at: where a folder is still to be written by an earlier stage, that stage's own checkpoint for
    `--hf-checkpoint`, which it will be like, and nothing for other options."""
    values: dict[str, Any] = {}
    for name in ("hf_checkpoint", "ref_load", "critic_load", "load"):
        folder = getattr(args, name)
        if folder in to_come and not Path(folder).exists():
            values[name] = to_come[folder] if name == "hf_checkpoint" else None
    return args.model_copy(update=values)


def _remarks(found: list[Finding]) -> list[str]:
    marks = {"remark": "", "not seen": "not looked at: "}
    return [f"{marks[finding.weight]}{finding.text}" for finding in found if finding.weight != "error"]


def _unique(found: list[Finding]) -> list[Finding]:
    return list({(finding.weight, finding.text): finding for finding in reversed(found)}.values())[::-1]


def _with_length(resolved: Resolved, length: int) -> Resolved:
    if resolved.args.num_rollout is None and length == UNKNOWN_LENGTH:
        raise ArgumentError(
            f"--num-epoch needs data that can be counted, which the data source {resolved.args.data_source_path!r} does not do. "
            "Give --num-rollout instead."
        )
    return with_data_length(resolved, length)


def _notes(
    resolved: Resolved,
    components: Components,
    plugins: Plugins,
    layout: Layout | None,
    length: int | None,
    remarks: list[str],
) -> list[str]:
    """What a person should know of a run, each once."""
    selected = [component for _, component in components.roles()]
    notes = [
        *without_effect(resolved, selected, plugins),
        *(remark for component in selected for remark in component.remarks),
        *_idle_options(resolved, components, layout),
        *([] if length is None else _left_over(resolved, length)),
        *remarks,
    ]
    return list(dict.fromkeys(notes))


def _with_template_date(resolved: Resolved) -> Resolved:
    """Fix the day that chat templates write, for this run and those that continue it."""
    args = resolved.args
    if args.chat_template_date is not None:
        return resolved
    newest = find_checkpoint(Path(args.load), args.ckpt_step) if args.load else None
    if newest is None:
        return resolved.updated("today", chat_template_date=date.today().isoformat())
    day = stored_arguments(newest).get("chat_template_date")
    return resolved.updated(f"that of {newest}", chat_template_date=day) if isinstance(day, str) else resolved


def _require_offload(components: Components) -> None:
    for component in (components.training.train_backend, components.rollouts.engine):
        if component is not None and not issubclass(component.target, Offloads):  # type: ignore[arg-type]  # is a class
            raise ArgumentError(
                f"--offload: the {component.label} cannot give back its memory (it has no methods offload and onload). Leave "
                "--offload out, or choose another."
            )


def _require_known_versions(args: RunArguments, components: Components) -> None:
    """Refuse options that need to know with which weights a rollout was generated, where nobody does."""
    options = {"--keep-old-actor": args.keep_old_actor, "--update-weights-interval": args.update_weights_interval > 1}
    for option in (option for option, given in options.items() if given and components.rollouts.works_in_background):
        raise ArgumentError(
            f"{option}: the {components.rollouts.rollout.label} works in the background, where every sample may be of other weights and "
            "the engine is given all of them. Leave the option out (--use-rollout-logprobs takes the engine's own log-probs as the "
            "old ones), or choose a rollout function that makes one rollout after the other."
        )


def _idle_options(resolved: Resolved, components: Components, layout: Layout | None) -> list[str]:
    """One sentence for every option that has no effect because of the chosen components or the number of ranks."""
    args, backend, found = resolved.args, components.training.train_backend, []
    if args.skip_eval_before_train and args.eval_interval and args.num_rollout == 0:
        found.append("--skip-eval-before-train has no effect with --num-rollout 0, which evaluates only.")
    if args.balance_data and (layout is None or layout.ranks <= 1):
        found.append("--balance-data has no effect with one training rank.")
    if args.async_save and not issubclass(backend.target, SavesInBackground):  # type: ignore[arg-type]  # is a class
        found.append(
            f"--async-save has no effect: the train backend {backend.name!r} writes a checkpoint before it goes on."
        )
    read = what_reads(components.training.loss, args) | what_reads(components.training.advantage, args)
    if args.ref_update_interval and "ref_log_probs" not in read:
        found.append(
            "--ref-update-interval has no effect: neither loss nor advantage estimator reads a reference model."
        )
    old = read & {"old_log_probs"} if not args.use_rollout_logprobs else read & {"trainer_log_probs"}
    if args.keep_old_actor and not old:
        found.append("--keep-old-actor has no effect: nothing reads the trainer's old log-probs.")
    if args.update_weights_interval > 1 and components.rollouts.engine_use != "always":
        found.append("--update-weights-interval has no effect: no engine generates what is trained on.")
    return found


def _counts_epochs(resolved: Resolved) -> bool:
    """Whether `--num-epoch` says how long the run is."""
    return bool(resolved.args.num_epoch) and resolved.provenance["num_rollout"].startswith("derived")


def _left_over(resolved: Resolved, prompts: int) -> list[str]:
    """Notes about `--num-epoch`: that it has no effect, how many prompts of the last epoch are left over, and where slime
    counts otherwise."""
    args = resolved.args
    if not args.num_epoch:
        return []
    if not _counts_epochs(resolved):
        return ["--num-epoch has no effect with --num-rollout."]
    epochs, batch, rollouts, notes = args.num_epoch, args.rollout_batch_size, derived(args.num_rollout), []
    if left := epochs * prompts - rollouts * batch:
        notes.append(
            f"The last {left} prompts of the last epoch do not fill a rollout of {batch} and are not trained on."
        )
    if (of_slime := epochs * (prompts // batch)) != rollouts:
        notes.append(
            f"--num-epoch {epochs} makes {rollouts} rollouts here, {epochs} × {prompts} prompts // {batch}: they go on from one "
            f"epoch into the next. slime counts the whole rollouts of each epoch, {epochs} × ({prompts} // {batch}) = "
            f"{of_slime}{f'; give --num-rollout {of_slime} to train as long' if of_slime else ', and trains nothing'}."
        )
    return notes
