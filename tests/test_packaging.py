"""Every distribution builds, and a fresh environment with nothing but the wheels can list plugins and train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = [
    p.parent
    for p in (ROOT / "pyproject.toml", *ROOT.glob("slime_*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml"))
]


def run(*words: str | Path, **options) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fresh")
    pip = ("-m", "pip", "--disable-pip-version-check", "-q", "-q")
    run(sys.executable, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheels", *DISTRIBUTIONS)
    wheels = list((folder / "wheels").glob("*.whl"))
    assert len(wheels) == len(DISTRIBUTIONS)
    run(sys.executable, "-m", "venv", folder / "venv")
    run(folder / "venv/bin/python", *pip, "install", "-c", ROOT / "constraints.txt", *wheels)
    return folder / "venv" / "bin"


@pytest.mark.timeout(600)
def test_wheels_list_their_plugins_and_train_in_a_fresh_environment(environment, tiny_model, chat_rows, tmp_path):
    rows = json.loads(run(environment / "slime", "plugins", "--json", cwd=tmp_path))
    assert {row["distribution"] for row in rows} == {name(folder) for folder in DISTRIBUTIONS}
    assert {row["status"] for row in rows} == {"loaded"}
    assert all(str(environment.parent) in row["file"] for row in rows), "a plugin came from outside the environment"
    flags = ["--hf-checkpoint", tiny_model, "--prompt-data", chat_rows, "--input-key", "messages"]
    flags += ["--rollout-function-path", "sft", "--loss-type", "sft_loss", "--rollout-batch-size", "4"]
    flags += ["--num-rollout", "2", "--run-dir", tmp_path / "run", "--save-hf", tmp_path / "model"]
    run(
        environment / "slime",
        "train",
        *flags,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "model" / "model.safetensors").exists()


def test_no_distribution_imports_a_sibling():
    packages = {name(folder).replace("-", "_"): folder for folder in DISTRIBUTIONS}
    for package, folder in packages.items():
        source = folder / "slime_core" if package == "slime_core" else folder / "src" / package
        text = "\n".join(path.read_text() for path in source.rglob("*.py"))
        siblings = set(packages) - {package, "slime_core"}
        found = [s for s in siblings if f"import {s}" in text or f"from {s}" in text or f'"{s}.' in text]
        assert not found, f"{package} reaches into {found}"


def test_every_distribution_states_the_core_it_needs():
    for folder in DISTRIBUTIONS:
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        assert project["requires-python"] == ">=3.11"
        if project["name"] != "slime-core":
            assert "slime-core>=0.1" in project["dependencies"], project["name"]


def name(folder: Path) -> str:
    return tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
