"""Which models an evaluation is of, and with which options each is evaluated. Called by `slime eval`.

A model is a Hugging Face folder, or a run with its checkpoints. The options of the first run that is named are the defaults for all
models, so that a run alone is evaluated as it evaluated itself; without a run there are a few defaults of an evaluation. Of another
run comes what its own model is, and nothing of how it was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_core.arguments.command_line import parse_command_line
from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.arguments.groups.lora import LoraArguments
from slime_core.arguments.groups.model import ModelArguments
from slime_core.arguments.groups.optimizer import OptimizerArguments
from slime_core.arguments.groups.precision import PrecisionArguments
from slime_core.arguments.groups.profiling import ProfilingArguments
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.readers import options_read
from slime_core.arguments.recipe import Stage
from slime_core.arguments.resolve import Resolution, read_sources
from slime_core.data.checkpoint_folders import advice, recognise
from slime_core.errors import ArgumentError, CheckpointError, together
from slime_core.plugins import Plugins
from slime_core.rollout.components import declared_engine_use
from slime_core.run.checkpoints import started_in, stored_arguments
from slime_core.run.export import ExportOptions, arguments_for_export
from slime_core.run.model_evaluation import Source
from slime_core.run.stored_run import StoredRun, find_run, given_arguments
from slime_core.training.initial_weights import with_initial_weights

_OF_TRAINING = frozenset(
    {
        *("num_rollout", "num_epoch", "start_rollout_id", "num_steps_per_rollout", "global_batch_size"),
        *(
            "save",
            "save_interval",
            "async_save",
            "save_trigger",
            "save_total_limit",
            "save_hf",
            "load",
            "on_resume_change",
        ),
        *("ckpt_step", "eval_interval", "skip_eval_before_train"),
        *("early_stopping_patience", "early_stopping_metric", "early_stopping_keep"),
        *("prompt_data", "prompt_data_weights", "data_source_path", "buffer_filter_path", "rollout_shuffle"),
        *("custom_rollout_log_function_path", "custom_eval_rollout_log_function_path", "tracker"),
        *("custom_convert_samples_to_train_data_path", "rollout_data_postprocess_path"),
        *("save_debug_rollout_data", "save_debug_train_data", "load_debug_rollout_data", "dump_details"),
        *("ref_update_interval", "update_weights_interval", "keep_old_actor", "reset_optimizer_states", "balance_data"),
    }
)
"""Options that say how a run goes on, and nothing of an evaluation."""
_NOT_TAKEN_OVER = _OF_TRAINING | {
    "run_dir",
    "trust_remote_code",
    "eval_config",
    "custom_config_path",
    "debug_rollout_only",
}
"""Of a run's own options, besides those: what has been read already, and what somebody has to say anew."""

_FROZEN = ("only_train_params_name_list", "freeze_params_name_list")
"""Name parameters of a model, which another one may not have."""


@dataclass(frozen=True)
class Target:
    """Models that the same workers evaluate.

    Attributes:
        word: that named them.
        sources: a model, or checkpoints of a run.
        run: that they are of.
    """

    word: str
    sources: tuple[Source, ...]
    run: StoredRun | None = None

    @property
    def is_run(self) -> bool:
        """Whether its weights are those of checkpoints."""
        return self.sources[0].is_checkpoint


def find_targets(words: Sequence[str], every: bool) -> list[Target]:
    """What the words of a command line name.

    Args:
        every: of a run directory all checkpoints, and not the newest alone. Of a folder of checkpoints all are taken anyway.

    Raises:
        ArgumentError, CheckpointError: a word names no model; says what it is instead.
    """
    targets = [target for word in words for target in _targets(word, every, alone=len(words) == 1)]
    folders = [source.folder.resolve() for target in targets for source in target.sources]
    if twice := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise ArgumentError(f"{twice[0]} is named twice. Give every model once.")
    return targets


def _targets(word: str, every: bool, alone: bool) -> list[Target]:
    path = Path(word)
    if not path.exists():
        raise ArgumentError(
            f"{word} is not there. Give the folder of a downloaded model, a run directory, a folder of --save or an iter_N in it."
        )
    if (path / "config.json").is_file():
        return [Target(word, (Source(word, path),))]
    if (path / "trainer").is_dir() and not (path / "state.json").is_file():
        raise CheckpointError(
            f"{word} was not written to its end: it has no manifest.json. Take another one beside it."
        )
    run = find_run(path)
    if run is None:
        found = recognise(path)
        what = f"leads to {found}. {advice(found)}" if found else "holds neither a model nor a run."
        raise ArgumentError(f"{word} {what} Expected is a Hugging Face folder, a run directory or a folder of --save.")
    if run.checkpoints:
        chosen = run.checkpoints if every or run.run_dir is None else run.checkpoints[-1:]
        labels = [word if own == path else own.name if alone else f"{word}/{own.name}" for own in chosen]
        return [Target(word, tuple(Source(n, own, True) for n, own in zip(labels, chosen, strict=True)), run)]
    exported = run.exported()
    if not exported:
        raise CheckpointError(
            f"The run in {word} left neither checkpoints nor an exported model. Train with --save DIR or --save-hf DIR."
        )
    return [Target(word, (Source(str(own), own),), run) for own in (exported if every else exported[-1:])]


@dataclass
class Options:
    """The options of an evaluation.

    Args:
        plugins, namespace: what there is.
        flags: of the command line.
        recipe: a recipe file's, which win over those of a run.
        run: whose options are the defaults.
    """

    plugins: Plugins
    namespace: Namespace
    flags: Sequence[str]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    run: StoredRun | None = None

    def __post_init__(self) -> None:
        given, errors = parse_command_line(self.namespace, list(self.flags))
        self._given = given
        errors += [
            ArgumentError(f"--{name.replace('_', '-')} is about training, and slime eval trains nothing. Leave it out.")
            for name in sorted(_OF_TRAINING & given.keys())
        ]
        errors += [
            ArgumentError(f"--{name.replace('_', '-')}: the models to evaluate come first, without an option in front.")
            for name in ("hf_checkpoint",)
            if name in given and self.run is None
        ]
        if errors:
            raise together(errors)

    def of(self, target: Target, run_dir: str) -> Resolution:
        """What the sources of options say for a target.

        Args:
            run_dir: where the run directory would be.
        """
        values = self._defaults() if self.run is None else self._of_run(self.run)
        left_out = _OF_TRAINING | {"run_dir"}
        values |= {n: v for n, v in self.recipe.items() if n not in left_out and not self._is_of_machine(n)}
        if target.is_run and target.run is not None:
            trusted = bool({"--trust-remote-code"} & set(self.flags))
            own = self._of_model(target.sources[0].folder, trusted)
            others = self._names_of_model(values) | self._names_of_model(own)
            values = {name: value for name, value in values.items() if name not in others} | own
        else:
            for name in (*ModelArguments.model_fields, *LoraArguments.model_fields, *_FROZEN):
                values.pop(name, None)
            values["hf_checkpoint"] = str(target.sources[0].folder)
        where = target.word if self.run is None else str(self.run.folder)
        sets = {**values, **self._given}
        if not sets.get("eval_prompt_data") and not sets.get("eval_config"):
            what = f"the run in {where} evaluated nothing" if self.run else "a model alone has no evaluation data"
            raise ArgumentError(
                f"Nothing to evaluate on: {what}. Give --eval-prompt-data NAME FILE, or --eval-config FILE."
            )
        stage = Stage(f"of {where}", {"prompt_data": ["-"], "num_rollout": 0, "run_dir": run_dir, **values})
        return self._finished(read_sources(self.namespace, self.flags, stage), target)

    def _finished(self, resolution: Resolution, target: Target) -> Resolution:
        """With what follows from an evaluation alone."""
        resolved = resolution.resolved
        if resolved is None:
            return resolution
        args = resolved.args
        function = args.eval_function_path or args.rollout_function_path
        data = [path for _, path in eval_sets(args)] if not resolution.errors else args.prompt_data
        changes: dict[str, Any] = {} if target.is_run else {"hf_checkpoint": str(target.sources[0].folder)}
        changes |= {"rollout_function_path": function, "eval_function_path": function, "prompt_data": data[:1]}
        if not resolution.errors:
            use = declared_engine_use(self.plugins.select("rollout", function))
            if use == "always":  # then no loss is measured, and no model is needed that only losses and advantages read
                loss = {"loss_type": "sft_loss"} if self.plugins.find("loss", "sft_loss") else {}
                changes |= {"disable_compute_advantages_and_returns": True, "custom_loss_function_path": None, **loss}
                if self.run is None and not target.is_run and "debug_rollout_only" not in self._given:
                    changes["debug_rollout_only"] = True
        return Resolution(resolved.updated("slime eval", **changes), resolution.errors, resolution.set_aside)

    def _defaults(self) -> dict[str, Any]:
        """Those of an evaluation without a run: answers where something scores them, else the loss of the rows."""
        named = {**self.recipe, **self._given}
        answers = any(named.get(name) for name in ("rm_type", "custom_rm_path", "eval_config")) and not named.get(
            "eval_generate"
        )
        values: dict[str, Any] = {
            "rollout_batch_size": 1,
            "loss_type": "sft_loss",
            "disable_compute_advantages_and_returns": True,
        }
        values["rollout_function_path"] = "rl" if answers else "sft"
        if (answers or named.get("eval_generate")) and self.plugins.find("engine", "local"):
            values["rollout_engine"] = "local"
        return values

    def _of_run(self, run: StoredRun) -> dict[str, Any]:
        """A run's own options, as far as they are of use here."""
        values = given_arguments(run.arguments, self.namespace)
        for name in [name for name in values if name in _NOT_TAKEN_OVER or self._is_of_machine(name)]:
            del values[name]
        if {"eval_prompt_data", "eval_config"} & {*self._given, *self.recipe}:
            values.pop("eval_prompt_data", None)
            values.pop("eval_set_options", None)
        elif values.get("eval_prompt_data"):
            origin = started_in(run.checkpoints[-1]) if run.checkpoints else Path()
            values["eval_prompt_data"] = [_found(word, origin) for word in values["eval_prompt_data"]]
        return values

    def _of_model(self, checkpoint: Path, trusted: bool) -> dict[str, Any]:
        """What the model of a checkpoint is, and what computes it."""
        stored = given_arguments(stored_arguments(checkpoint), self.namespace)
        names = self._names_of_model(stored)
        left_out = {n for n in names if self._is_of_machine(n)} | _NOT_TAKEN_OVER
        values = {name: value for name, value in stored.items() if name in names - left_out}
        base, weights = self._given.get("hf_checkpoint"), self._given.get("ref_load")
        options = ExportOptions(hf_checkpoint=base, ref_load=weights, trust_remote_code=trusted)
        args = with_initial_weights(arguments_for_export(checkpoint, self.plugins, options))
        values |= {"hf_checkpoint": args.hf_checkpoint}
        return values | ({"ref_load": args.ref_load} if args.ref_load else {})

    def _names_of_model(self, values: Mapping[str, Any]) -> set[str]:
        """The options that say what a model is and what computes it, with the train backend that these values choose."""
        backend = self.plugins.find("train_backend", str(values.get("train_backend", "torch")))
        read = options_read((backend.reads_options if backend else None) or (), self.namespace.model)
        groups = (ModelArguments, OptimizerArguments, LoraArguments, PrecisionArguments)
        return {"train_backend", *read, *(name for group in groups for name in group.model_fields)}

    def _is_of_machine(self, name: str) -> bool:
        """Whether an option is about ranks and devices, about profiles or about a tracker."""
        group = self.namespace.options[name].group
        flags = {f"use_{tracker}" for tracker in self.plugins.components("tracker")}
        return group.of_layout or group is ProfilingArguments or name in flags


def _found(word: str, origin: Path) -> str:
    """A path of a run's options, where it is found from here."""
    path = Path(word.split("@[")[0])
    if path.is_absolute() or path.exists() or not (origin / path).exists():
        return word
    return str(origin / word)
