"""From arguments to a validated run: components chosen, imported and checked, with nothing heavy loaded yet.

`slime check` prints a plan and stops; `slime train` makes the same plan and starts it.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.arguments.derived import derived
from slime_core.arguments.readers import without_effect
from slime_core.arguments.resolve import Resolved, with_data_length
from slime_core.contracts.data import Closes, DataSource
from slime_core.contracts.engine import Offloads
from slime_core.contracts.train_backend import HasRemarks, SavesInBackground
from slime_core.data import UNKNOWN_LENGTH
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins
from slime_core.plugins.calls import policies
from slime_core.run.checkpoints import find_checkpoint, stored_arguments
from slime_core.run.components import Components, choose_components
from slime_core.run.served_precision import check_served_precision
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
        opened: what `close` gives back.
    """

    resolved: Resolved
    plugins: Plugins
    components: Components
    data_source: DataSource
    notes: list[str]
    layout: Layout | None
    opened: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    @property
    def args(self) -> RunArguments:
        return self.resolved.args

    def config(self) -> dict[str, Any]:
        """The run as plain data, for the run directory, trackers and checkpoints."""
        return {
            "arguments": self.args.model_dump(mode="json"),
            "provenance": self.resolved.provenance,
            "components": {role: f"{c.name} of {c.origin}" for role, c in self.components.roles()},
            "plugins": self.plugins.fingerprint(),
        }

    def close(self) -> None:
        """Close the data source. May be called again."""
        self.opened.close()


def make_plan(resolved: Resolved, plugins: Plugins) -> Plan:
    """Choose and check every component, open the data, derive the number of rollouts.

    Raises:
        SlimeError: something is missing, does not fit, or contradicts something else.
    """
    resolved = resolved.with_absolute_folders()
    args = resolved.args
    policies(args.failure_policy)
    components = choose_components(args, resolved.namespace, plugins)
    layout, remarks = make_layout(args, components.rollouts.engine)
    if args.offload and args.colocate:
        _require_offload(components)
    served = check_served_precision(args, components)
    with ExitStack() as opened:
        data_source = components.rollouts.open_data(args)
        if isinstance(data_source, Closes):
            opened.callback(data_source.close)
        if args.num_rollout is None and len(data_source) == UNKNOWN_LENGTH:
            raise ArgumentError(
                f"--num-epoch needs data that can be counted, which the data source {args.data_source_path!r} does not do. "
                "Give --num-rollout instead."
            )
        resolved = _with_template_date(with_data_length(resolved, len(data_source)))
        selected = [component for _, component in components.roles()]
        notes = [
            *without_effect(resolved, selected, plugins),
            *remarks,
            *served,
            *(remark for component in selected for remark in component.remarks),
            *_idle_options(resolved, components, layout),
            *_left_over(resolved, len(data_source)),
        ]
        return Plan(
            resolved, plugins, components, data_source, list(dict.fromkeys(notes)), layout, opened=opened.pop_all()
        )


def _with_template_date(resolved: Resolved) -> Resolved:
    """Fix the day that chat templates write, for this run and those that continue it."""
    args = resolved.args
    if args.chat_template_date is not None:
        return resolved
    newest = find_checkpoint(Path(args.load), args.ckpt_step) if args.load else None
    if newest is None:
        return resolved.updated("today", chat_template_date=date.today().isoformat())
    day = stored_arguments(newest).get("chat_template_date")
    return resolved.updated(f"that of {newest}", chat_template_date=day) if day else resolved


def _require_offload(components: Components) -> None:
    for component in (components.training.train_backend, components.rollouts.engine):
        if component is not None and not issubclass(component.target, Offloads):  # type: ignore[arg-type]  # is a class
            raise ArgumentError(
                f"--offload: the {component.label} cannot give back its memory (it has no methods offload and onload). Leave "
                "--offload out, or choose another."
            )


def _idle_options(resolved: Resolved, components: Components, layout: Layout | None) -> list[str]:
    """One sentence for every option that has no effect because of the chosen components or the number of ranks."""
    args, backend, found = resolved.args, components.training.train_backend, []
    if args.balance_data and (layout is None or layout.ranks <= 1):
        found.append("--balance-data has no effect with one training rank.")
    if args.async_save and not issubclass(backend.target, SavesInBackground):  # type: ignore[arg-type]  # is a class
        found.append(
            f"--async-save has no effect: the train backend {backend.name!r} writes a checkpoint before it goes on."
        )
    if inspect.isclass(backend.target) and issubclass(backend.target, HasRemarks):
        found += backend.target.remarks(args)
    return found


def _left_over(resolved: Resolved, prompts: int) -> list[str]:
    """Notes about `--num-epoch`: that it has no effect, how many prompts of the last epoch are left over, and where slime
    counts otherwise."""
    args = resolved.args
    if not args.num_epoch:
        return []
    if not resolved.provenance["num_rollout"].startswith("derived"):
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
