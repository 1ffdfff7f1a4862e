"""Evaluation sets, and early stopping by what they measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import field_validator

from slime_core.contracts.options import ArgumentGroup, from_json, option
from slime_core.errors import ArgumentError

Arguments = TypeVar("Arguments", bound="EvalArguments")


class EvalArguments(ArgumentGroup):
    """Evaluation"""

    read_by_core = True

    eval_prompt_data: list[str] | None = option(
        None,
        "Evaluation sets: one path, or pairs 'name path name path …'.",
        affects_result=False,
    )
    eval_config: str | None = option(
        None,
        "YAML file of evaluation sets in slime's format, each with sampling, columns and reward of its own; in place of "
        "--eval-prompt-data.",
        affects_result=False,
    )
    eval_set_options: dict[str, dict[str, Any]] = option(
        {},
        "What evaluation sets have of their own, as a JSON object of their names to options; --eval-config writes it.",
        read_by_core=False,
        affects_result=False,
    )
    eval_interval: int | None = option(
        None,
        "Evaluate every so many rollouts, at the end of every epoch of --num-epoch, and before the first rollout.",
        ge=1,
        when="eval_prompt_data",
        affects_result=False,
    )
    skip_eval_before_train: bool = option(
        False, "Do not evaluate before the first rollout.", when="eval_interval", affects_result=False
    )
    eval_generate: int = option(
        0,
        "Let --rollout-engine answer the first so many prompts of every evaluation set.",
        ge=0,
        read_by_core=False,
        when="eval_prompt_data",
        affects_result=False,
    )
    custom_rm_path: str | None = option(
        None,
        "Import path of your own reward function. It goes before --rm-type and before the reward that a row names.",
        read_by_core=False,
    )
    rm_type: str | None = option(
        None,
        "How generated answers are scored against their labels: the name of a reward.",
        read_by_core=False,
        when="!custom_rm_path",
    )
    group_rm: bool = option(
        False,
        "Hand the reward of --custom-rm-path all samples of a group at once; it returns a list. One whose second parameter is called "
        "samples is given them anyway.",
        read_by_core=False,
        when="custom_rm_path",
    )
    eval_input_key: str | None = option(
        None,
        "Column of the evaluation sets with the prompt. Default: --input-key.",
        read_by_core=False,
        affects_result=False,
    )
    eval_label_key: str | None = option(
        None,
        "Column of the evaluation sets with the label. Default: --label-key.",
        read_by_core=False,
        affects_result=False,
    )
    eval_tool_key: str | None = option(
        None,
        "Column of the evaluation sets with tool definitions. Default: --tool-key.",
        read_by_core=False,
        affects_result=False,
    )
    eval_reward_key: str | None = option(
        None,
        "Which number of a reward that is a dict is reported in evaluations. Default: --reward-key.",
        read_by_core=False,
        affects_result=False,
    )
    eval_max_response_len: int | None = option(
        None,
        "Longest answer in an evaluation, in tokens. Default: --rollout-max-response-len; 256 in SFT.",
        ge=1,
        read_by_core=False,
        affects_result=False,
    )
    eval_temperature: float | None = option(
        None,
        "Sampling temperature in an evaluation; 0 takes the likeliest token. Default: --rollout-temperature; 0 in SFT.",
        ge=0,
        read_by_core=False,
        affects_result=False,
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations in a row without a new best --early-stopping-metric.",
        ge=1,
        when="eval_interval",
    )
    early_stopping_metric: str = option(
        "loss",
        "Metric to watch: 'loss' (lowest wins) or 'reward' (highest wins), averaged over the evaluation sets, or a full "
        "name such as 'eval/heldout/loss'; with '-' in front of a full name (--early-stopping-metric=-NAME) highest wins.",
        when="early_stopping_patience",
    )
    early_stopping_keep: Literal["last", "best"] = option(
        "last",
        "Weights that the run ends with: the last ones, or those of the best evaluation. Their checkpoint is written whatever "
        "--save-interval is, stays whatever --save-total-limit is, is named by best_checkpointed_iteration.txt in --save, and "
        "is what --save-hf exports.",
        when="early_stopping_patience",
    )

    _eval_set_options_are_an_object = field_validator("eval_set_options", mode="before")(from_json)


def args_of_set(args: Arguments, name: str) -> Arguments:
    """The arguments as they are for one evaluation set. What it says is None, it is to have nothing of, also not what training has."""
    own = args.eval_set_options.get(name, {})
    own = {key.removeprefix("eval_"): None for key, value in own.items() if value is None} | own
    own = {key: value for key, value in own.items() if key in type(args).model_fields}
    return args.model_copy(update=own) if own else args


def metadata_of_set(args: EvalArguments, name: str) -> dict[str, Any]:
    """What goes into the metadata of every row of an evaluation set: its own reward, and what it says besides."""
    own = args.eval_set_options.get(name, {})
    reward = {"rm_type": own["rm_type"]} if own.get("rm_type") else {}
    return {**reward, **(own.get("metadata_overrides") or {})}


def eval_sets(args: EvalArguments) -> list[tuple[str, str]]:
    """`--eval-prompt-data` as (name, path) pairs. A single value is a path named after its file."""
    given = args.eval_prompt_data or []
    if len(given) == 1:
        return [(Path(given[0].split("@[")[0]).stem, given[0])]
    if len(given) % 2:
        raise ArgumentError(
            f"--eval-prompt-data takes one path or pairs 'name path', given were {len(given)} values: {' '.join(given)}"
        )
    names = given[::2]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ArgumentError(f"--eval-prompt-data names {', '.join(twice)} twice; give every set its own name.")
    return list(zip(names, given[1::2], strict=True))
