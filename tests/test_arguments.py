"""Arguments are strict: nothing is ignored, everything says where it came from, derived values are computed once."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest

from slime_core.arguments.command_line import parse_command_line, run_parser
from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.readers import options_read, unknown_names, without_effect
from slime_core.arguments.recipe import read_recipe
from slime_core.arguments.resolve import Resolved, resolve, with_data_length
from slime_core.contracts.kinds import OBSERVERS
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins, Selected

BASE = ["--hf-checkpoint", "m", "--prompt-data", "d.jsonl", "--rollout-batch-size", "8", "--num-epoch", "3"]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(scope="module")
def namespace(plugins) -> Namespace:
    return Namespace(plugins)


def resolved(
    namespace: Namespace, *flags: str, recipe: str | None = None, env: dict[str, str] | None = None
) -> Resolved:
    return resolve(namespace, [*BASE, *flags], read_recipe(recipe)[0] if recipe else None, env or {})


def rollout(plugins: Plugins, name: str) -> Selected:
    """An installed rollout function, or "other": one that reads no option, or "mine": one that does not say what it reads."""
    if name not in ("other", "mine"):
        return plugins.select("rollout", name)
    declared = () if name == "other" else None
    return Selected("rollout", name, lambda: None, "a test", "--rollout-function-path", reads_options=declared)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested too deeply to be read"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"a": ', "not valid JSON at column"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_json_that_cannot_be_read_is_said_in_a_sentence_of_every_option_that_takes_some(namespace, text, message):
    objects = [option for option in namespace.options.values() if typing.get_origin(option.base_type) is dict]
    assert len(objects) >= 4
    for option in objects:
        with pytest.raises(ArgumentError) as caught:
            resolved(namespace, option.flag, text)
        said = str(caught.value)
        assert f"{option.flag}: given " in said
        assert "expected a JSON object: " in said
        assert message in said
        assert len(said) < 2000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rollout-bach-size", "8"], "There is no option --rollout-bach-size. Did you mean '--rollout-batch-size'?"),
        (["--xyzzy"], "There is no option --xyzzy. See slime train --help."),
        (["--num-epoch", "two"], "--num-epoch: given 'two' (command line). Input should be a valid integer"),
        (["--num-epoch", "0"], "--num-epoch: given '0' (command line). Input should be greater than or equal to 1"),
        (["--malformed-row", "ignore"], "Input should be 'error' or 'skip'"),
        (["stray"], "What is 'stray'? Every value belongs to a --flag"),
        (["--global-batch-size", "5"], "it must divide the samples of a rollout"),
        (["--num-steps-per-rollout", "3"], "it must divide the --rollout-batch-size 8"),
        (["--num-steps-per-rollout", "2", "--global-batch-size", "2"], "contradict each other"),
        (["--use-dynamic-batch-size"], "--use-dynamic-batch-size needs --max-tokens-per-gpu"),
        (["--eval-prompt-data", "a", "b", "c"], "takes one path or pairs 'name path'"),
        (["--eval-prompt-data", "a", "b", "a", "c", "--eval-interval", "1"], "names a twice"),
        (["--eval-prompt-data", "a"], "--eval-prompt-data needs --eval-interval N, or --num-rollout 0"),
        (["--num-rollout", "0"], "--num-rollout 0 evaluates only, so it needs --eval-prompt-data"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(namespace, flags, message):
    with pytest.raises(ArgumentError) as error:
        resolved(namespace, *flags)
    assert message in str(error.value)


def test_a_flag_that_is_written_with_underscores_gets_its_own_name_back(namespace):
    known = [flag for flag in run_parser(namespace, "slime train")._option_string_actions if "-" in flag[2:]]
    assert {"--num-rollout", "--lr-decay-style", "--hf-checkpoint", "--no-apply-chat-template"} <= {*known}
    _, errors = parse_command_line(namespace, ["--" + flag[2:].replace("-", "_") for flag in known])
    told = [(str(error), flag) for error, flag in zip(errors, known, strict=True)]
    assert [said for said, flag in told if not said.endswith(f". Did you mean {flag!r}?")] == []


def test_a_missing_required_option_is_named_with_its_meaning(namespace):
    with pytest.raises(ArgumentError, match="--prompt-data is required: Training data"):
        resolve(namespace, ["--hf-checkpoint", "m"], env={})


def test_later_sources_win_and_each_value_knows_its_source(namespace, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rollout_seed: 1\nrun_dir: from-recipe\nrollout-shuffle: true\nnum_epoch: 7\n")
    found = resolved(namespace, recipe=str(recipe), env={"SLIME_RUN_DIR": "from-env"})
    assert (found.args.rollout_seed, found.args.run_dir, found.args.num_epoch) == (1, "from-env", 3)
    assert found.provenance["rollout_seed"] == f"recipe {recipe}"
    assert found.provenance["run_dir"] == "environment SLIME_RUN_DIR"
    assert found.provenance["num_epoch"] == "command line"
    assert found.provenance["global_batch_size"].startswith("derived")
    assert found.provenance["micro_batch_size"] == "default"


def test_an_unknown_name_in_a_recipe_is_an_error_with_the_nearest_name(namespace, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rollout_sed: 1\n")
    with pytest.raises(ArgumentError, match=r"'rollout_sed', which is no option. Did you mean '--rollout-seed'\?"):
        resolved(namespace, recipe=str(recipe))


def test_arguments_are_frozen(namespace):
    args = resolved(namespace).args
    with pytest.raises(ValueError, match="frozen"):
        args.num_epoch = 4


def test_an_option_that_nothing_reads_is_reported(namespace, plugins):
    found = resolved(namespace, "--max-tokens-per-gpu", "64", "--loss-mask-type", "qwen", "--use-wandb")
    notes = " ".join(without_effect(found, [rollout(plugins, "other")], plugins))
    assert "--max-tokens-per-gpu has no effect without --use-dynamic-batch-size." in notes
    assert "--loss-mask-type has no effect: it is read by the rollout 'sft', which this run does not use." in notes
    for reader in ("sft", "mine"):
        assert "--loss-mask-type" not in " ".join(without_effect(found, [rollout(plugins, reader)], plugins))


def test_a_condition_may_be_that_another_option_is_not_set(namespace, plugins):
    def about(*words: str, selected: str) -> list[str]:
        found = without_effect(resolved(namespace, *words), [rollout(plugins, selected)], plugins)
        return [note for note in found if not note.startswith("--disable")]

    sft = ("--disable-compute-advantages-and-returns",)
    for words in (("--rollout-temperature", "0.5"), ("--no-share-prompts",)):
        assert about(*words, selected="other") == []
        assert about(*sft, *words, selected="other") == [
            f"{words[0].replace('--no-', '--')} has no effect with --disable-compute-advantages-and-returns."
        ]
    engine = ("--rollout-engine", "local")
    assert about(*engine, selected="sft") == []
    assert about(*engine, "--debug-train-only", selected="sft") == [
        "--rollout-engine has no effect with --debug-train-only."
    ]
    long = ("--rollout-max-response-len", "7")
    assert about(*long, selected="sft") == ["--rollout-max-response-len has no effect without --constant-length-loss."]
    assert about(*long, "--constant-length-loss", selected="sft") == []


def test_an_option_set_to_its_default_is_not_reported(namespace, plugins):
    assert without_effect(resolved(namespace, "--loss-mask-type", "auto"), [], plugins) == []


def test_epochs_become_rollouts_when_the_length_of_the_data_is_known(namespace):
    assert with_data_length(resolved(namespace), 100).args.num_rollout == 37
    assert with_data_length(resolved(namespace, "--num-rollout", "5"), 100).args.num_rollout == 5
    with pytest.raises(ArgumentError, match="Lower --rollout-batch-size to at most 6"):
        with_data_length(resolved(namespace), 2)


def test_steps_and_batch_size_follow_from_each_other(namespace):
    args = resolved(namespace, "--n-samples-per-prompt", "2", "--num-steps-per-rollout", "4").args
    assert (args.global_batch_size, args.num_steps_per_rollout) == (4, 4)
    args = resolved(namespace, "--global-batch-size", "2").args
    assert (args.global_batch_size, args.num_steps_per_rollout) == (2, 4)


def test_a_single_evaluation_path_is_named_after_its_file(namespace):
    args = resolved(namespace, "--eval-prompt-data", "x/heldout.jsonl@[0:5]", "--eval-interval", "1").args
    assert eval_sets(args) == [("heldout", "x/heldout.jsonl@[0:5]")]


def test_every_option_has_a_help_text_and_a_reader(namespace, plugins):
    declared = {f"{c.kind} {c.name}": c.reads_options or () for c in plugins.all_components()}
    read = {who: options_read(names, namespace.model) for who, names in declared.items()}
    observing = {info.distribution for info in plugins.infos if set(info.hooks) & set(OBSERVERS)}
    for option in namespace.options.values():
        assert len(option.field.description or "") > 15, option.flag
        readers = [who for who, options in read.items() if option.name in options]
        assert option.read_by_core is not False or readers or option.distribution in observing, option.flag
        own = [option.read_by_core] if isinstance(option.read_by_core, str) else []
        for condition in [*(option.when or "").split("|"), *own]:
            assert not condition or condition.lstrip("!") in namespace.options, option.flag
    of_families = {option.distribution for option in namespace.options.values() if option.group.families}
    for component in plugins.all_components():
        unknown = unknown_names(component.reads_options or (), namespace.model)
        assert not unknown or component.plugin.distribution in of_families, component.name
    for who in declared:
        assert all(not c or c.lstrip("!") in namespace.options for c in read[who].values()), who
    told = run_parser(namespace, "slime train").format_help()
    assert told.startswith("usage: slime train [RECIPE.yaml] [options]\n")
    assert "--rollout-batch-size" in told


def test_the_stages_of_a_recipe_share_options_and_win_over_them(namespace, tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("rollout_seed: 1\nlr: 1e-4\nstages:\n- {lr: 1e-3}\n- {rollout_seed: 2}\n")
    found = [resolve(namespace, BASE, stage, {}) for stage in read_recipe(str(recipe))]
    assert [(f.args.rollout_seed, f.args.lr) for f in found] == [(1, 1e-3), (2, 1e-4)]
    assert found[1].provenance["rollout_seed"] == f"recipe {recipe}, stage 2"
    assert found[0].args.run_dir != found[1].args.run_dir


def test_evaluation_sets_of_the_command_line_win_over_a_file_that_the_recipe_names(namespace, tmp_path: Path):
    sets, recipe = tmp_path / "eval.yaml", tmp_path / "recipe.yaml"
    sets.write_text("datasets: {of_file: {path: file.jsonl, temperature: 0.5}}\n")
    recipe.write_text(f"eval_config: {sets}\neval_interval: 1\n")
    (stage,) = read_recipe(str(recipe))
    own = resolve(namespace, [*BASE, "--eval-prompt-data", "of_line", "line.jsonl"], stage, {}).args
    assert (own.eval_prompt_data, own.eval_config, own.eval_set_options) == (["of_line", "line.jsonl"], None, {})
    both = resolve(namespace, BASE, stage, {}).args
    assert (both.eval_prompt_data, both.eval_set_options) == (
        ["of_file", "file.jsonl"],
        {"of_file": {"eval_temperature": 0.5}},
    )


def test_stages_that_are_no_list_of_mappings_are_refused(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("stages: 3\n")
    with pytest.raises(ArgumentError, match="stages must be a list"):
        read_recipe(str(recipe))


def test_an_option_is_read_if_one_of_its_readers_and_that_readers_condition_hold(namespace, plugins):
    def about(*flags: str, selected: str) -> list[str]:
        found = without_effect(resolved(namespace, *flags), [rollout(plugins, selected)], plugins)
        return [note for note in found if note.startswith("--rm-type")]

    assert about("--rm-type", "exact_match", selected="rl") == []
    assert about("--rm-type", "exact_match", selected="sft") == ["--rm-type has no effect without --eval-generate."]
    evaluated = ("--eval-prompt-data", "x.jsonl", "--eval-interval", "1", "--eval-generate", "2")
    assert about("--rm-type", "exact_match", *evaluated, selected="sft") == []
    assert "which this run does not use" in about("--rm-type", "exact_match", selected="other")[0]


def test_an_option_of_an_evaluation_set_is_told_of_where_the_set_has_no_use_for_it(namespace, plugins):
    def about(own: dict, *flags: str, selected: str = "rl") -> str:
        evaluated = (
            "--eval-prompt-data",
            "a",
            "x.jsonl",
            "--eval-interval",
            "1",
            "--eval-set-options",
            json.dumps({"a": own}),
        )
        found = without_effect(resolved(namespace, *evaluated, *flags), [rollout(plugins, selected)], plugins)
        return " ".join(note for note in found if "of the evaluation set 'a'" in note)

    idle = "--rm-type of the evaluation set 'a' has no effect with --custom-rm-path."
    assert about({"rm_type": "exact_match"}) == ""
    assert about({"rm_type": "exact_match"}, "--custom-rm-path", "mine.reward") == idle
    assert about({"rm_type": "exact_match", "custom_rm_path": "mine.reward"}) == idle
    assert about({"rm_type": "exact_match", "custom_rm_path": None}, "--custom-rm-path", "mine.reward") == ""
    assert about({"eval_temperature": 0.5, "rollout_stop": ["x"], "metadata_overrides": {"rm_type": "a"}}) == ""
    assert about({"eval_temperature": None}, selected="sft") == ""
    assert "--eval-temperature of the evaluation set 'a' has no effect without --eval-generate" in about(
        {"eval_temperature": 0}, selected="sft"
    )
    assert about({"eval_temperature": 0}, "--eval-generate", "1", selected="sft") == ""
    assert "which this run does not use" in about({"eval_temperature": 0}, selected="other")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"save: f\xfcr\n", "is no text in UTF-8"),
        (b"save: 2001-99-99\n", "is not valid YAML"),
        (b"seed: !!int foo\n", "is not valid YAML"),
        (b"seed: " + b"[" * 500 + b"]" * 500, "nested too deeply"),
        (b"seed: " + b"1" * 5000, "is not valid YAML"),
        (b"lr: 1e-3\nlr: 1e-5\n", "the key 'lr' is there twice"),
        (b"seed: 010\n", "what is the number '010'"),
        (b"seed: 1:30\n", "what is the number '1:30'"),
    ],
)
def test_a_recipe_that_yaml_would_change_or_cannot_read_is_an_error(content: bytes, says: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(ArgumentError, match=f"The recipe .*{says}"):
        read_recipe(str(tmp_path / "recipe.yaml"))


def test_an_option_that_is_spelled_in_two_ways_is_there_twice(namespace, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("num_rollout: 2\nnum-rollout: 7\n")
    with pytest.raises(ArgumentError, match="sets --num-rollout twice"):
        resolved(namespace, recipe=str(tmp_path / "recipe.yaml"))


def test_all_that_is_wrong_is_told_at_once(namespace):
    flags = ("--no-such", "1", "--lr-warmup-iters", "few", "--neither", "--global-batch-size", "-3")
    with pytest.raises(ArgumentError) as caught:
        resolved(namespace, *flags)
    for text in ("4 things are wrong", "no option --no-such.", "given 'few'", "no option --neither.", "given '-3'"):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--save", ""], "--save (command line) is empty. Is a variable of the shell unset?"),
        (["--load", " "], "--load (command line) is empty"),
        (["--save-hf", "", "--run-dir", ""], "--run-dir (command line) is empty"),
        (["--eval-config", ""], "--eval-config (command line) is empty"),
        (["--hf-checkpoint", ""], "--hf-checkpoint (command line) is empty"),
    ],
)
def test_an_unset_variable_of_a_launch_script_does_not_pass_for_an_option_that_is_left_out(namespace, flags, says):
    with pytest.raises(ArgumentError) as error:
        resolved(namespace, *flags)
    assert says in str(error.value)
    assert "is required" not in str(error.value)


def test_null_in_a_recipe_leaves_an_option_out_and_an_empty_text_does_not(namespace, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("load: null\n")
    assert resolved(namespace, recipe=str(tmp_path / "recipe.yaml")).args.load is None
    (tmp_path / "recipe.yaml").write_text("load: ''\n")
    with pytest.raises(ArgumentError, match=r"--load \(recipe .*recipe.yaml\) is empty"):
        resolved(namespace, recipe=str(tmp_path / "recipe.yaml"))
