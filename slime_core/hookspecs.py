"""Every hook of slime, in the order in which a run meets them. Read it top to bottom: this file is the reference.

A plugin is a module (or object) that an installed distribution names under the entry-point group `slime`. It implements
some of these hooks with `@slime_core.hookimpl`. There are two kinds of hooks, never mixed:

**Providers** take no arguments and return `{name: component}`. A component is the object itself or, so that listing
plugins imports nothing heavy, a `slime_core.Lazy("package.module:attribute")`. The run's options pick components by
name; an import path `package.module.attribute` picks an object that no plugin provides. The contract of a component is
the function or class in `slime_core.contracts` that the hook's text names; it is checked when the component is selected. The
parameters of a contract are passed by position, so a component may call them as it likes; those with a default, and the
further ones that it may ask for, are passed by name.

**Observers** are told something and return nothing. They are called in the order in which `slime plugins`
lists their plugins, slime's own distributions first and then by the name of the distribution; those marked `tryfirst` before
and those marked `trylast` after the others. Nobody selects an observer, so none may stop a run: the observers of a plugin
that raises are off for the rest of the run, with a warning that names plugin, hook and error.

All hooks run in the driver process unless the text says otherwise. Of pluggy's markers, `specname` and `optionalhook` work
everywhere, `tryfirst` and `trylast` for observers; a hook that is marked `wrapper` or `hookwrapper` is refused, since every
implementation is called by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.contracts.options import ArgumentGroup
    from slime_core.lazy import Lazy
    from slime_core.sample import Group
    from slime_core.training.token_numbers import TokenNumbers

hookspec = pluggy.HookspecMarker("slime")


# ---------------------------------------------------------------------------------------------------- configuration


@hookspec
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    """Groups of options that a plugin adds to the one flat namespace of options.

    Called once at start-up, before the command line is parsed, so the module must import nothing heavy. An option
    name that is taken, or a type that a command line cannot give, sets the plugin aside; every run says so in a note.
    """
    raise NotImplementedError


# -------------------------------------------------------------------------------------------------------- providers


@hookspec
def slime_commands() -> Mapping[str, Lazy | Any]:
    """Subcommands of `slime`. Contract: `contracts.command.command`. Chosen by the first word of the command line."""
    raise NotImplementedError


@hookspec
def slime_checkpoint_conversions() -> Mapping[str, Lazy | Any]:
    """Conversions of checkpoints from one format to another. Contract: `contracts.checkpoint_conversion.convert_checkpoint`.
    Chosen by the first word after `slime convert`."""
    raise NotImplementedError


@hookspec
def slime_converters() -> Mapping[str, Lazy | Any]:
    """Converters from other people's rows to chat rows. Contract: `contracts.data.convert`. Chosen by
    `slime data convert --from NAME`."""
    raise NotImplementedError


@hookspec
def slime_data_sources() -> Mapping[str, Lazy | Any]:
    """Where samples come from. Contract: `contracts.data.DataSource`. Chosen by `--data-source-path`."""
    raise NotImplementedError


@hookspec
def slime_buffer_pops() -> Mapping[str, Lazy | Any]:
    """How groups leave the buffer of half-finished groups. Contract: `contracts.data.buffer_pop`. Chosen by
    `--buffer-filter-path`."""
    raise NotImplementedError


@hookspec
def slime_loss_masks() -> Mapping[str, Lazy | Any]:
    """Which tokens of a conversation are trained. Contract: `contracts.data.loss_mask`. Chosen by `--loss-mask-type`."""
    raise NotImplementedError


@hookspec
def slime_rollouts() -> Mapping[str, Lazy | Any]:
    """How a batch of samples comes about: read from a file (SFT) or generated (RL). Contract:
    `contracts.rollout.generate_rollout`. Chosen by `--rollout-function-path`, for evaluation by `--eval-function-path`."""
    raise NotImplementedError


@hookspec
def slime_engines() -> Mapping[str, Lazy | Any]:
    """What generates tokens. Contract: `contracts.engine.InferenceEngine`. Chosen by `--rollout-engine`."""
    raise NotImplementedError


@hookspec
def slime_generators() -> Mapping[str, Lazy | Any]:
    """How one prompt becomes a response: several turns, tools, a search. Contract: `contracts.rollout.generate`. Chosen by
    `--custom-generate-function-path`."""
    raise NotImplementedError


@hookspec
def slime_sample_hooks() -> Mapping[str, Lazy | Any]:
    """What sees, or changes, every generated sample before it is scored. Contract: `contracts.rollout.sample_hook`. Chosen by
    `--rollout-sample-hook-path`, of which there may be several."""
    raise NotImplementedError


@hookspec
def slime_dynamic_filters() -> Mapping[str, Lazy | Any]:
    """Which finished groups are worth training on. Contract: `contracts.rollout.dynamic_filter`. Chosen by
    `--dynamic-sampling-filter-path`."""
    raise NotImplementedError


@hookspec
def slime_sample_filters() -> Mapping[str, Lazy | Any]:
    """Which samples of a finished rollout are trained. Contract: `contracts.rollout.sample_filter`. Chosen by
    `--rollout-sample-filter-path`."""
    raise NotImplementedError


@hookspec
def slime_all_samples_processes() -> Mapping[str, Lazy | Any]:
    """What sees all groups of a rollout, dropped ones included. Contract: `contracts.rollout.all_samples_process`. Chosen by
    `--rollout-all-samples-process-path`."""
    raise NotImplementedError


@hookspec
def slime_rewards() -> Mapping[str, Lazy | Any]:
    """How good a response is. Contract: `contracts.reward.reward` or `contracts.reward.group_reward`. Chosen by `--rm-type` or `--custom-rm-path`."""
    raise NotImplementedError


@hookspec
def slime_reward_post_processes() -> Mapping[str, Lazy | Any]:
    """What becomes of rewards before advantages are taken. Contract: `contracts.reward.reward_post_process`. Chosen by
    `--custom-reward-post-process-path`."""
    raise NotImplementedError


@hookspec
def slime_rollout_logs() -> Mapping[str, Lazy | Any]:
    """Logging of rollouts in place of slime's own. Contract: `contracts.rollout.rollout_log`. Chosen by
    `--custom-rollout-log-function-path`."""
    raise NotImplementedError


@hookspec
def slime_eval_rollout_logs() -> Mapping[str, Lazy | Any]:
    """Logging of evaluations in place of slime's own. Contract: `contracts.rollout.eval_rollout_log`. Chosen by
    `--custom-eval-rollout-log-function-path`."""
    raise NotImplementedError


@hookspec
def slime_sample_converters() -> Mapping[str, Lazy | Any]:
    """How samples become training data. Contract: `contracts.rollout.convert_samples`. Chosen by
    `--custom-convert-samples-to-train-data-path`."""
    raise NotImplementedError


@hookspec
def slime_rollout_data_postprocesses() -> Mapping[str, Lazy | Any]:
    """What changes the data of a rollout after advantages have been computed. Contract: `contracts.rollout.rollout_data_postprocess`.
    Chosen by `--rollout-data-postprocess-path`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_advantages() -> Mapping[str, Lazy | Any]:
    """How much better than expected each token was. Contract: `contracts.advantage.advantages`. Chosen by `--advantage-estimator`
    or `--custom-advantage-function-path`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_importance_weights() -> Mapping[str, Lazy | Any]:
    """Corrections for the difference between engine and trainer. Contract: `contracts.loss.importance_weight`. Chosen by
    `--custom-tis-function-path`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_pg_loss_reducers() -> Mapping[str, Lazy | Any]:
    """How the policy loss of tokens becomes one number. Contract: `contracts.loss.pg_loss_reducer`. Chosen by
    `--custom-pg-loss-reducer-function-path`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_losses() -> Mapping[str, Lazy | Any]:
    """What is minimised. Contract: `contracts.loss.loss`. Chosen by `--loss-type`, or by `--custom-loss-function-path`
    under `--loss-type custom_loss`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_precision_recipes() -> Mapping[str, Lazy | Any]:
    """How products are computed, and weights stored, in FP8. Contract: `contracts.precision.PrecisionRecipe`. Chosen by
    `--fp8-recipe`, under `--fp8-format`. Runs in the training process."""
    raise NotImplementedError


@hookspec
def slime_checkpoint_formats() -> Mapping[str, Lazy | Any]:
    """How quantised checkpoints store weights. Contract: `contracts.checkpoint_format.CheckpointFormat`. Chosen by
    `--hf-checkpoint`: its config.json names one as `quant_method`. Runs in the training process and beside the engine."""
    raise NotImplementedError


@hookspec
def slime_train_backends() -> Mapping[str, Lazy | Any]:
    """What trains the model. Contract: `contracts.train_backend.TrainBackend`. Chosen by `--train-backend`. Runs in the training
    process."""
    raise NotImplementedError


@hookspec
def slime_trackers() -> Mapping[str, Lazy | Any]:
    """Where metrics go. Contract: `contracts.tracker.Tracker`. Chosen by `--use-tensorboard`, `--use-wandb` or `--tracker`;
    several may be active. The console and `metrics.jsonl` in the run directory are always there."""
    raise NotImplementedError


# -------------------------------------------------------------------------------------------------------- observers


@hookspec
def slime_run_started(args: RunArguments, run_dir: Path) -> None:
    """Arguments are final, plugins are chosen, nothing heavy has been loaded yet."""


@hookspec
def slime_rollout_finished(args: RunArguments, rollout_id: int, groups: list[Group], metrics: dict[str, float]) -> None:
    """Rollout `rollout_id` has been generated and checked. Runs on the rollout worker, for `train-async` while the
    previous rollout is still being trained. The groups must not be changed."""


@hookspec
def slime_before_log_probs(args: RunArguments, rollout_id: int) -> None:
    """The log-probs that advantages and losses read are about to be computed. Runs in the training process."""


@hookspec
def slime_before_train_step(args: RunArguments, rollout_id: int, step: int) -> None:
    """Optimizer step `step` (counted from 0 over the whole run) is about to be taken. Runs in the training process."""


@hookspec
def slime_train_step_finished(args: RunArguments, rollout_id: int, step: int, metrics: dict[str, float]) -> None:
    """Optimizer step `step` (counted from 0 over the whole run) is done. Runs in the training process."""


@hookspec
def slime_rollout_trained(args: RunArguments, rollout_id: int, tokens: TokenNumbers) -> None:
    """All optimizer steps of rollout `rollout_id` are done. `tokens` has its samples and, token by token, what they were trained
    with and what the model found (`slime_core.training.token_numbers`); nothing of it may be changed. Runs in the training
    process, in every rank."""


@hookspec
def slime_weights_updated(args: RunArguments, version: int, seconds: float) -> None:
    """The engine generates with the weights of `version` from now on; handing them over took `seconds`."""


@hookspec
def slime_eval_finished(args: RunArguments, rollout_id: int, metrics: dict[str, float]) -> None:
    """The evaluation after rollout `rollout_id` is done (-1: before the first one)."""


@hookspec
def slime_checkpoint_saved(args: RunArguments, rollout_id: int, path: Path) -> None:
    """The checkpoint after rollout `rollout_id` is complete at `path`."""


@hookspec
def slime_run_finished(args: RunArguments, error: BaseException | None) -> None:
    """The run ended; `error` is what ended it, or None. Called exactly once for each `slime_run_started`."""
