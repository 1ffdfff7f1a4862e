"""`--eval-config`: slime's YAML of evaluation sets, each with sampling, columns and reward of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rollout_cases import ScriptedEngine, rollout

from slime_core.arguments.groups.evaluation import args_of_set, metadata_of_set
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import Resolved, resolve
from slime_core.cli import main
from slime_core.data.evaluation import evaluation_sets
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

BOTH = """
eval:
  defaults: {temperature: 0.6, n_samples_per_eval_prompt: 2, rm_type: exact_match}
  datasets:
    - name: easy
      path: EASY
      input_key: question
      label_key: truth
      top_p: 0.9
      max_response_len: 5
      stop: w30
      custom_rm_path: rollout_cases.length_reward
      metadata_overrides: {level: 1}
    - name: hard
      path: HARD
      temperature: 0
      n_samples_per_eval_prompt: 3
      custom_generate_function_path: rollout_cases.own_text
      no_stop_trim: true
      multimodal_keys: null
"""


@pytest.fixture(scope="module")
def namespace() -> Namespace:
    return Namespace(Plugins())


@pytest.fixture
def words(tmp_path: Path, word_checkpoint: str) -> list[str]:
    rows = {
        "EASY": [
            {"question": f"w{7 + n}", "truth": f"w{n}", "input": "w4", "metadata": {"rm_type": "math"}}
            for n in range(3)
        ],
        "HARD": [{"input": f"w{20 + n}", "label": "w9"} for n in range(2)],
    }
    text = BOTH
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        text = text.replace(name, str(tmp_path / f"{name}.jsonl"))
    (tmp_path / "eval.yaml").write_text(text)
    return [
        *("--hf-checkpoint", word_checkpoint, "--prompt-data", str(tmp_path / "HARD.jsonl"), "--num-rollout", "1"),
        *(
            "--rollout-batch-size",
            "2",
            "--rollout-max-response-len",
            "9",
            "--rm-type",
            "exact_match",
            "--eval-interval",
            "1",
        ),
        *("--label-key", "label", "--rollout-temperature", "0.8", "--eval-config", str(tmp_path / "eval.yaml")),
        *("--rollout-engine", "local"),
    ]


def resolved(namespace: Namespace, words: list[str], *more: str) -> Resolved:
    return resolve(namespace, [*words, *more], env={})


def test_every_set_is_sampled_read_and_scored_as_it_says(
    words: list[str], namespace: Namespace, plugins: Plugins
) -> None:
    args: Any = resolved(namespace, words).args
    engine = ScriptedEngine()
    output = rollout(args, plugins, engine, evaluation=True)
    asked = {tuple(prompt[:1]): params for prompt, params, _ in engine.requests}
    assert sorted(asked) == [(7,), (8,), (9,), (20,), (21,)]
    easy, hard = asked[7,], asked[20,]
    assert (easy["temperature"], easy["top_p"], easy["max_new_tokens"], easy["stop"]) == (0.6, 0.9, 5, ["w30"])
    assert (hard["temperature"], hard["top_p"], hard["max_new_tokens"], hard.get("stop")) == (0.0, 1.0, 9, None)
    by_set = {name: [s for s in output.generations if s.dataset == name] for name in ("easy", "hard")}
    assert [len(samples) for samples in by_set.values()] == [6, 6]
    assert all(s.reward == s.response_length and s.metadata["level"] == 1 for s in by_set["easy"])
    assert [s.label for s in by_set["easy"][::2]] == ["w0", "w1", "w2"]
    assert all(s.reward in (0.0, 1.0) and s.label == "w9" for s in by_set["hard"])
    assert [s.group_index for s in output.generations] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    assert len({s.index for s in output.generations}) == 12
    assert "hard/pass@2" in output.metrics


def test_what_a_set_says_goes_before_the_defaults_and_these_before_the_options(
    words: list[str], namespace: Namespace
) -> None:
    found = resolved(namespace, words, "--eval-prompt-data", "other", "other.jsonl", "--eval-temperature", "0.1")
    own = found.args.eval_set_options
    assert [own[name]["eval_temperature"] for name in ("easy", "hard")] == [0.6, 0.0]
    assert [own[name]["n_samples_per_eval_prompt"] for name in ("easy", "hard")] == [2, 3]
    assert found.args.eval_prompt_data is not None
    assert found.args.eval_prompt_data[::2] == ["easy", "hard"]
    assert "not ['other', 'other.jsonl'] of command line" in found.provenance["eval_prompt_data"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("eval: {}", "names no sets"),
        (
            "datasets: {a: {path: p, temprature: 1}}",
            "set 'a': there is no key 'temprature'. Did you mean 'temperature'?",
        ),
        ("datasets: [{path: p}]", "set 1: it has no name"),
        ("datasets: {a: {}}", "set 'a': it has no path"),
        ("datasets: {off: {path: p}}", "YAML reads its name as False; put it in quotes"),
        ("datasets: {a: {path: p, temperature: null}}", "set 'a': temperature is null. Write a value, or leave it out"),
        ("defaults: {input_key: null}\ndatasets: {a: {path: p}}", "defaults: input_key is null"),
        ("datasets: {a: {path: p, app_service: x}}", "app_service is not available here"),
        ("datasets: {a: {path: p, repetition_penalty: 1.1}}", "repetition_penalty is not available here"),
        ("defaults: {name: b}\ndatasets: {a: {path: p}}", "defaults: name belongs to a set"),
        ("datasets: {a: {path: '${oc.env:HOME}'}}", "interpolations are not read here"),
        ("datasets: {a: {path: p, no_stop_trim: false}}", "no_stop_trim is always on here"),
        ("datasets: {a: {path: p, top_p: 1.5}}", "'a' (eval config"),
        ("datasets: {a: {path: p, metadata_overrides: [1]}}", "metadata_overrides must be a mapping"),
        ("datasets: {a: {path: p, metadata_overrides: {slime: {}}}}", "has the key 'slime', which is reserved"),
        (
            "defaults: {metadata_overrides: {slime: 1}}\ndatasets: {a: {path: p}}",
            "has the key 'slime', which is reserved",
        ),
        ("datasets: [{name: a, path: p}, {name: a, path: q}]", "names a twice"),
        ("- 1", "must be a YAML mapping"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(
    text: str, said: str, words: list[str], namespace: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "eval.yaml").write_text(text)
    with pytest.raises(ArgumentError) as error:
        resolved(namespace, words)
    assert said in str(error.value)


@pytest.mark.parametrize("overrides", [[], 5, {"slime": 1}])
def test_what_is_wrong_with_the_metadata_of_a_set_is_said_of_the_option_too(
    words: list[str], namespace: Namespace, overrides: object
) -> None:
    own = json.dumps({"a": {"metadata_overrides": overrides}})
    with pytest.raises(
        ArgumentError, match=r"The evaluation set 'a' .*metadata_overrides (must be a mapping|has the key 'slime')"
    ):
        resolved(
            namespace,
            words[: words.index("--eval-config")],
            "--eval-prompt-data",
            "a",
            "a.jsonl",
            "--eval-set-options",
            own,
        )


NULL = "datasets: {a: {path: HELD, label_key: null, tool_key: null, metadata_key: null, multimodal_keys: null, stop: null, app_service: null}}"


@pytest.mark.parametrize("defaults", ["", "defaults: {label_key: truth, tool_key: t, metadata_key: m, stop: w30}\n"])
def test_a_set_has_nothing_of_what_it_says_is_null(
    words: list[str], namespace: Namespace, plugins: Plugins, tmp_path: Path, defaults: str
) -> None:
    row = {"input": "w7", "label": "w9", "tools": [{"name": "t"}], "metadata": {"rm_type": "nothing", "n": 1}}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "eval.yaml").write_text(defaults + NULL.replace("HELD", str(tmp_path / "held.jsonl")))
    args: Any = resolved(namespace, words, "--multimodal-keys", '{"image": "pictures"}', "--rollout-stop", "w3").args
    (held,) = evaluation_sets(args)
    columns = (held.columns.label_key, held.columns.tool_key, held.columns.metadata_key, held.columns.image_key)
    assert columns == (None, None, None, None)
    assert args_of_set(args, "a").rollout_stop is None
    (sample,) = held.samples(Counter())
    assert (sample.label, sample.tools, {key for key in sample.metadata if key != "slime"}) == (None, None, set())


def test_no_metadata_of_a_set_are_none(words: list[str], namespace: Namespace, tmp_path: Path) -> None:
    (tmp_path / "eval.yaml").write_text("datasets: {a: {path: p, metadata_overrides: null, rm_type: exact_match}}")
    assert metadata_of_set(resolved(namespace, words).args, "a") == {"rm_type": "exact_match"}


def test_options_of_a_set_that_is_not_there_are_refused(words: list[str], namespace: Namespace) -> None:
    without = words[: words.index("--eval-config")]
    more = ["--eval-prompt-data", "a", "a.jsonl", "--eval-set-options", '{"b": {"eval_top_p": 0.5}}']
    with pytest.raises(ArgumentError, match=r"'b' .* is not among those of --eval-prompt-data: a"):
        resolved(namespace, without, *more)


def test_a_reward_that_a_set_names_is_looked_for_before_the_run(words: list[str], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(path.read_text().replace("rollout_cases.length_reward", "rollout_cases.no_such"))
    assert main(["check", *words]) != 0
    assert "rollout_cases.no_such" in capsys.readouterr().err
