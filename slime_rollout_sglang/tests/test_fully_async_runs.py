"""The fully asynchronous rollout with real weights: updates in flight on the embedded engine, and whole runs."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from slime_core.cli import main
from slime_core.contracts.rollout import Background
from slime_core.data import GlobalDataSource
from slime_core.rollout.components import choose_rollout_components
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample, check_rollout
from slime_rollout_sglang.fully_async import generate_rollout

ROLLOUTS = 5

# With a limit for prompt and response together, the groups of a rollout are finished far apart.
ROWS = [{"input": "the " * (300 - 60 * (n % 4))} for n in range(2 * ROLLOUTS)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name in ("fully-async", "slime-engine-local")]


@torch.no_grad()
def log_probs(models: list[Any], sample: Sample) -> list[float]:
    """By transformers, each token read by the weights whose version its successor carries, on a cache that stays."""
    cache = DynamicCache(config=models[0].config)
    start = len(sample.tokens) - sample.response_length
    readers = [sample.weight_versions[0]] * (start - 1) + list(sample.weight_versions)
    logits, done = [], 0
    while done < len(readers):
        version = readers[done]
        end = next((n for n in range(done, len(readers)) if readers[n] != version), len(readers))
        ids = torch.tensor([sample.tokens[done:end]])
        logits.append(models[int(version)](ids, past_key_values=cache, use_cache=True).logits[0])
        done = end
    every = torch.log_softmax(torch.cat(logits), -1)[start - 1 :]
    return every.gather(-1, torch.tensor(sample.tokens[start:])[:, None])[:, 0].tolist()


def test_weights_change_in_flight_and_every_token_is_what_its_version_gives(
    arguments, plugins, tiny_model: Path
) -> None:
    bound, models = 2, []
    for version in range(ROLLOUTS):
        models.append(AutoModelForCausalLM.from_pretrained(tiny_model))
        with torch.no_grad():
            for parameter in models[-1].parameters():
                parameter += 0.02 * version * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    args = arguments(
        ROWS,
        rollout_function_path="fully_async",
        hf_checkpoint=str(tiny_model),
        custom_rm_path="rollout_cases.length_reward",
        rollout_max_context_len=320,
        rollout_batch_size=2,
        max_staleness=bound,
        num_rollout=ROLLOUTS,
        local_max_running_requests=64,
        local_max_total_tokens=65536,
        local_decoding="auto",
    )
    engine = plugins.select("engine", "local")(args)
    handed_out, generate = 0, engine.generate

    async def counting(*given: Any, **more: Any) -> Any:
        nonlocal handed_out
        generation = await generate(*given, **more)
        handed_out += len(generation.tokens)
        return generation

    engine.generate = counting
    source, background, outputs = GlobalDataSource(args), Background(), []
    extras: dict[str, Any] = {"components": choose_rollout_components(args, plugins), "plugins": plugins}
    try:
        for rollout_id, model in enumerate(models):
            engine.update_weights([(name, p.detach()) for name, p in model.named_parameters()], rollout_id)
            outputs.append(generate_rollout(args, rollout_id, source, engine=engine, background=background, **extras))
    finally:
        background.close()
        engine.close()
    mixed = 0
    for rollout_id, output in enumerate(outputs):
        check_rollout(output.groups, need_reward=True)
        for sample in output.samples:
            assert sample.weight_versions == sorted(sample.weight_versions)
            assert rollout_id - bound <= sample.weight_versions[0] <= sample.weight_versions[-1] <= rollout_id
            assert sample.rollout_log_probs == pytest.approx(log_probs(models, sample), abs=2e-4)
            mixed += len(set(sample.weight_versions)) > 1
    assert mixed
    samples = [sample for output in outputs for sample in output.samples]
    assert sorted(s.index for s in samples) == list(range(4 * ROLLOUTS))
    assert handed_out == sum(s.response_length for s in samples)
    assert handed_out == sum(output.metrics["generated_tokens"] for output in outputs)


# ------------------------------------------------------------------------------------------------------------ whole runs


@pytest.fixture
def flags(tiny_model, chat_rows, tmp_path) -> list[str]:
    return [
        *("--hf-checkpoint", str(tiny_model), "--prompt-data", str(chat_rows), "--input-key", "messages"),
        *("--apply-chat-template", "--rollout-engine", "local", "--custom-rm-path", "rollout_cases.length_reward"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "2", "--rollout-max-response-len", "12"),
        *("--optimizer", "sgd", "--lr", "0.1", "--lr-decay-style", "constant", "--num-rollout", str(ROLLOUTS)),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "600"),
    ]


FULLY = ("--rollout-function-path", "fully_async")


def run(folder: Path, flags: list[str], *more: str, command: str = "train-async") -> list[dict[str, Any]]:
    dump = ("--save-debug-rollout-data", str(folder / "dump" / "{rollout_id}.jsonl"))
    assert main([command, *flags, *more, *dump, "--run-dir", str(folder), "--save-hf", str(folder / "hf")]) == 0
    return read_metrics(folder / "metrics.jsonl")


def dumped(folder: Path, rollout_id: int) -> list[dict[str, Any]]:
    lines = (folder / "dump" / f"{rollout_id}.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


def test_a_run_trains_on_every_prompt_once_within_the_bound_and_resumes(flags, chat_rows, tmp_path, capsys) -> None:
    more = [*FULLY, "--max-staleness", "2", "--partial-rollout", "--use-tis"]
    evaluation = ("--eval-prompt-data", "held", f"{chat_rows}@[0:2]", "--eval-interval", "2")
    save = ("--save", str(tmp_path / "save"), "--save-interval", "2")
    lines = run(tmp_path / "run", flags, *more, *evaluation, *save)
    assert "has no effect" not in capsys.readouterr().out
    trained = [line for line in lines if "train/loss" in line]
    assert len(trained) == ROLLOUTS
    assert [line["rollout_id"] for line in lines if "eval/held/reward" in line] == [-1, 1, 3]
    for rollout_id, line in enumerate(trained):
        versions = [v for sample in dumped(tmp_path / "run", rollout_id) for v in sample["weight_versions"]]
        assert rollout_id - 2 <= min(versions) <= max(versions) <= rollout_id
        assert line["rollout/staleness/max"] == rollout_id - min(versions)
        # Where all samples were skipped nothing was measured.
        assert line.get("train/train_rollout_logprob_abs_diff", 0.0) >= 0
    assert max(line["rollout/staleness/max"] for line in trained) > 0

    for newer in (tmp_path / "save").glob("iter_*"):
        if int(newer.name.removeprefix("iter_")) > 1:
            shutil.rmtree(newer)
    run(tmp_path / "rest", flags, *more, *evaluation, *save, "--load", str(tmp_path / "save"))
    prompts = [s["group_index"] for n in (0, 1) for s in dumped(tmp_path / "run", n)]
    prompts += [s["group_index"] for n in range(2, ROLLOUTS) for s in dumped(tmp_path / "rest", n)]
    assert sorted(prompts) == sorted(2 * list(range(4 * ROLLOUTS)))


def test_without_staleness_a_run_ends_with_the_weights_of_the_synchronous_one(flags, tmp_path) -> None:
    run(tmp_path / "async", flags, *FULLY, "--max-staleness", "0", "--num-rollout", "3")
    run(tmp_path / "sync", flags, "--num-rollout", "3", command="train")
    for rollout_id in range(3):
        mine, other = ([s["tokens"] for s in dumped(tmp_path / name, rollout_id)] for name in ("async", "sync"))
        assert mine == other
    theirs = load_file(tmp_path / "sync" / "hf" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "async" / "hf" / "model.safetensors").items():
        assert (tensor - theirs[name]).abs().max().item() <= 1e-6, name


def test_an_exception_in_the_loop_ends_the_run_and_its_threads(flags, tmp_path, capsys) -> None:
    hook = ("--custom-rollout-log-function-path", "rollout_cases.crash_after_one")
    assert main(["train-async", *flags, *FULLY, "--max-staleness", "3", *hook, "--run-dir", str(tmp_path / "run")])
    assert "the disk is full" in capsys.readouterr().err


def test_the_synchronous_command_refuses_it_and_names_the_other(flags, tmp_path, capsys) -> None:
    assert main(["train", *flags, *FULLY, "--run-dir", str(tmp_path / "run")]) == 2
    assert "use `slime train-async`" in capsys.readouterr().err


def test_options_that_only_the_synchronous_rollout_reads_are_reported(flags, tmp_path, capsys) -> None:
    assert main(["check", *flags, *FULLY, "--over-sampling-batch-size", "8", "--rollout-top-p", "0.9"]) == 0
    output = capsys.readouterr().out
    assert "--over-sampling-batch-size has no effect" in output
    assert "--rollout-top-p has no effect" not in output
