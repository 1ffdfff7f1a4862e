"""`--eval-config`: slime's YAML file of evaluation sets, each with options of its own. Called by `resolve`.

    eval:                                  # may be left out
      defaults: {temperature: 0.6}         # for sets that do not say it themselves
      datasets:                            # a list, or a mapping of names to sets
        - {name: aime, path: aime.jsonl, n_samples_per_eval_prompt: 16, rm_type: math}

The names and paths become `--eval-prompt-data`, all else `--eval-set-options`, under the names of the options that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slime_core.arguments.recipe import read_mapping
from slime_core.errors import ArgumentError, did_you_mean

OPTION_OF = {
    "input_key": "eval_input_key",
    "label_key": "eval_label_key",
    "tool_key": "eval_tool_key",
    "metadata_key": "metadata_key",
    "multimodal_keys": "multimodal_keys",
    "apply_chat_template": "apply_chat_template",
    "apply_chat_template_kwargs": "apply_chat_template_kwargs",
    "n_samples_per_eval_prompt": "n_samples_per_eval_prompt",
    "temperature": "eval_temperature",
    "top_p": "eval_top_p",
    "top_k": "eval_top_k",
    "max_response_len": "eval_max_response_len",
    "min_new_tokens": "eval_min_new_tokens",
    "stop": "rollout_stop",
    "stop_token_ids": "rollout_stop_token_ids",
    "skip_special_tokens": "rollout_skip_special_tokens",
    "rm_type": "rm_type",
    "custom_rm_path": "custom_rm_path",
    "custom_generate_function_path": "custom_generate_function_path",
}
"""What a set may say → the option that it stands for."""

METADATA = "metadata_overrides"
"""What a set may say besides: a mapping that goes into the metadata of its rows."""

MAY_BE_NONE = {"label_key", "tool_key", "metadata_key", "multimodal_keys", "stop", "stop_token_ids"}
"""What a set may have nothing of, whatever the run has, by null."""

LIKE_THE_RUN = {"rm_type", "custom_generate_function_path", "no_stop_trim", METADATA}
"""What is null where a set says nothing of its own."""

NOT_HERE = {
    "repetition_penalty": "log-probs would not be those of the model",
    "app_service": "answers come from the run's engine here",
    "eval_task_timeout": "--failure-policy bounds the time of generate functions and rewards here",
    "min_eval_samples": "every prompt is answered here",
    "eval_early_stop_remaining": "every prompt is answered here",
    "eval_early_stop_idle_timeout": "every prompt is answered here",
    "message_processor": "slime reads it nowhere",
    "reward_model": "slime reads it nowhere",
    "remote_environment": "slime reads it nowhere",
}
"""What a set may say in slime → why not here."""


def read_eval_config(path: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return `--eval-prompt-data`, names and paths in turn, and `--eval-set-options`, as a file says.

    Raises:
        ArgumentError: one line for everything that is wrong with it.
    """
    data = read_mapping(path, "--eval-config", "a key `eval` or `datasets`")
    config = data.get("eval", data)
    defaults = (config.get("defaults") or {}) if isinstance(config, dict) else None
    sets = list(_sets(config.get("datasets"))) if isinstance(config, dict) else []
    wrong = [
        f"Its {where}: {problem}"
        for where, given in [("defaults", defaults), *sets]
        for problem in _problems(where, given)
    ]
    if not sets:
        wrong.append("It names no sets under `datasets`.")
    if wrong:
        raise ArgumentError("\n".join(f"--eval-config {path}: {line}" for line in wrong))
    pairs: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    for _, given in sets:
        merged = {**(defaults or {}), **given}
        pairs += [str(merged.pop("name")), str(merged.pop("path"))]
        merged.pop("no_stop_trim", None)
        own = {
            OPTION_OF.get(key, key): value for key, value in merged.items() if value is not None or key in MAY_BE_NONE
        }
        if isinstance(own.get("rollout_stop"), str):
            own["rollout_stop"] = [own["rollout_stop"]]
        options[pairs[-2]] = own
    return pairs, {name: own for name, own in options.items() if own}


def _sets(given: Any) -> Iterator[tuple[str, Any]]:
    """Yield (what messages call it, set) for the sets of a list or mapping."""
    if isinstance(given, dict):
        for name, one in given.items():
            yield f"set {name!r}", {"name": name, **one} if isinstance(one, dict) else one
    elif isinstance(given, list):
        for number, one in enumerate(given, start=1):
            yield (f"set {one['name']!r}" if isinstance(one, dict) and "name" in one else f"set {number}"), one
    elif given is not None:
        yield "datasets", given


def _problems(where: str, given: Any) -> Iterator[str]:
    if not isinstance(given, dict):
        yield f"expected a mapping, given is {given!r}."
        return
    if where != "defaults":
        yield from (f"it has no {key}." for key in ("name", "path") if given.get(key) in (None, ""))
        if isinstance(given.get("name"), bool):
            yield f"YAML reads its name as {given['name']}; put it in quotes."
    known = {"name", "path", METADATA, "no_stop_trim", *OPTION_OF}
    for key, value in given.items():
        if key in NOT_HERE and value is not None:
            yield f"{key} is not available here: {NOT_HERE[key]}. Leave it out."
        elif key not in known and key not in NOT_HERE:
            yield f"there is no key {key!r}.{did_you_mean(str(key), known)}"
        elif where == "defaults" and key in ("name", "path"):
            yield f"{key} belongs to a set."
        elif key == "no_stop_trim" and value is False:
            yield "no_stop_trim is always on here: the text of a response has its stop string."
        elif value is None and key not in MAY_BE_NONE | LIKE_THE_RUN | NOT_HERE.keys() | {"name", "path"}:
            yield f"{key} is null. Write a value, or leave it out for that of the run."
        elif isinstance(value, str) and "${" in value:
            yield f"{key} is {value!r}; interpolations are not read here, so write the value."
