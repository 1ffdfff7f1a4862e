"""Every option of slime's Qwen3-4B RL script, cluster options aside, changes what it says it changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slime_core.cli import main
from slime_core.run.tracking import read_metrics


@dataclass(frozen=True)
class Outcome:
    """What a run of two rollouts left behind."""

    lines: list[dict]
    samples: list[list[dict]]
    weights: dict[str, torch.Tensor]
    answers: list[dict]

    def column(self, name: str) -> list:
        return [line.get(name) for line in self.lines if name in line]

    def tokens(self, rollout: int = 0) -> list[list[int]]:
        return [sample["tokens"] for sample in self.samples[rollout]]

    def trains_like(self, other: Outcome) -> bool:
        return all(torch.equal(tensor, other.weights[name]) for name, tensor in self.weights.items())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    written = []
    for n in range(12):
        chat = [{"role": "user", "content": f"What is {n} plus {n + 1}?"}]
        written.append({"messages": chat, "prompt": chat, "text": f"{n} + {n + 1} =", "label": "1", "answer": str(n)})
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return path


@pytest.fixture(scope="module")
def start(tiny_model, rows, tmp_path_factory) -> Callable[..., Outcome]:
    base = [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(rows), "--input-key", "messages"),
        *("--label-key", "label", "--apply-chat-template", "--rollout-engine", "local"),
        *("--custom-rm-path", "rl_hooks.even_tokens", "--rollout-batch-size", "2", "--n-samples-per-prompt", "2"),
        *("--rollout-max-response-len", "4", "--num-rollout", "2", "--lr", "1e-2", "--micro-batch-size", "4"),
        *("--eval-prompt-data", "held", f"{rows}@[0:2]", "--eval-interval", "2", "--skip-eval-before-train"),
        *("--rollout-seed", "1"),
    ]

    def run(*words: str, without: tuple[str, ...] = ()) -> Outcome:
        folder = tmp_path_factory.mktemp("run")
        own = ["--run-dir", str(folder), "--save-hf", str(folder / "hf")]
        own += ["--save-debug-rollout-data", str(folder / "dump" / "{rollout_id}.jsonl")]
        flags = [word for word in base if word not in without]
        assert main(["train", *flags, *words, *own]) == 0
        dumps = sorted((folder / "dump").iterdir())
        lines = [[json.loads(line) for line in dump.read_text().splitlines()[1:]] for dump in dumps]
        answers = [json.loads(x) for file in sorted((folder / "eval").glob("*")) for x in file.read_text().splitlines()]
        weights = load_file(folder / "hf" / "model.safetensors")
        return Outcome(read_metrics(folder / "metrics.jsonl"), lines, weights, answers)

    return run


@pytest.fixture(scope="module")
def base(start) -> Outcome:
    return start()


Check = Callable[[Outcome, Outcome], bool]
TWO_STEPS = ("--num-steps-per-rollout", "2")


def prompt(sample: dict) -> list[int]:
    return sample["tokens"][: len(sample["tokens"]) - sample["response_length"]]


ROLLOUT: list[tuple[str, Check]] = [
    ("--input-key prompt", lambda b, o: o.tokens() == b.tokens() and o.samples[0][0]["prompt"] == b.samples[0][0]["prompt"]),
    ("--label-key answer", lambda b, o: {s["label"] for s in o.samples[0]} == {"0", "1"}),
    ("--rollout-shuffle", lambda b, o: [prompt(s) for s in o.samples[0]] != [prompt(s) for s in b.samples[0]]),
    ("--num-rollout 3", lambda b, o: len(o.samples) == 3 and len(b.samples) == 2),
    ("--rollout-batch-size 3", lambda b, o: len(o.samples[0]) == 6),
    ("--n-samples-per-prompt 3", lambda b, o: len(o.samples[0]) == 6 and len({s["group_index"] for s in o.samples[0]}) == 2),
    ("--rollout-max-response-len 6", lambda b, o: {s["response_length"] for s in o.samples[0]} == {6}),
    ("--rollout-temperature 0.2", lambda b, o: o.tokens() != b.tokens()),
    ("--rollout-top-p 0.000001", lambda b, o: o.tokens()[0] == o.tokens()[1] and b.tokens()[0] != b.tokens()[1]),
    ("--rollout-top-k 1", lambda b, o: o.tokens()[0] == o.tokens()[1]),
    ("--rollout-seed 2", lambda b, o: o.tokens() != b.tokens() and [prompt(s) for s in o.samples[0]] == [prompt(s) for s in b.samples[0]]),
    ("--rm-type exact_match", lambda b, o: {s["reward"] for s in o.samples[0]} == {0.0}),
    ("--custom-rm-path rl_hooks.same_for_all", lambda b, o: {s["reward"] for s in o.samples[0]} == {1.0}),
    (
        "--over-sampling-batch-size 5 --dynamic-sampling-filter-path rl_hooks.in_half_of_the_groups",
        lambda b, o: {s["group_index"] for s in o.samples[0]} == {0, 2},
    ),
    (
        "--dynamic-sampling-filter-path slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
        lambda b, o: all(len({s["reward"] for s in o.samples[r] if s["group_index"] == g}) > 1 for r in (0, 1) for g in {s["group_index"] for s in o.samples[r]}),
    ),
    (
        "--partial-rollout --over-sampling-batch-size 4",
        lambda b, o: {s["group_index"] for s in o.samples[1]} == {2, 3} and {s["metadata"]["start_rollout_id"] for s in o.samples[1]} == {0},
    ),
    (
        "--partial-rollout --over-sampling-batch-size 6 --buffer-filter-path rl_hooks.pop_newest",
        lambda b, o: {s["group_index"] for s in o.samples[1]} == {4, 5},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "check"), ROLLOUT, ids=[words for words, _ in ROLLOUT])
def test_a_rollout_option_does_what_it_says(start, base, words, check):
    without = ("--custom-rm-path", "rl_hooks.even_tokens") if "--rm-type" in words else ()
    assert check(base, start(*words.split(), without=without))


EVALUATION: list[tuple[str, Check]] = [
    ("--eval-interval 1", lambda b, o: len(o.column("eval/held/reward")) == 2 and len(b.column("eval/held/reward")) == 1),
    ("--n-samples-per-eval-prompt 3", lambda b, o: len(o.answers) == 6 and len(b.answers) == 2),
    ("--eval-max-response-len 7", lambda b, o: {a["response_length"] for a in o.answers} == {7}),
    ("--eval-top-p 0.000001 --n-samples-per-eval-prompt 2", lambda b, o: o.answers[0]["tokens"] == o.answers[1]["tokens"]),
    ("--eval-temperature 0 --n-samples-per-eval-prompt 2", lambda b, o: o.answers[0]["tokens"] == o.answers[1]["tokens"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "check"), EVALUATION, ids=[words for words, _ in EVALUATION])
def test_an_evaluation_option_does_what_it_says_and_leaves_training_alone(start, base, words, check):
    outcome = start(*words.split())
    assert check(base, outcome)
    assert outcome.trains_like(base)


TRAINING: list[tuple[str, str]] = [
    ("", "--lr 1e-3"),
    ("", "--optimizer sgd"),
    ("", "--lr-decay-style constant"),
    ("", "--weight-decay 0.3"),
    ("", "--adam-beta1 0.5"),
    ("", "--adam-beta2 0.5"),
    ("", "--clip-grad 0.01"),
    ("", "--advantage-estimator reinforce_plus_plus"),
    ("", "--num-steps-per-rollout 2"),
    ("--rollout-stop e", "--calculate-per-token-loss"),
    ("", "--entropy-coef 0.1"),
    ("--use-kl-loss --num-steps-per-rollout 2", "--kl-loss-coef 0.5"),
    ("--use-kl-loss --kl-loss-coef 0.5 --num-steps-per-rollout 2", "--kl-loss-type low_var_kl"),
    ("--num-steps-per-rollout 2", "--use-rollout-logprobs"),
]


@pytest.mark.parametrize(("common", "words"), TRAINING, ids=[words for _, words in TRAINING])
def test_a_training_option_changes_the_weights(start, base, common, words):
    plain = start(*common.split()) if common else base
    assert not start(*common.split(), *words.split()).trains_like(plain)


def test_the_kl_loss_is_reported(start, base):
    outcome = start("--use-kl-loss", "--kl-loss-coef", "0.00", "--kl-loss-type", "low_var_kl", *TWO_STEPS)
    assert outcome.column("train/kl_loss")[1] > 0
    assert base.column("train/kl_loss") == []


def test_samples_without_log_probs_among_others_are_named(start, base, caplog, capsys):
    """What would compare with the engine's cannot, in a rollout of which some have none."""
    forgets = ("--custom-rm-path", "rl_hooks.forgets_some_log_probs")
    outcome = start(*forgets)
    compared = "train/train_rollout_logprob_abs_diff"
    assert [compared in line for line in base.lines if "train/loss" in line] == [True, True]
    assert [compared in line for line in outcome.lines if "train/loss" in line] == [False, True]
    (told,) = [record.getMessage() for record in caplog.records if "log-probs is left out" in record.getMessage()]
    assert "The rollout set none in 1 of 4 samples with a response, first in sample 1" in told
    capsys.readouterr()
    with pytest.raises(AssertionError):
        start(*forgets, "--use-rollout-logprobs")
    error = capsys.readouterr().err
    assert "--use-rollout-logprobs needs rollout_log_probs in every sample. The rollout set none in 1 of 4" in error


def test_the_clip_range_decides_which_tokens_are_clipped(start):
    far = (*TWO_STEPS, "--lr", "0.2", "--num-rollout", "2", "--clip-grad", "0")
    clipped = [start(*far, "--eps-clip", low, "--eps-clip-high", high) for low, high in (("0.01", "0.01"), ("9", "99"))]
    shares = [outcome.column("train/pg_clipfrac")[0] for outcome in clipped]
    assert shares[0] > 0.2
    assert shares[1] == 0.0
    assert not clipped[0].trains_like(clipped[1])


def test_micro_batches_and_token_budgets_change_nothing_but_the_last_bits(start):
    sgd = ("--optimizer", "sgd", "--lr", "0.1")
    one, other, third = (
        start(*sgd, *words)
        for words in ((), ("--micro-batch-size", "1"), ("--use-dynamic-batch-size", "--max-tokens-per-gpu", "60"))
    )
    for name, tensor in one.weights.items():
        assert (tensor - other.weights[name]).abs().max() < 1e-6
        assert (tensor - third.weights[name]).abs().max() < 1e-6


def test_training_and_reference_start_from_ref_load_and_load_goes_before_it(start, base, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    frozen = start(
        "--ref-load", str(tmp_path / "other"), "--lr", "0", "--save", str(tmp_path / "s"), "--save-interval", "1"
    )
    assert torch.equal(frozen.weights["model.embed_tokens.weight"], other.state_dict()["model.embed_tokens.weight"])
    assert sorted(path.name for path in (tmp_path / "s").glob("iter_*")) == ["iter_0000000", "iter_0000001"]
    resumed = ("--load", str(tmp_path / "s"), "--num-rollout", "3", "--lr", "0", "--on-resume-change", "warn")
    assert start(*resumed).trains_like(frozen)
