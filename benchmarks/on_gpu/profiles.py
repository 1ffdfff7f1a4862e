"""Traces of a training step and of decoding: kernels by time, time without one, and what waits for the device, per micro-batch and token."""

from __future__ import annotations

import torch

from benchmarks.on_gpu.check_engine import generate, in_dtype
from benchmarks.on_gpu.job import Findings
from benchmarks.on_gpu.kernels import recorded, waits_counted
from benchmarks.on_gpu.machine import Machine
from benchmarks.on_gpu.measure_training import MICRO_BATCHES, tokens_of, words_that_fit
from benchmarks.on_gpu.models import engine, random_batch, random_model, random_prompts, trainer


def training(machine: Machine, found: Findings, name: str) -> None:
    """One optimizer step of two micro-batches."""
    words, _ = words_that_fit(machine, name, [])
    tokens = tokens_of(machine)
    batch = random_batch(machine, name, [tokens // 4] * 4 * MICRO_BATCHES, tokens)
    backend = trainer(machine, name, words)
    for _ in range(2):
        backend.train_step(batch)
    with waits_counted(machine) as waits:
        backend.train_step(batch)
    found.note(waits_per_micro_batch=sum(waits.values()) / MICRO_BATCHES, waits=dict(waits.most_common(30)))
    light = recorded(machine, lambda: backend.train_step(batch))
    found.note(idle_share=light.idle_share(), seconds=light.seconds, gaps_ms=light.longest_gaps())
    found.note(kernels=light.table(), kernel_calls=len(light.spans))
    recorded(machine, lambda: backend.train_step(batch), machine.out / "trace-training.json.gz")


def decoding(machine: Machine, found: Findings, name: str, batch: int) -> None:
    """Some tokens of requests that are decoded together."""
    prompt, new = (256, 12) if machine.on_gpu else (16, 4)
    serves = engine(machine, name, running=batch, tokens=batch * (prompt + 128))
    try:
        serves.update_weights(in_dtype(random_model(machine, name, torch.bfloat16), torch.bfloat16), 1)
        machine.clean()
        prompts = random_prompts(machine, name, batch, prompt)
        generate(serves, prompts, new)
        counts = []
        for tokens in (2, 2 + new):
            with waits_counted(machine) as waits:
                generate(serves, prompts, tokens)
            counts.append(sum(waits.values()))
        found.note(waits_per_token=(counts[1] - counts[0]) / new, waits=dict(waits.most_common(30)))
        runs = [recorded(machine, lambda n=n: generate(serves, prompts, n)) for n in (2, 2 + new)]
        seconds, busy = runs[1].seconds - runs[0].seconds, runs[1].busy() - runs[0].busy()
        found.note(
            kernels_per_token=(len(runs[1].spans) - len(runs[0].spans)) / new,
            ms_per_token=1e3 * seconds / new,
            idle_share=max(0.0, 1 - busy / seconds) if seconds > 0 else None,
            kernels=runs[1].table(),
        )
        recorded(machine, lambda: generate(serves, prompts, 4), machine.out / "trace-decoding.json.gz")
    finally:
        serves.close()
