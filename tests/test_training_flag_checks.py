"""What `slime check` says of slime's training flags: where one has no effect, contradicts another one, or cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from slime_core.cli import main

SFT = ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"]
KL = ["--use-kl-loss", "--kl-loss-coef", "0.1"]
LORA = ["--lora-rank", "2"]


@pytest.fixture
def check(tiny_model: Path, chat_rows: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Checks a GRPO run with further words, and returns the status and what was said."""

    def call(*words: str) -> tuple[int, str]:
        flags = [
            *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
            *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rl_hooks.even_tokens"),
            *("--rollout-batch-size", "4", "--n-samples-per-prompt", "2", "--num-rollout", "2"),
        ]
        capsys.readouterr()
        status = main(["check", *flags, *words])
        told = capsys.readouterr()
        return status, " ".join(f"{told.out} {told.err}".split())

    return call


REMARKS: dict[str, tuple[list[str], str]] = {
    "k1 as a loss": ([*KL, "--kl-loss-type", "k1"], "0 in expectation"),
    "the default as a loss": (KL, "0 in expectation"),
    "masking of sequences that cannot be off-policy": (
        ["--use-opsm"],
        "--use-opsm has no effect: with one optimizer step",
    ),
    "a threshold without masking": (["--opsm-delta", "1"], "--opsm-delta has no effect without --use-opsm"),
    "a weighed KL that is not measured": (
        ["--use-unbiased-kl"],
        "--use-unbiased-kl has no effect without --use-kl-loss",
    ),
    "a reference model that nothing reads": (
        ["--ref-update-interval", "2"],
        "--ref-update-interval has no effect: neither loss nor advantage estimator reads a reference model",
    ),
    "an old actor that nothing reads": (
        ["--keep-old-actor", "--use-rollout-logprobs"],
        "--keep-old-actor has no effect: nothing reads the trainer's old log-probs",
    ),
    "old log-probs of SFT": (
        [*SFT, "--keep-old-actor"],
        "--keep-old-actor has no effect with --disable-compute-advantages-and-returns",
    ),
    "an interval without an engine in training": (
        [*SFT, "--update-weights-interval", "2"],
        "--update-weights-interval has no effect: no engine generates what is trained on",
    ),
    "a correction that is only measured": (
        ["--get-mismatch-metrics", "--custom-tis-function-path", "icepop"],
        "--custom-tis-function-path icepop with --get-mismatch-metrics alone is measured and weighs nothing",
    ),
    "mismatch of SFT": ([*SFT, "--get-mismatch-metrics"], "--get-mismatch-metrics has no effect"),
}
SILENT: dict[str, list[str]] = {
    "k1 that is measured": ["--use-kl-loss", "--kl-loss-type", "k1"],
    "k1 with a coefficient of 0": ["--use-kl-loss", "--kl-loss-coef", "0", "--kl-loss-type", "k1"],
    "k3 as a loss": [*KL, "--kl-loss-type", "k3"],
    "k1 that is weighed": [*KL, "--kl-loss-type", "k1", "--use-unbiased-kl"],
    "k1 in rewards": ["--kl-coef", "0.1", "--kl-loss-type", "k1", "--advantage-estimator", "reinforce_plus_plus"],
    "masking in several steps": ["--use-opsm", "--num-steps-per-rollout", "2"],
    "masking of what the engine's log-probs say": ["--use-opsm", "--use-rollout-logprobs"],
    "masking of what has moved since it was generated": [
        *("--use-opsm", "--keep-old-actor", "--update-weights-interval", "2"),
    ],
    "a reference model that follows": [*KL, "--kl-loss-type", "k3", "--ref-update-interval", "2", *LORA],
    "an old actor": ["--keep-old-actor", "--update-weights-interval", "2"],
    "an old actor beside the engine's log-probs": [
        *("--keep-old-actor", "--use-rollout-logprobs", "--get-mismatch-metrics"),
    ],
    "a correction that is measured and weighs": [
        *("--get-mismatch-metrics", "--use-tis", "--custom-tis-function-path", "icepop"),
    ],
    "frozen parameters": ["--freeze-params-name-list", "embed", "--reset-optimizer-states"],
}
ERRORS: dict[str, tuple[list[str], str]] = {
    "a reducer of a loss that calls none": (
        [*SFT, "--custom-pg-loss-reducer-function-path", "rl_hooks.over_three_tokens"],
        "names no parameter pg_loss_reducer",
    ),
    "both lists of trained parameters": (
        ["--only-train-params-name-list", "mlp", "--freeze-params-name-list", "norm"],
        "both say what is trained",
    ),
    "trained parameters and adapters": (
        ["--freeze-params-name-list", "norm", *LORA],
        "--target-modules says which layers get one",
    ),
    "an old actor of samples of many versions": (
        ["--rollout-function-path", "fully_async", "--keep-old-actor"],
        "--keep-old-actor: the rollout 'fully_async'",
    ),
    "an interval of an engine that gets all weights": (
        ["--rollout-function-path", "fully_async", "--update-weights-interval", "2"],
        "--update-weights-interval: the rollout 'fully_async'",
    ),
    "an expression that is none": (["--freeze-params-name-list", "layers.["], "is no regular expression"),
    "a name that no parameter has": (
        ["--only-train-params-name-list", "self_attention.linear_qkv"],
        "linear_qkv is q_proj, k_proj and v_proj",
    ),
}


@pytest.mark.parametrize("what", REMARKS)
def test_what_may_not_be_meant_is_said(what: str, check: Callable[..., tuple[int, str]]) -> None:
    words, message = REMARKS[what]
    status, said = check(*words)
    assert status == 0, said
    assert message in said


@pytest.mark.parametrize("what", SILENT)
def test_what_is_meant_is_not_spoken_of(what: str, check: Callable[..., tuple[int, str]]) -> None:
    status, said = check(*SILENT[what])
    assert status == 0, said
    assert "in expectation" not in said
    assert "no effect" not in said
    assert "weighs nothing" not in said


@pytest.mark.parametrize("what", ERRORS)
def test_what_contradicts_itself_or_names_nothing_is_an_error(what: str, check: Callable[..., tuple[int, str]]) -> None:
    words, message = ERRORS[what]
    status, said = check(*words)
    assert status in (1, 2), said
    assert message in said


def test_checkpointing_that_the_model_has_not_is_an_error(
    check: Callable[..., tuple[int, str]], tiny_model: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = AutoConfig.for_model(
        "jetmoe",
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_key_value_heads=2,
        kv_channels=8,
        num_local_experts=2,
        max_position_embeddings=64,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for words, wrong in ([], False), (["--gradient-checkpointing"], True):
        status, said = check(*SFT, "--hf-checkpoint", str(tmp_path), *words)
        assert (status != 0) == wrong, said
        assert ("--gradient-checkpointing: JetMoeForCausalLM does not support it" in said) == wrong
