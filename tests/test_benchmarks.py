"""The benchmarks' own arithmetic, and that the slime side of them runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import megatron, quiet
from benchmarks.gemm import Shapes, step_flops
from benchmarks.sft import Result, Work, report, run_slime

torch = pytest.importorskip("torch")

SHAPES = Shapes(layers=2, hidden=32, intermediate=48, query=32, key_value=16, vocabulary=64)
LENGTH = 24


def test_the_operations_of_a_step_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    ids = torch.arange(LENGTH)[None]
    with FlopCounterMode(display=False) as counter:
        model(ids).logits.sum().backward()
    # torch counts the whole attention matrix, we count what lies below its diagonal; the rotary angles are negligible.
    above_diagonal = step_flops(SHAPES, [LENGTH], LENGTH) - step_flops(SHAPES, [1] * LENGTH, LENGTH)
    expected = step_flops(SHAPES, [LENGTH], LENGTH) + above_diagonal
    assert counter.get_total_flops() == pytest.approx(expected, rel=5e-3)


def work(model: Path, data: Path, rows: list[dict[str, list[int]]]) -> Work:
    return Work(model, data, rows, batch_size=2)


def test_ratios_are_taken_run_by_run_and_shown_with_their_spread(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, **heads}))
    rows = [{"input_ids": [1] * 10, "labels": [-100] * 4 + [1] * 6}] * 4
    results = {
        "slime": [Result(speed, 1.0, [2.0, 1.5], data_wait_share=0.01) for speed in (120.0, 90.0, 100.0)],
        "TRL": [Result(speed, 3.0, [2.0, 1.5 + 2e-6]) for speed in (40.0, 45.0, 40.0)],
    }
    text = report(work(tmp_path, tmp_path, rows), results, peak=1.0, threads=2)
    assert "| slime | 100 (90 to 120) | — | 1.00 GiB (1.00 to 1.00) | — |" in text
    assert "| TRL | 40 (40 to 45) | 2.50× (2.00 to 3.00) | 3.00 GiB (3.00 to 3.00) | 2.0e-06 |" in text
    assert "| 1 | 1.500000 | 1.500002 |" in text


@pytest.mark.slow
def test_the_slime_side_trains_on_exactly_the_prepared_rows(assets: Callable[[str], Path], tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    data = assets("data") / "alpaca_train.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    conversations = [json.loads(line)["messages"] for line in data.read_text().splitlines()[:4]]
    rendered = [tokenizer.apply_chat_template(messages, return_dict=False) for messages in conversations]
    prepared = work(tiny_model, data, [{"input_ids": ids[:1024], "labels": ids[:1024]} for ids in rendered])
    result = run_slime(prepared, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert len(result.losses) == 2
    assert result.tokens_per_second > 0
    assert 0 <= (result.data_wait_share or 0) < 1
    missing = work(tiny_model, data, [{"input_ids": [1], "labels": [1]}] * 4)
    with pytest.raises(SystemExit, match="slime trained on"):
        run_slime(missing, {**os.environ, "OMP_NUM_THREADS": "1"})


def test_megatrons_share_of_torchs_speed_is_taken_run_by_run(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "num_attention_heads": 4, "num_key_value_heads": 2}))
    rows = [{"input_ids": [1] * 10, "labels": [-100] * 4 + [1] * 6}] * 4
    work = megatron.Work(str(tmp_path), rows, batch_size=2, micro_batch=20)
    assert (work.steps, work.tokens, work.flops) == (2, 20, step_flops(SHAPES, [10, 10], 12))
    runs = {
        "torch": [megatron.Run(speed, speed, 1.0, [2.0, 1.5]) for speed in (100.0, 200.0)],
        "megatron": [megatron.Run(speed, 180.0, 1.5, [2.0, 1.5 + 2e-6]) for speed in (90.0, 100.0)],
    }
    (last,) = [line for line in megatron.report(work, runs, "CPU", None).splitlines() if "| megatron |" in line]
    assert "| 0.70× (0.50 to 0.90) | 1.35× (0.90 to 1.80) | 1.50 GiB (1.50 to 1.50) | — | 2.0e-06 |" in last
    on_gpu = megatron.report(replace(work, bf16=True), runs, "GPU", peak=1e-3)
    per_token = work.flops / work.tokens
    assert f"| {100 * 150 * per_token / 1e9:.1f} % (" in on_gpu
    assert "1.35×" not in on_gpu


@pytest.mark.slow
def test_both_backends_train_on_the_same_rows(tiny_model: Path) -> None:
    pytest.importorskip("megatron.core")
    rows = [{"input_ids": [5, 6, 7, 8, 9 + n], "labels": [-100, -100, 7, 8, 9 + n]} for n in range(4)]
    work = megatron.Work(str(tiny_model), rows, batch_size=2, micro_batch=64)
    runs = [megatron.measure(backend, work, threads=1) for backend in megatron.BACKENDS]
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-5)
    assert all(run.tokens_per_second > 0 and run.peak_gib > 0 for run in runs)


def test_a_busy_machine_is_refused_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "share_now", lambda: 0.4)
    monkeypatch.setattr(quiet, "WAIT_S", -1.0)
    with pytest.raises(SystemExit, match=r"Others use 40 % .* --under-load"):
        quiet.require_quiet(under_load=False)
    quiet.require_quiet(under_load=True)
    assert quiet.sentence([0.0, 0.4]).startswith("**Taken under load.** Others used 0 to 40 %")
    assert "load" not in quiet.sentence([0.0, 0.05])


def test_others_are_all_but_the_measured_process(monkeypatch: pytest.MonkeyPatch) -> None:
    used, now = iter([100.0, 107.0]), iter([0.0, 10.0])
    monkeypatch.setattr(quiet, "_used", lambda: next(used))
    monkeypatch.setattr(quiet.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(quiet.os, "cpu_count", lambda: 2)
    assert quiet.Watch().others(own=4.0) == pytest.approx(0.15)


def test_what_measured_processes_start_is_theirs_whoever_it_belongs_to() -> None:
    with quiet.Family() as family:
        words = ["sh", "-c", "setsid timeout 20 sh -c 'while :; do :; done' > /dev/null & echo $!"]
        done = subprocess.run(words, env={**os.environ, **family.mark}, stdout=subprocess.PIPE, check=True)
        last = time.monotonic() + 20
        try:
            while sum(family._seconds.values()) < 0.1:
                assert time.monotonic() < last, "it was not seen"
                time.sleep(0.05)
        finally:
            os.kill(int(done.stdout), signal.SIGTERM)
    assert 0 <= family.others() < 1
