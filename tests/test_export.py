"""`slime export`: the model of any checkpoint as a Hugging Face folder, with the very numbers that `--save-hf` writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slime_core.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # in peft

LORA = ("--lora-rank", "4", "--lora-alpha", "6")
KINDS: dict[str, tuple[str, ...]] = {
    "all weights": (),
    "lora": LORA,
    "some weights": ("--freeze-params-name-list", "embed_tokens"),
    "fp8": ("--fp8-format", "e4m3", "--fp8-recipe", "delayed", "--fp8-emulation"),
}
CODE = {
    "own_configuration.py": "from transformers import LlamaConfig\n\n\nclass Own(LlamaConfig): ...\n",
    "own_model.py": "from transformers import LlamaForCausalLM\nfrom .own_configuration import Own\n\n\n"
    "class OwnModel(LlamaForCausalLM):\n    config_class = Own\n",
}
"""Python code that the model folder of the kind "some weights" brings, and which nobody trusts in training."""


@pytest.fixture(scope="module")
def runs(tiny_model: Path, chat_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of each kind, with checkpoints in `save`, and exports of the same rollouts in `hf-N`."""
    parent = tmp_path_factory.mktemp("runs")
    with_code = shutil.copytree(tiny_model, parent / "with code")
    config = json.loads((with_code / "config.json").read_text())
    own = {"AutoConfig": "own_configuration.Own", "AutoModelForCausalLM": "own_model.OwnModel"}
    (with_code / "config.json").write_text(json.dumps({**config, "auto_map": own}))
    for name, code in CODE.items():
        (with_code / name).write_text(code)
    for name, options in KINDS.items():
        folder = parent / name
        checkpoint = with_code if name == "some weights" else tiny_model
        words = [
            *("train", "--hf-checkpoint", str(checkpoint), "--prompt-data", str(chat_rows), "--input-key", "messages"),
            *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "4", "--lr", "1e-2"),
            *("--num-rollout", "2", "--save-interval", "1", "--run-dir", str(folder), "--save", str(folder / "save")),
            *("--save-hf", str(folder / "hf-{rollout_id}"), *options),
        ]
        assert main(words) == 0
    return {name: parent / name for name in KINDS}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def require_same(found: Path, wanted: Path) -> None:
    """The same files, with the same bytes but for weights, which are compared by their numbers."""
    names = sorted(str(path.relative_to(wanted)) for path in wanted.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) == names
    for name in names:
        if not name.endswith(".safetensors"):
            assert (found / name).read_text() == (wanted / name).read_text(), name
    for path in (*found.rglob("*.safetensors"), *wanted.rglob("*.safetensors")):
        usual = next(path.parent.glob("*config.json"))
        assert path.stat().st_mode == usual.stat().st_mode, "a server may be another user"
    for folder in {(found / name).parent for name in names}:
        mine, theirs = tensors(folder), tensors(wanted / folder.relative_to(found))
        assert mine.keys() == theirs.keys()
        assert [n for n, t in mine.items() if t.dtype != theirs[n].dtype or not torch.equal(t, theirs[n])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_what_save_hf_wrote_after_the_same_rollout(
    kind: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    run = runs[kind]
    for number, source in enumerate([run, run / "save", run / "save" / "iter_0000000"]):
        assert main(["export", str(source), str(tmp_path / str(number))]) == 0
        require_same(tmp_path / str(number), run / ("hf-0" if number == 2 else "hf-1"))


def test_code_that_a_model_folder_brings_is_in_its_exports(runs: dict[str, Path]) -> None:
    assert {name: (runs["some weights"] / "hf-1" / name).read_text() for name in CODE} == CODE
    assert not list((runs["all weights"] / "hf-1").glob("*.py"))


def test_dtype_casts_every_weight_and_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    exact = tensors(runs["lora"] / "hf-1")
    for name, dtype in {"bf16": torch.bfloat16, "fp16": torch.float16}.items():
        assert main(["export", str(runs["lora"]), str(tmp_path / name), "--dtype", name]) == 0
        assert all(torch.equal(t, exact[n].to(dtype)) for n, t in tensors(tmp_path / name).items())
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template
    assert main(["export", str(runs["lora"] / "hf-1"), str(tmp_path / "again"), "--dtype", "bf16"]) == 0
    require_same(tmp_path / "again", tmp_path / "bf16")


def test_an_adapter_alone_is_that_of_the_whole_export(runs: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    assert main(["export", str(runs["lora"]), str(tmp_path / "adapter"), "--adapter"]) == 0
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert "tokenizer.json" in names
    assert "model.safetensors" not in names
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "adapter" / name).read_bytes() == (runs["lora"] / "hf-1" / "adapter" / name).read_bytes()
    base = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")


def moved(run: Path, place: Path, **changes: Any) -> Path:
    """A copy of a run's folder elsewhere, where its checkpoints are those of a run with other arguments."""
    from slime_core.run.checkpoints import describe

    shutil.copytree(run, place)
    for checkpoint in (place / "save").glob("iter_*"):
        stored = json.loads((checkpoint / "run.json").read_text())
        stored["arguments"] |= changes
        (checkpoint / "run.json").write_text(json.dumps(stored))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["run.json"] = describe(checkpoint / "run.json")
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return place


def failing(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that ends with an error."""
    capsys.readouterr()
    assert main(["export", *map(str, words)]) in (1, 2)
    return capsys.readouterr().err


def test_a_run_whose_folders_were_moved_is_found_and_says_what_is_gone(
    runs: dict[str, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = moved(runs["lora"], tmp_path / "run", hf_checkpoint=str(tmp_path / "gone"), save=str(tmp_path / "then"))
    text = failing(capsys, run, tmp_path / "out")
    assert f"--hf-checkpoint {tmp_path / 'gone'}, which is not there any more" in text
    assert "--hf-checkpoint FOLDER" in text
    (tmp_path / "now").symlink_to(tiny_model)
    assert main(["export", str(run), str(tmp_path / "out"), "--hf-checkpoint", str(tmp_path / "now")]) == 0
    mine, theirs = tensors(tmp_path / "out"), tensors(runs["lora"] / "hf-1")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_cannot_be_exported_is_refused_in_words_and_nothing_is_left(
    runs: dict[str, Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = runs["all weights"], tmp_path / "out"
    broken = moved(run, tmp_path / "broken") / "save" / "iter_0000001"
    half = shutil.copytree(broken, broken.parent / ".saving_iter_0000002")
    (half / "manifest.json").unlink()
    (half / "state.json").unlink()
    part = next((broken / "trainer").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-100])
    other = moved(run, tmp_path / "other", train_backend="deepspeed")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("…")
    own = tmp_path / "own"
    assert main(["export", str(run), str(own)]) == 0
    expected = {
        (broken, target): "is damaged: trainer/",
        (broken.parent, target, "--ckpt-step", 7): "there is no iter_0000007",
        (half, target): "was not written to its end",
        (other, target): "was written by the train backend 'deepspeed'",
        (run, foreign): "is there already, and is no exported model",
        (run, own): "replace it with --force",
        (run, run / "save"): "which is exported",
        (run, target, "--adapter"): "of a run without LoRA",
        (run, target, "--dtype", "fp8"): "--dtype",
        (tiny_model, target): "is a Hugging Face checkpoint already",
        (tmp_path / "nothing", target): "is not there",
        (foreign, target): "no checkpoint of a run",
        (run,): "expected two",
        (run, target, "--dtipe", "bf16"): "Did you mean '--dtype'?",
    }
    for words, text in expected.items():
        found = failing(capsys, *words)
        assert text in found, found
        assert "Traceback" not in found
    assert not target.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert (foreign / "thesis.tex").exists()
    assert main(["export", str(run), str(own), "--dtype", "bf16", "--force"]) == 0
    assert {tensor.dtype for tensor in tensors(own).values()} == {torch.bfloat16}
