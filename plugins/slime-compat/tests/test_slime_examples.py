"""slime's own example hooks, unchanged: `SLIME_EXAMPLES=/path/to/slime/examples pytest plugins/slime-compat`.

The files are slime's and not in this repository. Each runs a few steps of GRPO on a model whose answers it can read. Tools run,
and the search service is `search_server.py`, at the address that the example names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bigram_model import bigram_checkpoint

from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample, check_rollout

EXAMPLES = os.environ.get("SLIME_EXAMPLES", "")
END = "<|im_end|>"
CALL = f"<code>print(7)</code>{END}"
BOX = f"Answer: \\boxed{{7}}{END}"
FORMAT = "Search with <search> query </search>; answer as in <answer> Beijing </answer>. "

pytestmark = [
    pytest.mark.skipif(not EXAMPLES, reason="SLIME_EXAMPLES names no folder with slime's examples"),
    pytest.mark.slow,
]


@dataclass(frozen=True)
class Example:
    """How an example of slime is run.

    Attributes:
        path: the folder on PYTHONPATH, seen from that of the examples.
        turns: what the model writes; see `bigram_checkpoint`.
        flags: the hooks and what else its launch script says.
        needs: packages that it imports besides.
    """

    path: str
    turns: list[tuple[str, str]]
    flags: list[str]
    question: str = ""
    label: Any = "7"
    needs: list[str] = field(default_factory=list)


RUNS = {
    "retool": Example(
        "retool",
        [("assistant", CALL), ("\n", BOX), ("\n\n", BOX)],
        [
            *("--custom-generate-function-path", "generate_with_retool.generate", "--reward-key", "score"),
            *("--custom-rm-path", "generate_with_retool.reward_func", "--rollout-max-context-len", "640"),
        ],
        needs=["psutil", "jinja2"],
    ),
    "search-r1": Example(
        "search-r1",
        [
            ("\n", "<search>rain in Spain</search>"),
            ("\n", "<answer>plain</answer>"),
            ("\n\n", "<answer>plain</answer>"),
        ],
        [
            *("--custom-generate-function-path", "generate_with_search.generate"),
            *("--custom-rm-path", "generate_with_search.reward_func"),
        ],
        FORMAT,
        {"ground_truth": {"target": ["plain"]}},
        needs=["aiohttp"],
    ),
    "multi_agent": Example(
        "..",
        [("\n", f"I think</think>\\boxed{{7}}{END}"), ("\n", f"I say</think>\\boxed{{8}}{END}")],
        [
            "--custom-generate-function-path",
            "examples.multi_agent.rollout_with_multi_agents.generate_with_multi_agents",
            *("--rm-type", "deepscaler", "--rollout-max-context-len", "1024"),
        ],
    ),
    "train_infer_mismatch_helper": Example(
        "..",
        [("\n", BOX), ("\n", f"Answer: \\boxed{{8}}{END}")],
        [
            *("--custom-config-path", str(Path(EXAMPLES, "train_infer_mismatch_helper", "mis.yaml").resolve())),
            "--custom-tis-function-path",
            "examples.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp",
            *("--rm-type", "boxed_exact_match"),
        ],
    ),
}


@contextmanager
def search_server(log: Path) -> Iterator[None]:
    """The service of `search_server.py` at the port that the example names."""
    command = [sys.executable, str(Path(__file__).parent / "search_server.py"), "8000"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready"), f"port 8000 is taken? {log.read_text()}"
            yield
        finally:
            process.terminate()
            out, _ = process.communicate()
            log.write_text(out)


@pytest.mark.parametrize("name", RUNS)
def test_the_hooks_of_an_example_run_unchanged(name: str, assets: Callable[[str], Path], tmp_path: Path) -> None:
    example = RUNS[name]
    for package in example.needs:
        pytest.importorskip(package)
    model = bigram_checkpoint(tmp_path, assets("tokenizers") / "smollm2", example.turns)
    rows = tmp_path / "rows.jsonl"
    asked = [[{"role": "user", "content": f"{example.question}How much is {i} + {7 - i}?"}] for i in range(6)]
    rows.write_text("".join(json.dumps({"prompt": a, "label": example.label}) + "\n" for a in asked), encoding="utf-8")
    words = [
        *("--hf-checkpoint", str(model), "--prompt-data", str(rows), "--input-key", "prompt", "--label-key", "label"),
        *("--apply-chat-template", "--rollout-engine", "local", "--rollout-batch-size", "2", "--num-rollout", "3"),
        *("--n-samples-per-prompt", "4", "--rollout-max-response-len", "24", "--lr", "1e-4"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "2048", "--run-dir", str(tmp_path / "run")),
        *("--save-debug-rollout-data", str(tmp_path / "dump_{rollout_id}.jsonl"), *example.flags),
    ]
    path = os.pathsep.join([str(Path(EXAMPLES, example.path).resolve()), *filter(None, sys.path)])
    searches = tmp_path / "searches.txt"
    searches.touch()
    with search_server(searches) if name == "search-r1" else nullcontext():
        done = subprocess.run(
            [sys.executable, "-m", "slime_core", "train", *words],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stderr, done.stderr
    samples = [
        Sample.from_dict({key: value for key, value in json.loads(line).items() if key != "group"})
        for file in sorted(tmp_path.glob("dump_*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
        if "tokens" in json.loads(line)
    ]
    check_rollout([samples], need_reward=True)
    trained = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert len(trained) == 3
    apart = "train/train_rollout_logprob_abs_diff"  # is not there where the rewards of every group are equal
    measured = [line[apart] for line in trained if apart in line]
    assert measured
    assert max(measured) < 1e-4
    assert any(line["train/grad_norm"] > 0 for line in trained)
    assert {int(version) for sample in samples for version in sample.weight_versions} == {0, 1, 2}
    ONLY[name](samples, searches.read_text(), trained)


def retool_called_its_tool(samples: list[Sample], searches: str, trained: list[dict[str, Any]]) -> None:
    calls = [sample.further_attributes["tool_call_count"] for sample in samples]
    assert len(samples) == 24
    assert any(calls)
    assert all(
        sample.response.count("<interpreter>\nOutput:\n7\n") >= 1
        for sample in samples
        if "print(7)" in sample.response and sample.further_attributes["tool_call_count"]
    )
    assert len({sample.reward["score"] for sample in samples}) > 1  # type: ignore[index]  # a dict


def search_was_asked(samples: list[Sample], searches: str, trained: list[dict[str, Any]]) -> None:
    assert len(samples) == 24
    assert "rain in Spain" in searches.splitlines()
    assert any('Doc 1(Title: "Rain") The rain in Spain' in sample.response for sample in samples)
    assert len({sample.reward for sample in samples}) > 1  # type: ignore[type-var]  # numbers


def agents_made_trajectories(samples: list[Sample], searches: str, trained: list[dict[str, Any]]) -> None:
    trajectories = {sample.rollout_id for sample in samples}
    assert len(trajectories) == 24
    assert len(samples) > 5 * 24  # five solvers each, and rewriters where one of them has thought
    assert len({sample.reward for sample in samples}) > 1  # type: ignore[type-var]  # numbers


def ratios_were_measured(samples: list[Sample], searches: str, trained: list[dict[str, Any]]) -> None:
    assert len({sample.reward for sample in samples}) > 1  # type: ignore[type-var]  # numbers
    for name in ("mis_tis_weight_before_bound", "mis_is_ratio_mean_final", "mis_ppl_ratio"):
        assert [line[f"train/{name}"] for line in trained] == pytest.approx([1.0] * 3, abs=1e-4)


ONLY = {
    "retool": retool_called_its_tool,
    "search-r1": search_was_asked,
    "multi_agent": agents_made_trajectories,
    "train_infer_mismatch_helper": ratios_were_measured,
}
