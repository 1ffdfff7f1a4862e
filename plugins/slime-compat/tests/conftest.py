"""Models whose answers the hooks of these tests can read, and rows to ask them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bigram_model import bigram_checkpoint

END = "<|im_end|>"


@pytest.fixture(scope="session")
def writer(assets: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls a tool or answers 7, where a turn begins."""
    turns = [
        ("\n", f"<code>3+4</code>{END}"),
        ("\n", f"Answer: \\boxed{{7}}{END}"),
        ("\n\n", f"Answer: \\boxed{{7}}{END}"),
    ]
    return bigram_checkpoint(tmp_path_factory.mktemp("writer"), assets("tokenizers") / "smollm2", turns)


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions whose answer is 7."""
    rows = tmp_path_factory.mktemp("rows") / "questions.jsonl"
    asked = ({"prompt": [{"role": "user", "content": f"How much is {i} + {7 - i}?"}], "label": "7"} for i in range(6))
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return rows


@pytest.fixture
def flags(writer: Path, questions: Path) -> list[str]:
    """The options of a small run of GRPO that the hooks of a test are added to."""
    return [
        *(
            "--hf-checkpoint",
            str(writer),
            "--prompt-data",
            str(questions),
            "--input-key",
            "prompt",
            "--label-key",
            "label",
        ),
        *(
            "--apply-chat-template",
            "--rollout-engine",
            "local",
            "--rollout-batch-size",
            "2",
            "--n-samples-per-prompt",
            "4",
        ),
        *("--num-rollout", "2", "--lr", "1e-4", "--rollout-max-response-len", "16", "--rollout-max-context-len", "256"),
        *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "1024"),
    ]
