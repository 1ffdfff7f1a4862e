"""`slime check` opens everything once: each mistake that would end a run late is found, and several in one call."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from slime_core.arguments import RunArguments
from slime_core.cli import main
from slime_core.rollout.debug_data import write_debug_data
from slime_core.sample import RolloutOutput, Sample
from slime_core.testing import tiny_checkpoint

RL = [
    "--apply-chat-template",
    "--rollout-engine",
    "local",
    "--n-samples-per-prompt",
    "2",
    "--rollout-max-response-len",
    "4",
]
SFT = ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"]
REWARDED = [*RL, "--rm-type", "exact_match"]
EVALUATED = ["--eval-interval", "1", "--eval-prompt-data", "held", "{rows}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, models that are broken, and files of rows, some of which lack something."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "model").mkdir()
    tiny_checkpoint(folder / "model")
    for name in (
        "no weights",
        "cut off",
        "no tokenizer",
        "two matrices",
        "few rows",
        "no config",
        "no template",
        "no questions",
        "index",
    ):
        shutil.copytree(folder / "model", folder / name)
    weights = load_file(folder / "model" / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    (folder / "no weights" / "model.safetensors").unlink()
    content = (folder / "model" / "model.safetensors").read_bytes()
    (folder / "cut off" / "model.safetensors").write_bytes(content[: len(content) // 2])
    for file in (folder / "no tokenizer").glob("*token*"):
        file.unlink()
    save_file(
        {**weights, "lm_head.weight": embedding.flip(0)},
        folder / "two matrices" / "model.safetensors",
        {"format": "pt"},
    )
    few = {**weights, "model.embed_tokens.weight": embedding[:-2].clone()}
    save_file(few, folder / "few rows" / "model.safetensors", {"format": "pt"})
    (folder / "no config" / "config.json").unlink()
    (folder / "index" / "model.safetensors").rename(folder / "index" / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "index" / "model.safetensors.index.json").write_text(json.dumps(index))
    for file in (folder / "no template").glob("chat_template*"):
        file.unlink()
    settings = json.loads((folder / "no template" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "no template" / "tokenizer_config.json").write_text(json.dumps(settings))

    asks = AutoTokenizer.from_pretrained(folder / "model")
    asks.chat_template = "{{ raise_exception('no questions') if add_generation_prompt }}" + asks.chat_template
    asks.save_pretrained(folder / "no questions")

    messages = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    row = {"messages": messages, "label": "2"}
    for name, value in {
        "rows": row,
        "unlabelled": {"messages": messages},
        "questions": {"messages": messages[:1], "label": "2"},
        "empty label": {**row, "label": None},
        "long": {**row, "messages": [{"role": "user", "content": "1+1=" * 300}]},
        "own reward": {**row, "metadata": {"rm_type": "nothing_of_the_kind"}},
        "roles": {"messages": [{"role": "oracle", "content": 3}], "label": "2"},
    }.items():
        (folder / f"{name}.jsonl").write_text(f"{json.dumps(value)}\n" * 8)
    (folder / "empty.jsonl").write_text("")
    write_debug_data(folder / "dump.jsonl", RolloutOutput([[Sample(tokens=[1, 2], response_length=1, reward=1.0)]]))
    (folder / "a file").write_text("")
    return folder


@pytest.fixture
def check(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`check(*words)` runs `slime check` on a run that is right but for these options, and returns (status, what was said)."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, command: str = "check") -> tuple[int, str]:
        base = ["--hf-checkpoint", str(place / "model"), "--prompt-data", str(place / "rows.jsonl")]
        base += ["--input-key", "messages", "--label-key", "label", "--rollout-batch-size", "2", "--num-rollout", "1"]
        base += ["--lr", "1e-3", "--run-dir", str(tmp_path / "run")]
        given = [word.format(place=place, rows=place / "rows.jsonl") for word in words]
        capsys.readouterr()
        status = main([command, *base, *given])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


ERRORS: dict[str, tuple[list[str], str]] = {
    "a model folder that is not there": ([*REWARDED, "--hf-checkpoint", "nowhere"], "nowhere"),
    "a model without a configuration": ([*REWARDED, "--hf-checkpoint", "{place}/no config"], "there is no"),
    "a model without weights": ([*REWARDED, "--hf-checkpoint", "{place}/no weights"], "holds no weights"),
    "weights that were not copied whole": (
        [*REWARDED, "--hf-checkpoint", "{place}/cut off"],
        "not have been copied whole",
    ),
    "one of several files of weights is missing": (
        [*REWARDED, "--hf-checkpoint", "{place}/index"],
        "lacks 1 of the 2 files",
    ),
    "no tokenizer": ([*REWARDED, "--hf-checkpoint", "{place}/no tokenizer"], "no tokenizer that can be loaded"),
    "a tied flag over two matrices": ([*REWARDED, "--hf-checkpoint", "{place}/two matrices"], "two different matrices"),
    "tokens without a row": ([*REWARDED, "--hf-checkpoint", "{place}/few rows"], "has no embedding for"),
    "no chat template": ([*REWARDED, "--hf-checkpoint", "{place}/no template"], "chat template"),
    "questions of an evaluation that cannot be rendered": (
        [
            *SFT,
            *EVALUATED,
            "--eval-generate",
            "1",
            "--rollout-engine",
            "local",
            "--hf-checkpoint",
            "{place}/no questions",
        ],
        "rows.jsonl:1: the chat template refuses the conversation: no questions",
    ),
    "initial weights that are not there": ([*REWARDED, "--ref-load", "nowhere"], "--ref-load nowhere does not exist"),
    "a warm-up that is longer than the run": ([*REWARDED, "--lr-warmup-iters", "3"], "the whole schedule has 1 steps"),
    "an empty file": ([*REWARDED, "--prompt-data", "{place}/empty.jsonl"], "empty.jsonl is empty"),
    "a second file that lacks the label": (
        [*REWARDED, "--prompt-data", "{rows}", "{place}/unlabelled.jsonl"],
        "unlabelled.jsonl:1: the row has no key 'label'",
    ),
    "messages that are none": ([*REWARDED, "--prompt-data", "{place}/roles.jsonl"], "roles.jsonl:1: "),
    "a prompt column that is not there": ([*REWARDED, "--input-key", "prompt"], "no key 'prompt'"),
    "messages without a template": ([*REWARDED, "--no-apply-chat-template"], "Give --apply-chat-template"),
    "SFT without anything to train": ([*SFT, "--prompt-data", "{place}/questions.jsonl"], "questions.jsonl:1"),
    "an evaluation file that is not there": (
        [*REWARDED, "--eval-interval", "1", "--eval-prompt-data", "held", "nowhere.jsonl"],
        "The evaluation set held: There is no file nowhere.jsonl",
    ),
    "an evaluation set without labels": (
        [*REWARDED, "--eval-interval", "1", "--eval-prompt-data", "held", "{place}/unlabelled.jsonl"],
        "The evaluation set held: ",
    ),
    "an evaluation set of SFT that trains nothing": (
        [*SFT, "--eval-interval", "1", "--eval-prompt-data", "held", "{place}/questions.jsonl"],
        "questions.jsonl:1",
    ),
    "answers without an engine": (
        [*SFT, *EVALUATED, "--eval-generate", "1"],
        "--eval-generate 1 needs an inference engine: add --rollout-engine local.",
    ),
    "answers of an engine that is left out": (
        [*SFT, *EVALUATED, "--eval-generate", "1", "--rollout-engine", "local", "--debug-train-only"],
        "--eval-generate 1 needs an inference engine: leave out --debug-train-only",
    ),
    "fine-tuning by the loss of reinforcement learning": (
        ["--rollout-function-path", "sft"],
        "Choose --loss-type sft_loss.",
    ),
    "the same, without advantages": (
        ["--rollout-function-path", "sft", "--disable-compute-advantages-and-returns"],
        "For fine-tuning choose --loss-type sft_loss",
    ),
    "the loss of a critic for the model": (
        [*REWARDED, "--advantage-estimator", "ppo", "--loss-type", "value_loss"],
        "--loss-type value_loss is what a critic minimises",
    ),
    "an export over the reference": (
        [*REWARDED, "--use-kl-loss", "--ref-load", "{place}/no template", "--save-hf", "{place}/no template"],
        "is the folder of --ref-load, which the export would overwrite",
    ),
    "a replay that evaluates": (
        [*REWARDED, *EVALUATED, "--load-debug-rollout-data", "{place}/dump.jsonl"],
        "needs an inference engine: leave out --load-debug-rollout-data, with which none starts",
    ),
    "a rollout without an engine": (
        ["--apply-chat-template", "--rm-type", "exact_match"],
        "needs an inference engine: add --rollout-engine local.",
    ),
    "no reward": (RL, "Nothing scores"),
    "a reward that is not there": ([*RL, "--rm-type", "nothing"], "no reward named 'nothing'"),
    "a reward that rows name and that is not there": (
        [*RL, "--prompt-data", "{place}/own reward.jsonl", "--metadata-key", "metadata"],
        "no reward named 'nothing_of_the_kind'",
    ),
    "several numbers without a key": ([*RL, "--rm-type", "dapo"], "name one of them with --reward-key"),
    "a key that holds no number": ([*RL, "--rm-type", "dapo", "--reward-key", "pred"], "expected a number"),
    "labels that are no letters": ([*RL, "--rm-type", "gpqa"], "needs the letter of the right choice"),
    "labels that are no text": (
        [*RL, "--rm-type", "exact_match", "--label-key", "messages"],
        "compares with text, a number, or a list of those",
    ),
    "a reward that needs labels": (
        [*RL, "--rm-type", "math", "--label-key", "other", "--prompt-data", "{rows}"],
        "no key 'other'",
    ),
    "a service without a URL": ([*RL, "--rm-type", "remote_rm"], "needs --rm-url"),
    "a service with half a URL": ([*RL, "--rm-type", "remote_rm", "--rm-url", "localhost:80"], "needs --rm-url"),
    "a folder that is a file": ([*REWARDED, "--save-hf", "{place}/a file"], "--save-hf"),
    "a folder in a file": ([*REWARDED, "--save", "{place}/a file/save"], "is a file, no folder"),
    "a run directory that is a file": ([*REWARDED, "--run-dir", "{place}/a file"], "--run-dir"),
    "a folder of TensorBoard that is a file": (
        [*REWARDED, "--use-tensorboard", "--tensorboard-dir", "{place}/a file"],
        "--tensorboard-dir",
    ),
    "a folder of a profile that is a file": (
        [*REWARDED, "--use-pytorch-profiler", "--tensorboard-dir", "{place}/a file"],
        "--tensorboard-dir",
    ),
    "a folder of W&B that is a file": ([*REWARDED, "--use-wandb", "--wandb-dir", "{place}/a file"], "--wandb-dir"),
    "half an address of W&B": ([*REWARDED, "--use-wandb", "--wandb-host", "foo"], "--wandb-host is 'foo'"),
    "a seed of more than 64 bits": ([*REWARDED, "--seed", str(2**64)], "--seed"),
    "an export over the model itself": ([*REWARDED, "--save-hf", "{place}/model"], "which the export would overwrite"),
    "layers that are not there": (
        [*REWARDED, "--lora-rank", "2", "--target-modules", "w_proj"],
        "names no linear layer",
    ),
    "a set that is not evaluated": (
        [*REWARDED, *EVALUATED, "--early-stopping-patience", "2", "--early-stopping-metric", "eval/other/reward"],
        "begins with eval/held/",
    ),
    "a loss that RL does not measure": (
        [*REWARDED, *EVALUATED, "--early-stopping-patience", "2"],
        "--early-stopping-metric is 'loss'",
    ),
    "a reward that SFT does not measure": (
        [*SFT, *EVALUATED, "--early-stopping-patience", "2", "--early-stopping-metric", "reward"],
        "--early-stopping-metric is 'reward'",
    ),
    "fewer groups than a batch": ([*REWARDED, "--over-sampling-batch-size", "1"], "--over-sampling-batch-size is 1"),
    "a batch that does not divide": ([*REWARDED, "--global-batch-size", "3"], "must divide the samples of a rollout"),
    "an option that is not there": ([*REWARDED, "--rollout-batchsize", "2"], "Did you mean '--rollout-batch-size'?"),
    "a value that is none": ([*REWARDED, "--lr-warmup-iters", "few"], "--lr-warmup-iters: given 'few'"),
}
REMARKS: dict[str, tuple[list[str], str]] = {
    "a group of one": ([*REWARDED, "--n-samples-per-prompt", "1"], "Give at least 2 samples per prompt"),
    "k1 in the loss": (
        [*REWARDED, "--use-kl-loss", "--kl-loss-coef", "0.1", "--kl-loss-type", "k1"],
        "0 in expectation",
    ),
    "no weights are kept": (REWARDED, "the trained weights are gone"),
    "no weights are kept, without an engine": ([*SFT, "--debug-train-only"], "the trained weights are gone"),
    "an option without effect": ([*REWARDED, "--max-tokens-per-gpu", "9"], "--max-tokens-per-gpu has no effect"),
    "a row whose label is empty": (
        [*RL, "--rm-type", "exact_match", "--prompt-data", "{rows}", "{place}/empty label.jsonl"],
        "has none; name its column with --label-key. Where the failure policy of rewards is to drop",
    ),
    "a prompt beyond the model's context": (
        [*REWARDED, "--prompt-data", "{rows}", "{place}/long.jsonl"],
        "more than the 511 that the model's context (max_position_embeddings in config.json) allows",
    ),
    "a prompt that ends with its answer": (REWARDED, "rows.jsonl:1: the prompt ends with a message of the assistant"),
    "a limit beyond the model's context": (
        [*REWARDED, "--rollout-max-context-len", "9999"],
        "no sequence becomes longer",
    ),
    "a malformed row that is left out": (
        [*REWARDED, "--prompt-data", "{rows}", "{place}/unlabelled.jsonl", "--malformed-row", "skip"],
        "unlabelled.jsonl:1: the row has no key 'label'",
    ),
}


@pytest.mark.parametrize(
    "words",
    [[*REWARDED, "--prompt-data", "{place}/questions.jsonl"], SFT[:-1]],
    ids=["RL", "SFT, advantages left on"],
)
def test_a_run_that_is_right_is_printed_and_leaves_nothing_behind(words: list[str], check: Any, tmp_path: Path) -> None:
    status, said = check(*words, "--save", str(tmp_path / "save"))
    assert status == 0, said
    assert "notes" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ERRORS)
def test_a_mistake_is_found_and_said(what: str, check: Any, tmp_path: Path) -> None:
    words, message = ERRORS[what]
    status, said = check(*words)
    assert status in (1, 2), said
    assert message in said
    assert "things are wrong" not in said, "one mistake is told once"
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


OF_NO_ROW: dict[str, list[str]] = {
    "input_key": ["nothing"],
    "label_key": ["nothing"],
    "tool_key": ["nothing"],
    "metadata_key": ["nothing"],
    "multimodal_keys": ['{{"image": "nothing"}}'],
    "reward_key": ["nothing", "--rm-type", "dapo"],
    "eval_input_key": ["nothing"],
    "eval_label_key": ["nothing"],
    "eval_tool_key": ["nothing"],
    "eval_reward_key": ["nothing", "--rm-type", "dapo", "--reward-key", "score"],
}
"""Every option that names a column of rows, or a key of rewards, with one that there is not."""


@pytest.mark.parametrize("option", OF_NO_ROW)
@pytest.mark.parametrize("command", ["check", "train"])
def test_a_key_that_there_is_not_is_refused_with_those_that_there_are(option: str, command: str, check: Any) -> None:
    flag = f"--{option.replace('_', '-')}"
    status, said = check(*REWARDED, *EVALUATED, flag, *OF_NO_ROW[option], command=command)
    assert status in (1, 2), said
    assert flag in said
    assert "nothing" in said
    assert ("score" if "reward" in option else "'messages', 'label'") in said


def test_no_option_that_names_a_key_is_left_out() -> None:
    fields = {name for name in RunArguments.model_fields if name.endswith(("_key", "_keys"))}
    assert fields == OF_NO_ROW.keys()


def test_columns_that_some_rows_have_or_that_a_set_has_of_its_own(place: Path, check: Any, tmp_path: Path) -> None:
    row, own = json.loads((place / "rows.jsonl").read_text().split("\n")[0]), {"facts": {"a": 1}}
    rows, plain = tmp_path / "rows.jsonl", tmp_path / "plain.jsonl"
    rows.write_text("".join(f"{json.dumps(one)}\n" for one in (row, row | own)))
    plain.write_text(f"{json.dumps(row)}\n")
    named = ["--metadata-key", "facts"]
    assert check(*REWARDED, *named, "--prompt-data", str(rows))[0] == 0
    assert check(*REWARDED, *named, "--prompt-data", str(plain), str(rows))[0] == 0
    assert check(*REWARDED, *named, *EVALUATED, "--prompt-data", str(rows))[0] == 0, "it is for the training data"
    streamed = check(*REWARDED, *named, "--prompt-data", str(plain), "--data-source-path", "streaming")
    assert streamed[0] == 0
    assert "Whether rows have 'facts' was not looked at" in streamed[1]
    sets = tmp_path / "sets.yaml"
    for path, status in ((rows, 0), (plain, 2)):
        sets.write_text(json.dumps({"datasets": [{"name": "held", "path": str(path), "metadata_key": "facts"}]}))
        found, said = check(*REWARDED, "--eval-interval", "1", "--eval-config", str(sets))
        assert found == status, said
        assert ("The evaluation set held: --metadata-key names the column 'facts'" in said) == bool(status)


@pytest.mark.parametrize("what", REMARKS)
def test_what_may_not_be_meant_is_said(what: str, check: Any) -> None:
    words, message = REMARKS[what]
    status, said = check(*words)
    assert status == 0, said
    assert message in said


PLANTED = [
    *("--no-such-option", "--rm-type", "dapo", "--lr-warmup-iters", "few", "--over-sampling-batch-size", "1"),
    *(
        "--save-hf",
        "{place}/a file",
        "--ref-load",
        "nowhere",
        "--loss-type",
        "what",
        "--use-kl-loss",
        "--kl-loss-type",
        "k1",
    ),
    *("--eval-prompt-data", "held", "nowhere.jsonl", "--prompt-data", "{rows}", "{place}/unlabelled.jsonl"),
    *("--kl-loss-coef", "0.1"),
]
FOUND = (
    "no option --no-such-option",
    "given 'few'",
    "--eval-interval",
    "no loss named 'what'",
    "unlabelled.jsonl:1: the row has no key",
    "--save-hf",
    "--over-sampling-batch-size is 1",
    "held: There is no file",
    "name one of them with --reward-key",
    "--ref-load nowhere does not exist",
    "0 in expectation",
)


def test_several_mistakes_are_found_in_one_call(check: Any, tmp_path: Path) -> None:
    status, said = check(*RL, *PLANTED)
    assert status == 2
    assert [text for text in FOUND if text not in said] == []
    assert list(tmp_path.iterdir()) == []


def test_a_run_begins_with_the_same_looks(check: Any, tmp_path: Path) -> None:
    status, said = check(*RL, *PLANTED, command="train")  # a run with wrong options goes no further than these
    assert status == 2
    assert [text in said for text in FOUND[:3]] == [True] * 3
    assert FOUND[3] not in said
    right = [word for word in PLANTED if word != "--no-such-option"]
    right = [{"few": "0", "--eval-prompt-data": "--eval-interval"}.get(word, word) for word in right]
    place = right.index("--eval-interval")
    right[place + 1 : place + 1] = ["1", "--eval-prompt-data"]
    status, said = check(*RL, *right, command="train")  # nor one with a component that cannot be had
    assert status == 1
    assert [text in said for text in FOUND[3:5]] == [True, False]
    right[right.index("what")] = "policy_loss"
    status, said = check(*RL, *right, command="train")
    assert status == 2
    assert [text for text in FOUND[4:-1] if text not in said] == []
    assert list(tmp_path.iterdir()) == []


def test_all_looks_together_take_little_time(check: Any) -> None:
    check(*REWARDED)  # imports
    started = time.perf_counter()
    check(*RL, *PLANTED)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--exit-duration-in-mins", "It is an option of Megatron that is not available here"),
        ("--use-opd", "It is an option of slime. On-policy distillation adds a teacher's KL penalty to advantages"),
        ("--mem-fraction-static", "here it is called --sglang-mem-fraction-static"),
    ],
)
def test_an_option_of_another_program_gets_its_own_sentence(flag: str, said: str, check: Any) -> None:
    status, text = check(*REWARDED, flag, "1", "--num-epochs", "1")
    assert status == 2
    assert said in text
    assert "Did you mean '--num-epoch'?" in text


def test_an_option_of_a_plugin_that_is_off_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["slime", "--disable-plugin", "megatron", "check", "--num-layers", "2"])
    assert main(None) == 2
    assert "--num-layers. slime-megatron brings it, whose plugin 'megatron' is off" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["ray", "sglang"])
def test_a_run_of_a_cluster_can_be_checked_where_its_programs_are_not(
    missing: str, check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str, *rest: Any) -> Any:
        return None if name == missing else find_spec(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", without)
    monkeypatch.setattr("slime_engine_sglang.checks.find_spec", without, raising=False)
    cluster = ["--actor-num-gpus-per-node", "2", "--rollout-num-gpus", "1"]
    words = [*REWARDED, "--rollout-engine", "sglang" if missing == "sglang" else "local", *cluster]
    status, said = check(*words)
    assert status == 0, said
    assert "not looked at: " in said
    assert {"ray": "whether the cluster has room", "sglang": "SGLang is not installed here"}[
        missing
    ].lower() in said.lower()


def test_a_later_stage_may_begin_with_what_an_earlier_one_writes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = {
        "prompt_data": str(place / "rows.jsonl"),
        "input_key": "messages",
        "rollout_batch_size": 2,
        "num_rollout": 1,
    }
    first = {"rollout_function_path": "sft", "loss_type": "sft_loss", "disable_compute_advantages_and_returns": True}
    first |= {"hf_checkpoint": str(place / "model"), "save_hf": str(tmp_path / "first")}
    later = {**first, "hf_checkpoint": str(tmp_path / "first"), "save_hf": str(tmp_path / "second")}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**shared, "stages": [first, later]}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    over_itself = {**later, "save_hf": str(tmp_path / "first")}
    saved = {"save": str(tmp_path / "save")}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**shared, **saved, "stages": [first, over_itself]}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 2
    said = capsys.readouterr().err
    assert "which the export would overwrite" in said
    for option, folder in (("save-hf", "first"), ("save", "save")):
        assert f"--{option} {tmp_path / folder} of {tmp_path / 'recipe.yaml'}, stage 2 is that of" in said
    on = {**first, **saved, "load": saved["save"], "num_rollout": 2, "save_hf": str(tmp_path / "second")}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**shared, **saved, "stages": [first, on]}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 0
    wrong = {**later, "hf_checkpoint": str(tmp_path / "third"), "lr_warmup_iters": "few"}
    (tmp_path / "recipe.yaml").write_text(json.dumps({**shared, "stages": [{**first, "num_rollout": "x"}, wrong]}))
    assert main(["check", str(tmp_path / "recipe.yaml")]) == 2
    said = capsys.readouterr().err
    assert "--num-rollout: given 'x'" in said
    assert "--lr-warmup-iters: given 'few'" in said
    assert f"{tmp_path / 'third'}" in said


def test_a_component_says_what_it_finds_and_a_check_that_fails_is_named(
    install_plugin: Callable[..., None], check: Any
) -> None:
    install_plugin(
        """
        from slime_core.contracts.checking import checked_by
        from slime_core.errors import DataError

        def look(args, checking):
            checking.remark(f"{len(checking.samples)} prompts")
            checking.error("first thing")
            raise DataError("second thing")

        @checked_by(look)
        def mine(args, sample):
            return 1.0

        def other(args, sample):
            return 1.0

        @hookimpl
        def slime_rewards():
            return {"mine": mine, "other": Lazy("open_pack:other", check="open_pack:nowhere")}
        """
    )
    status, said = check(*RL, "--rm-type", "mine")
    assert status == 2
    assert [text in said for text in ("first thing", "second thing", "1 prompts")] == [True] * 3
    status, said = check(*RL, "--rm-type", "other")
    assert status == 1
    assert "The check of the reward 'other' of open_pack (open_pack 1.0) is not there: open_pack" in said


def test_a_model_may_be_on_the_machines_of_the_cluster_alone(check: Any) -> None:
    status, said = check(*REWARDED, "--hf-checkpoint", "/elsewhere/model", "--ray-address", "10.0.0.1:6379")
    assert status == 0, said
    assert "not looked at: --hf-checkpoint /elsewhere/model is not on this machine" in said
