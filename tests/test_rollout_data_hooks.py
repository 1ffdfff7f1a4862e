"""What `--rollout-data-postprocess-path` changes is what is trained; `--rollout-sample-hook-path` changes what is scored;
`--dump-details` keeps all of it."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.data.sample_lines import open_samples
from slime_core.errors import PluginError
from slime_core.plugins import Plugins
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample
from slime_core.training.postprocess import postprocessed
from slime_rollout_sglang.sample_hooks import SampleHooks

HOOK = "--rollout-data-postprocess-path"


def first_three(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    """Trains the first three tokens of every response, by new masks."""
    rollout_data["loss_masks"] = [(torch.arange(len(mask)) < 3).int() for mask in rollout_data["loss_masks"]]


def first_three_in_place(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    for mask in rollout_data["loss_masks"]:
        mask[3:] = 0
    rollout_data["kept_share"] = [mask.float().mean() for mask in rollout_data["loss_masks"]]


def first_three_sample_hook(args: Any, sample: Sample, *, rollout_id: int, evaluation: bool) -> None:
    """The same, before samples are scored."""
    sample.loss_mask = [int(place < 3) for place in range(sample.response_length)]
    sample.metadata["hooked"] = [*sample.metadata.get("hooked", []), rollout_id, evaluation]


async def another_sample_hook(args: Any, sample: Sample) -> Sample:
    return Sample(**{**vars(sample), "index": None, "metadata": {**sample.metadata, "second": True}})


def doubled(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    rollout_data["advantages"] = [2 * row for row in rollout_data["advantages"]]


def bonus(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    """Gives samples an advantage that had none."""
    rollout_data["advantages"] = [row if row.any() else row + 1 for row in rollout_data["advantages"]]


def all_trained(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    rollout_data["loss_masks"] = [torch.ones_like(mask) for mask in rollout_data["loss_masks"]]


SEEN: list[dict[str, list[Any]]] = []


def sees(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    SEEN.append(dict(rollout_data))


def lowered(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    rollout_data["rollout_log_probs"] = [row - 1.0 for row in rollout_data["rollout_log_probs"]]


async def equal_in_every_second_group(args: Any, sample: Sample) -> float:
    assert sample.group_index is not None
    return 1.0 if sample.group_index % 2 else float(sample.tokens[-1] % 2)


def nothing(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    assert {"advantages", "log_probs", "rollout_log_probs"} <= rollout_data.keys()


def reward_of_hooked(args: Any, sample: Sample) -> float:
    assert sample.metadata["hooked"] == [sample.metadata["hooked"][0], False]
    assert sample.metadata["second"] is True
    return float(sample.tokens[-1] % 2)


def longer(args: Any, rollout_id: int, rollout_data: dict[str, list[Any]]) -> None:
    rollout_data["tokens"][0][0] += 1


@pytest.fixture
def flags(tiny_model: Path, chat_rows: Path) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
        *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "6"),
        *(
            "--lr",
            "1e-2",
            "--num-rollout",
            "2",
            "--num-steps-per-rollout",
            "2",
            "--optimizer",
            "sgd",
            "--clip-grad",
            "0",
        ),
    ]


def run(folder: Path, flags: list[str], *more: str) -> list[dict[str, Any]]:
    assert main(["train", *flags, *more, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return [line for line in read_metrics(folder / "metrics.jsonl") if "train/loss" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def differ(one: Path, other: Path) -> bool:
    theirs = weights(other)
    return any(not torch.equal(tensor, theirs[name]) for name, tensor in weights(one).items())


def test_masks_that_a_hook_leaves_are_those_that_are_trained_bit_for_bit(flags: list[str], tmp_path: Path) -> None:
    run(tmp_path / "plain", flags)
    run(tmp_path / "nothing", flags, HOOK, "test_rollout_data_hooks.nothing")
    assert not differ(tmp_path / "plain", tmp_path / "nothing")
    lines = run(tmp_path / "in place", flags, HOOK, "test_rollout_data_hooks.first_three_in_place")
    assert all(0 < line["train/kept_share"] <= 1 for line in lines)
    run(tmp_path / "new", flags, HOOK, "test_rollout_data_hooks.first_three")
    assert differ(tmp_path / "plain", tmp_path / "new")
    assert not differ(tmp_path / "in place", tmp_path / "new")
    hook = ("--rollout-sample-hook-path", "test_rollout_data_hooks.first_three_sample_hook")
    run(tmp_path / "sample hook", flags, *hook)
    new = weights(tmp_path / "new")  # old log-probs of fewer tokens are computed here, whose last digits may be others
    assert max((t - new[name]).abs().max() for name, t in weights(tmp_path / "sample hook").items()) < 1e-6


def test_advantages_that_a_hook_doubles_are_twice_the_step(flags: list[str], tmp_path: Path) -> None:
    once = [*flags, "--num-rollout", "1", "--num-steps-per-rollout", "1", "--weight-decay", "0"]
    run(tmp_path / "half", once, "--lr", "1e-2", HOOK, "test_rollout_data_hooks.doubled")
    run(tmp_path / "whole", once, "--lr", "2e-2")
    whole = weights(tmp_path / "whole")
    assert max((t - whole[name]).abs().max() for name, t in weights(tmp_path / "half").items()) < 1e-6


def test_log_probs_are_computed_of_samples_that_a_hook_gives_an_advantage(flags: list[str], tmp_path: Path) -> None:
    own = [*flags, "--custom-rm-path", "test_rollout_data_hooks.equal_in_every_second_group", HOOK]
    own = [*own, "test_rollout_data_hooks.bonus", "--num-rollout", "1"]
    (line,), (of_all,) = run(tmp_path / "run", own), run(tmp_path / "all", own, "--no-skip-zero-advantages")
    of_losses = {name: value for name, value in line.items() if name.startswith("train/")}
    assert of_losses == {name: of_all[name] for name in of_losses}


@pytest.mark.parametrize(
    ("columns", "engines", "untold"),
    [
        ([], False, ""),
        (["advantages", "returns", "rollout_log_probs"], False, ""),
        (["rollout_log_probs", "old_log_probs", "advantages"], True, ""),
        (["old_log_probs", "advantages"], False, "log_probs"),
        (["ref_log_probs", "advantages"], False, "ref_log_probs"),
        (["old_values", "returns"], False, "values"),
        (["old_log_probs", "trainer_log_probs"], True, "log_probs"),
    ],
)
def test_tokens_that_models_have_not_computed_cannot_be_trained(columns: list[str], engines: bool, untold: str) -> None:
    hook = Plugins([]).select("rollout_data_postprocess", "test_rollout_data_hooks.all_trained")
    samples = [
        Sample(tokens=[*range(5)], response_length=3, loss_mask=[1, 1, 1], index=1),
        Sample(tokens=[*range(5)], response_length=3, loss_mask=[1, 0, 1], index=2),
        Sample(tokens=[*range(5)], response_length=3, remove_sample=True, index=3),
    ]
    args: Any = SimpleNamespace(use_rollout_logprobs=engines)
    given = {name: [[0.5] * 3] * 3 for name in columns}
    if untold:
        with pytest.raises(PluginError, match=f"left tokens of sample 2 trained that were not, which have no {untold}"):
            postprocessed(args, 0, samples, given, hook, {})
    else:
        assert [sample.trained_mask for sample in postprocessed(args, 0, samples, given, hook, {})[0]] == [
            [1, 1, 1]
        ] * 3


def test_a_hook_is_shown_under_slimes_names_what_slime_shows_under_them(flags: list[str], tmp_path: Path) -> None:
    seen = importlib.import_module("test_rollout_data_hooks").SEEN
    seen.clear()
    hook = (HOOK, "test_rollout_data_hooks.sees", "--num-rollout", "1")
    engines = ("--use-rollout-logprobs",)
    run(tmp_path / "own", flags, *hook)
    run(tmp_path / "engine", flags, *hook, *engines)
    run(tmp_path / "both", flags, *hook, *engines, "--get-mismatch-metrics")
    for data in seen:
        for start in (0, 2):  # of a group
            raw, rewards = (torch.tensor(data[name][start : start + 2]) for name in ("raw_reward", "rewards"))
            assert torch.allclose(rewards, (raw - raw.mean()) / (raw.std() + 1e-6), atol=1e-5)
        for row, reward in zip(data["advantages"], data["rewards"], strict=True):
            assert row.tolist() == [reward] * len(row)
    assert any(data["rewards"] != data["raw_reward"] for data in seen)
    assert ["log_probs" in data for data in seen] == [True, False, True]
    assert not any("trainer_log_probs" in data for data in seen)
    trainers, same_trainers = (torch.cat(seen[place]["log_probs"]) for place in (0, 2))
    assert torch.equal(trainers, same_trainers)
    assert not torch.equal(trainers, torch.cat(seen[2]["rollout_log_probs"]))
    (line,) = run(tmp_path / "lowered", flags, *engines, HOOK, "test_rollout_data_hooks.lowered", "--num-rollout", "1")
    assert line["train/ratio"] == pytest.approx(torch.e, rel=0.1)


def test_what_is_fixed_by_then_is_refused(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags, HOOK, "test_rollout_data_hooks.longer", "--run-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "'test_rollout_data_hooks.longer'" in said
    assert "other 'tokens' than it was given" in said
    assert "It may change loss_masks, log_probs, rollout_log_probs, advantages" in said


def test_hooks_follow_each_other_and_rewards_see_what_they_leave(flags: list[str], tmp_path: Path) -> None:
    own = [word if word != "rl_hooks.even_tokens" else "test_rollout_data_hooks.reward_of_hooked" for word in flags]
    first, second = "test_rollout_data_hooks.first_three_sample_hook", "test_rollout_data_hooks.another_sample_hook"
    run(tmp_path / "run", own, "--rollout-sample-hook-path", first, "--rollout-sample-hook-path", second,
        "--dump-details", str(tmp_path / "details"))  # fmt: skip
    for rollout_id in range(2):
        dump, train_data = (
            tmp_path / "details" / name / f"{rollout_id}.arrow" for name in ("rollout_data", "train_data")
        )
        samples = [stored.sample.to_dict() for stored in open_samples(dump).read()]
        assert [sample["index"] for sample in samples] == [4 * rollout_id + n for n in range(4)]
        assert all(sample["metadata"]["hooked"] == [rollout_id, False] for sample in samples)
        trained = [{**stored.sample.to_dict(), **stored.rows} for stored in open_samples(train_data).read()]
        assert [row["index"] for row in trained] == [sample["index"] for sample in samples]
        for row, sample in zip(trained, samples, strict=True):
            assert row["loss_mask"] == sample["loss_mask"] == [1, 1, 1, 0, 0, 0][: sample["response_length"]]
            assert row["rollout_log_probs"] == sample["rollout_log_probs"]
            assert len(row["advantages"]) == len(row["log_probs"]) == row["response_length"]
    assert (tmp_path / "details" / "tokenizer" / "tokenizer_config.json").exists()


SAMPLE_HOOKS = """
import functools

async def later(args, sample, **told):
    return changed(args, sample, **told)

def changed(args, sample, **told):
    sample.metadata["told"] = sorted(told.items())

def decorated(function):
    @functools.wraps(function)
    def called(*args, **kwargs):
        return function(*args, **kwargs)
    return called

class Hook:
    async def __call__(self, args, sample, rollout_id, evaluation):
        return await later(args, sample, rollout_id=rollout_id, evaluation=evaluation)
"""


@pytest.mark.parametrize("form", ["changed", "later", "decorated(later)", "Hook()", "functools.partial(later)"])
def test_a_sample_hook_runs_and_is_told_of_evaluations_in_whatever_form_it_comes(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"hooks_{abs(hash(form))}"
    (tmp_path / f"{module}.py").write_text(f"{SAMPLE_HOOKS}\nhook = {form}\n")
    monkeypatch.syspath_prepend(tmp_path)
    selected = Plugins([]).select("sample_hook", f"{module}.hook")
    args: Any = SimpleNamespace(failure_policy=[])
    hooks = SampleHooks(args, cast(Any, SimpleNamespace(sample_hooks=[selected])), evaluation=True)
    hooks.rollout_id = 3
    given = Sample(index=0, metadata={})
    made = asyncio.run(hooks.apply(given))
    assert made is not None
    assert made.metadata["told"] == [["evaluation", True], ["rollout_id", 3]]
    assert given.metadata == {}, "another attempt would begin with what this one has left"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--dump-details", "d", "--save-debug-train-data", "x{rollout_id}"],
            "--dump-details and --save-debug-train-data both say",
        ),
        (
            ["--dump-details", "d", "--save-debug-rollout-data", "x{rollout_id}"],
            "--dump-details and --save-debug-rollout-data both",
        ),
        (["--save-debug-train-data", "x"], "one file for all rollouts"),
        (["--save-debug-train-data", "{rollout_id}", "--save-debug-rollout-data", "{rollout_id}"], "are the same file"),
        (["--save-debug-train-data", "{rollout_id}", "--debug-rollout-only"], "trains nothing"),
        (["--rollout-sample-hook-path", "no_such.hook"], "no_such"),
    ],
)
def test_options_of_dumps_that_do_not_go_together_are_refused(
    more: list[str], said: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *flags, *more]) != 0
    assert said in capsys.readouterr().err


def counting_sample_hook(args: Any, sample: Sample) -> int:
    return sample.response_length


def cutting_sample_hook(args: Any, sample: Sample) -> None:
    sample.response_length -= 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("counting", "expected a Sample, or None"),
        ("cutting", "rollout_log_probs has 6 entries, but response_length is 5"),
    ],
)
def test_a_sample_hook_that_leaves_something_else_ends_the_run_by_name(
    name: str, said: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = f"test_rollout_data_hooks.{name}_sample_hook"
    assert main(["train", *flags, "--rollout-sample-hook-path", hook, "--run-dir", str(tmp_path)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert f"The sample_hook '{hook}'" in line


def test_a_first_token_that_nothing_precedes_cannot_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_masks.py").write_text(
        "def all_trained(args, rollout_id, data): data['loss_masks'] = [[1, 1], [1, 1]]"
    )
    monkeypatch.syspath_prepend(tmp_path)
    hook = Plugins([]).select("rollout_data_postprocess", "own_masks.all_trained")
    samples = [Sample(tokens=[5, *range(n)], response_length=2, loss_mask=[0, 1], index=n) for n in (2, 1)]
    args: Any = SimpleNamespace(use_rollout_logprobs=False)
    with pytest.raises(PluginError, match="left the first token of sample 1 trained"):
        postprocessed(args, 0, samples, {}, hook, {})
