"""Reports made of chosen numbers, as large as wanted, for the tests of the page. The same arguments give the same report."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from slime_report.report import (
    Alarm,
    Argument,
    Chart,
    Difference,
    Groups,
    Loss,
    Phase,
    Plugin,
    Prompt,
    Provenance,
    Report,
    Resumed,
    Run,
    SampleRow,
    Samples,
    Score,
    Series,
    Why,
)

WORDS = [
    "the",
    "answer",
    "is",
    "a",
    "bird",
    "because",
    "it",
    "has",
    "wings",
    "add",
    "four",
    "<think>",
    "</think>",
    "42",
    ".",
]
REASONS = ("best", "worst", "largest_difference", "same_prompt", "random")
FAULTS = {  # what a page must show as it is, and never obey
    "closing script": "</script><script>window.attacked = 1</script>",
    "comment": "<!-- <script> window.attacked = 2",
    "markup": "<img src=x onerror='window.attacked = 3'>&amp;\"'{{ 7 * 7 }}",
    "line separators": "a\u2028b\u2029c\x85d",
    "bidi": "user\u202egpj.exe\u202c \u2066x\u2069",
    "control": "bell\u0007 null\u0000 escape\u001b[31m delete\x7f",
    "invisible": "zero\u200bwidth\u2060join\ufeffer\u00ad filler\u3164 blank\u2800",
    "surrogate": "half \ud800 of a pair",
    "CJK": "思考：答案是四十二。",
    "emoji": "🦆👍🏽",
    "right to left": "مرحبا بالعالم",
    "names of objects": "__proto__ constructor toString",
}


def report(runs: int = 1, **options: Any) -> Report:
    """Return a report of healthy runs; `options` go to `run`."""
    return report_of(*(run(name=f"grpo-{'abcdefgh'[number]}", seed=number, **options) for number in range(runs)))


def report_of(*runs: Run) -> Report:
    """Return a report of these runs, which differ in two options where they are several."""
    differing = [
        Difference("--lr", [f"{1e-6 * (1 + number):.0e}" for number in range(len(runs))]),
        Difference("--advantage-estimator", ["grpo" if number % 2 == 0 else "dapo" for number in range(len(runs))]),
    ]
    return Report("2026-11-26T18:30:00+00:00", "0.1.0", list(runs), differing if len(runs) > 1 else [])


def run(
    name: str = "grpo-a",
    seed: int = 0,
    steps: int = 120,
    points: int = 2000,
    metrics: int = 10,
    samples: int = 60,
    tokens: int = 40,
    values: bool = True,
    **changes: Any,
) -> Run:
    """Return one run.

    Args:
        steps: how many steps it made; `points` of them at most are kept.
        metrics: how many metrics it has, at least 10.
        samples: how many samples are kept, each of `tokens` to twice as many tokens.
        values: whether the samples have advantages, log-probs, differences and entropies.
        changes: fields of the run that are replaced.
    """
    draw = random.Random(seed)
    count = min(points, steps)
    x = sorted({1 + round(number * (steps - 1) / max(1, count - 1)) for number in range(count)})
    up = 0.55 + 0.08 * seed
    series = {
        "rollout/reward": _curve(draw, x, lambda t: 0.15 + up * (1 - math.exp(-3 * t)), 0.04, 0.25),
        "eval/gsm8k": _curve(draw, x[:: max(1, len(x) // 12)], lambda t: 0.2 + up * t * 0.8, 0.02, 0.04),
        "train/loss": _curve(draw, x, lambda t: 2.2 * math.exp(-2 * t) + 0.3, 0.05, None),
        "train/grad_norm": _curve(draw, x, lambda t: (40 * math.exp(-6 * t) + 0.4) * draw.uniform(0.8, 1.2), 0, None),
        "train/entropy": _curve(draw, x, lambda t: 1.4 - 0.6 * t, 0.03, None),
        "train/log_prob_difference": _curve(draw, x, lambda t: 0.002 + 0.001 * t, 0.0002, 0.0005),
        "rollout/response_length": _curve(draw, x, lambda t: 180 + 90 * t, 8, 70),
        "time/generate": _curve(draw, x, lambda t: 3 + 2 * t, 0.2, None),
        "time/train": _curve(draw, x, lambda t: 1.6, 0.1, None),
        "time/weights": _curve(draw, x, lambda t: 0.4, 0.05, None),
    }
    phases = ["time/generate", "time/train", "time/weights"]
    charts = [
        Chart("reward", "Reward", "", "line", ["rollout/reward"], "Mean of a step's samples; the band is p10 to p90."),
        Chart("eval", "Evaluation: gsm8k", "", "line", ["eval/gsm8k"], "Held-out score with its 95 % interval."),
        Chart("loss", "Loss", "nats", "line", ["train/loss"], "Mean over the trained tokens."),
        Chart("grad-norm", "Gradient norm", "", "line", ["train/grad_norm"], "Over all ranks, before clipping."),
        Chart("entropy", "Entropy", "nats", "line", ["train/entropy"], "Of the distribution of the next token."),
        Chart("difference", "Log-prob difference", "", "line", ["train/log_prob_difference"], "Trainer and engine."),
        Chart("length", "Response length", "tokens", "line", ["rollout/response_length"], "Mean and p10 to p90."),
        Chart("phases", "Time of a step", "s", "stacked", phases, "What a step spends its time on."),
    ]
    for number in range(len(series), metrics):
        name_of = f"train/metric_{number}"
        series[name_of] = _curve(draw, x, lambda t, number=number: number + t, 0.2, 0.4)
        charts.append(Chart(f"metric-{number}", f"Metric {number}", "", "line", [name_of], "One of many."))
    if len(x) > 6:
        series["train/loss"].y[len(x) // 3] = None
    made = Run(
        name=name,
        path=f"/runs/{name}",
        command="slime train recipe.yaml --lr 1e-6",
        state="finished",
        verdict=f"Finished after {steps:,} steps: gsm8k rose from 0.20 to 0.65 (n = 200, 95 % interval 0.58 to 0.71).",
        started_at="2026-11-26T12:00:00+00:00",
        seconds=3725.0,
        done=steps,
        total=steps,
        resumed=[Resumed(steps // 2, "2026-11-26T15:00:00+00:00")],
        scores=[Score("eval/gsm8k", 0.2, 0.66, max(1, steps - 12), 0.65, 200, 0.58, 0.71, True)],
        alarms=[],
        series=series,
        charts=charts,
        time=[
            Phase("generate", 2100.0, 0.564),
            Phase("train", 1200.0, 0.322),
            Phase("weights", 300.0, 0.081),
            Phase("other", 125.0, 0.033),
        ],
        samples=Samples(samples, samples * 16, _samples(draw, samples, steps, tokens, values)),
        groups=Groups(
            [14, 22, 41, 37, 30, 16],
            [Prompt(f"prompt-{number}", 8 - number % 3, f"Question {number}:") for number in range(5)],
            [Prompt(f"prompt-{number}", 6, "") for number in range(5, 8)],
            160,
            0.5,
        ),
        losses=[
            Loss("truncated", 37, "Answers that were cut off at the longest length; they are trained as they stand."),
            Loss("zero spread", 12, "Groups whose rewards are all equal; nothing is learned from them."),
        ],
        provenance=Provenance(
            arguments=[
                Argument("--lr", "1e-06", "command line"),
                Argument("--rollout-batch-size", "16", "recipe.yaml"),
                Argument("--prompt-data", "data/gsm8k.jsonl", "recipe.yaml"),
                *(Argument(f"--option-{number}", str(number), "default") for number in range(150)),
            ],
            plugins=[Plugin("torch", "0.1.0", "slime-torch"), Plugin("sglang", "0.1.0", "slime-engine-sglang")],
            versions={"python": "3.11.2", "torch": "2.9.0"},
            hardware={"cpu": "2 cores", "gpu": "none"},
            files=["metrics.jsonl", "config.yaml"],
        ),
        missing=[],
    )
    return replace(made, **changes)


def alarms(steps: int = 120) -> list[Alarm]:
    """Return two alarms, one with links to a chart, a step and a sample."""
    return [
        Alarm(
            "truncated",
            "31 % of the answers were cut off at --rollout-max-response-len 1024 (alarm above 25 %): raise it.",
            0.25,
            0.31,
            steps // 2,
            "length",
            "s7",
        ),
        Alarm(
            "equal_groups",
            "62 % of the groups had equal rewards, so nothing was learned from them (alarm above 50 %).",
            0.5,
            0.62,
            None,
        ),
    ]


def sft(steps: int = 60) -> Report:
    """Return a report of supervised fine-tuning: no rewards, no groups, no samples."""
    made = run(name="sft", steps=steps, samples=0)
    return report_of(
        replace(
            made,
            scores=[],
            charts=[chart for chart in made.charts if chart.id in {"loss", "grad-norm"}],
            groups=Groups([0] * 6, [], [], 0, None),
            losses=[],
            resumed=[],
            verdict="Finished after 60 steps: held-out loss fell from 2.31 to 0.58.",
            missing=["No samples were recorded: the run had --no-report-samples."],
        )
    )


def faulty(text: str) -> Report:
    """Return a report in which every text that a user, a model or a plugin can choose is `text`."""
    made = run(samples=3, steps=8)
    row = made.samples.rows[0]
    row = replace(
        row,
        id=text,
        prompt=text,
        source=text,
        dataset=text,
        status=text,
        label=text,
        pieces=[text, text, text, *row.pieces[3:]],
    )
    made = replace(
        made,
        **dict.fromkeys(("name", "path", "command", "verdict", "started_at"), text),
        state=cast(Any, text),
        missing=[text],
        losses=[Loss(text, 1, text)],
        alarms=[replace(alarms()[0], id=text, text=text, sample=text, chart=text)],
        series=made.series | {text: made.series["rollout/reward"]},
        charts=[Chart(text, text, text, "line", [text], text), *made.charts],
        scores=[replace(made.scores[0], metric=text)],
        time=[Phase(text, 3.0, 1.0)],
        resumed=[Resumed(4, text)],
        groups=replace(made.groups, never=[Prompt(text, 2, text)]),
        provenance=Provenance(
            [Argument(text, text, text)], [Plugin(text, text, text)], {text: text}, {text: text}, [text]
        ),
        samples=Samples(3, 3, [row, *made.samples.rows[1:]]),
    )
    return Report(text, text, [made, run("other", steps=8, samples=0)], [Difference(text, [text, text])])


def _curve(
    draw: random.Random, x: list[int], mean: Callable[[float], float], noise: float, spread: float | None
) -> Series:
    y: list[float | None] = [mean(step / x[-1]) + draw.gauss(0, noise) for step in x]
    around = [0.0 if spread is None else spread * draw.uniform(0.7, 1) for _ in x]
    return Series(
        list(x),
        y,
        None if spread is None else [value and value - far for value, far in zip(y, around, strict=True)],
        None if spread is None else [value and value + far for value, far in zip(y, around, strict=True)],
        len(x),
    )


def _samples(draw: random.Random, count: int, steps: int, tokens: int, values: bool) -> list[SampleRow]:
    """After the first 400 their tokens repeat, too far from each other for any compression to notice."""
    made = [_sample(draw, number, steps, tokens, values) for number in range(min(count, 400))]
    return made + [
        replace(
            made[number % 400],
            id=f"s{number}",
            step=1 + (number * 7) % steps,
            reward=round(draw.random(), 3),
            index=number,
        )
        for number in range(400, count)
    ]


def _sample(draw: random.Random, number: int, steps: int, tokens: int, values: bool) -> SampleRow:
    prompt_tokens = max(1, tokens // 4)
    pieces = [
        f" {draw.choice(WORDS)}" if draw.random() < 0.95 else "\n" for _ in range(draw.randint(tokens, 2 * tokens))
    ]
    pieces[0] = f"Question {number % 10}:"
    answer = len(pieces) - prompt_tokens
    advantage = draw.uniform(-2, 2)
    return SampleRow(
        id=f"s{number}",
        step=1 + (number * 7) % steps,
        prompt=f"prompt-{number % 10}",
        source=f"train.jsonl:{number % 10 + 1}",
        dataset=None,
        group=number // 4,
        index=number,
        reward=round(draw.random(), 3),
        status="truncated" if draw.random() < 0.1 else "completed",
        length=answer,
        why=[cast(Why, REASONS[number % len(REASONS)])],
        label=str(draw.randrange(100)),
        pieces=pieces,
        mask=[1] * answer,
        prompt_tokens=prompt_tokens,
        advantage=[advantage] * answer if values else None,
        log_prob=[-draw.expovariate(1.5) for _ in range(answer)] if values else None,
        difference=[draw.gauss(0, 0.05) for _ in range(answer)] if values else None,
        entropy=[draw.expovariate(2) for _ in range(answer)] if values else None,
    )
