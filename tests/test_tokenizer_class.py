"""The tokenizer of a checkpoint is the one that AutoTokenizer loads, also where that is not asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from slime_core.data import tokenizer as subject
from slime_core.errors import ArgumentError
from slime_core.testing import chat_tokenizer

TEXT = "Ein Maß, 12 345 <|im_start|>user\n你好  don't<|im_end|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer().save_pretrained(folder)
    return folder


def declared(folder: Path, kind: str, model_type: str, **further: Any) -> None:
    """Let a checkpoint say of which class its tokenizer, and of which type its model is."""
    file = folder / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "tokenizer_class": kind}
    settings.pop("auto_map", None)
    file.write_text(json.dumps({**settings, **further}))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def what_it_does(tokenizer: Any) -> tuple[Any, ...]:
    try:
        ids = tokenizer(TEXT).input_ids
    except Exception as error:  # Gemma's class wants tokens that this vocabulary has not
        ids = str(error)
    return (
        type(tokenizer),
        tokenizer.init_kwargs,
        tokenizer.backend_tokenizer.to_str(),
        ids,
        tokenizer.apply_chat_template([{"role": "user", "content": TEXT}], tokenize=False),
    )


@pytest.mark.parametrize(
    ("kind", "model_type"), [(kind, of) for kind, (_, types) in subject._KINDS.items() for of in types]
)
def test_a_known_class_is_the_one_that_autotokenizer_takes(folder: Path, kind: str, model_type: str) -> None:
    declared(folder, kind, model_type)
    assert subject._known_class(folder) is not None
    subject.load_tokenizer.cache_clear()
    found, expected = subject.load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert what_it_does(found) == what_it_does(expected)


@pytest.mark.parametrize(
    ("kind", "model_type", "further"),
    [
        ("TokenizersBackend", "qwen2", {}),  # AutoTokenizer does not believe it
        ("LlamaTokenizer", "llama", {}),  # it looks into tokenizer.json first
        ("TokenizersBackend", "llama", {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
        ("TokenizersBackend", "unheard of", {}),
        (None, "llama", {}),
    ],
)
def test_whatever_else_a_checkpoint_says_is_for_autotokenizer(
    folder: Path, kind: str, model_type: str, further: dict[str, Any]
) -> None:
    declared(folder, kind, model_type, **further)
    assert subject._known_class(folder) is None


def test_a_broken_file_of_a_known_class_is_told(folder: Path, tmp_path: Path) -> None:
    declared(folder, "TokenizersBackend", "llama")
    for file in folder.glob("*.json*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ArgumentError, match="holds no tokenizer that can be loaded"):
        subject.load_tokenizer(str(tmp_path))


def test_a_known_class_needs_no_torch(folder: Path) -> None:
    declared(folder, "TokenizersBackend", "llama")
    code = "import sys; from slime_core.data.tokenizer import load_tokenizer as load; load(sys.argv[1]); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code, str(folder)], text=True) == "False\n"
