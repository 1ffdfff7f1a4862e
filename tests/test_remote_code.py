"""Python code in a model folder is executed with --trust-remote-code and not otherwise, and the refusal names that option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from slime_core.cli import main
from slime_core.data.tokenizer import load_tokenizer
from slime_core.errors import ArgumentError
from slime_core.remote_code import from_config, from_pretrained, is_trusted, trust_remote_code

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast
Path({mark!r}).touch()
class Config(PretrainedConfig):
    model_type = "hostile"
class Tokenizer(PreTrainedTokenizerFast): ...
class Model: ...
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def folder(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model folder whose configuration, tokenizer and model are its own code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    made = tmp_path / "model"
    made.mkdir()
    (made / "own.py").write_text(CODE.format(mark=str(mark)))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    (made / "config.json").write_text(json.dumps({"model_type": "hostile", "auto_map": own}))
    (made / "tokenizer_config.json").write_text(json.dumps({"auto_map": own, "tokenizer_class": "Own"}))
    yield made
    trust_remote_code(False)


@pytest.mark.parametrize("kind", [AutoConfig, AutoModelForCausalLM, AutoTokenizer])
def test_code_of_a_folder_is_not_executed(kind: type, folder: Path, mark: Path) -> None:
    with pytest.raises(ArgumentError, match=r"brings Python code of its own .*, add --trust-remote-code\."):
        from_pretrained(kind, folder)
    assert not mark.exists()


def test_a_configuration_leads_to_no_code_of_a_model(folder: Path, mark: Path) -> None:
    trust_remote_code(True)
    config = from_pretrained(AutoConfig, folder)
    assert mark.exists()
    mark.unlink()
    trust_remote_code(False)
    with pytest.raises(ArgumentError, match=r"add --trust-remote-code\."):
        from_config(AutoModelForCausalLM, config)
    assert not mark.exists()


def test_the_tokenizer_of_a_run_names_the_option(folder: Path, mark: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--hf-checkpoint .*model brings Python code .* add --trust-remote-code\."):
        load_tokenizer(str(folder))
    assert not mark.exists()


def test_commands_execute_it_only_when_they_are_told_to(
    folder: Path, mark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    words = ["data", "preview", str(rows), "--input-key", "messages", "--hf-checkpoint", str(folder)]
    assert main(words) == 2
    assert "add --trust-remote-code." in capsys.readouterr().err
    assert not mark.exists()
    main([*words, "--trust-remote-code"])
    assert mark.exists()
    mark.unlink()
    rest = "--rollout-function-path sft --loss-type sft_loss --debug-train-only --rollout-batch-size 1 --num-rollout 1 --input-key messages"
    rest += " --disable-compute-advantages-and-returns --n-samples-per-prompt 1"
    assert main(["check", "--hf-checkpoint", str(folder), "--prompt-data", str(rows), *rest.split()]) == 2
    assert "add --trust-remote-code." in capsys.readouterr().err
    assert not is_trusted()
    assert not mark.exists()
