"""Arguments, a tokenizer of one token per word, and a clean slate for the hooks of `rollout_cases`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rollout_cases

from slime_core.arguments import RunArguments
from slime_core.arguments.namespace import Namespace
from slime_core.plugins import Plugins

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if tools %}{{ tools | length }} {% endif %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}{% if quiet %}w39 {% endif %}"
)


@pytest.fixture(scope="session")
def word_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tokens 0 to 3 are special, token n from 4 on is the word "wn". Adds a special token in front where it is allowed to."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(4, 60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", chat_template=TEMPLATE
    )
    folder = tmp_path_factory.mktemp("words")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(autouse=True)
def _clean_hooks() -> None:
    rollout_cases.reset()


@pytest.fixture(scope="session")
def argument_model(plugins: Plugins) -> type[RunArguments]:
    """The arguments of a run with the options of all installed plugins."""
    return Namespace(plugins).model


@pytest.fixture
def arguments(tmp_path: Path, word_checkpoint: str, argument_model: type[RunArguments]) -> Callable[..., RunArguments]:
    """`arguments(rows, **changes)`: the arguments of a small run over a file with these rows, or with so many numbered ones.
    Options that are not changed have their defaults."""

    def make(rows: list[dict[str, Any]] | int = 40, **changes: Any) -> RunArguments:
        if isinstance(rows, int):
            rows = [{"input": f"w4 w5 w{6 + n % 50}", "label": f"w{n}"} for n in range(rows)]
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        small = {
            "prompt_data": [str(path)],
            "hf_checkpoint": word_checkpoint,
            "rollout_batch_size": 3,
            "n_samples_per_prompt": 2,
            "custom_rm_path": "rollout_cases.by_group",
            "failure_policy": ["reward:retries=0"],
        }
        return argument_model(**{**small, **changes})

    return make
