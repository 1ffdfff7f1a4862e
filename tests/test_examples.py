"""The example packages install beside slime, work by one flag, and leave a clear error behind when they are gone.

They are installed into a temporary folder on PYTHONPATH; the environment that runs the tests is never changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slime_core.run.tracking import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))


def run(*words: str | Path, site: Path | None, **options) -> subprocess.CompletedProcess[str]:
    """Run a command outside the repository with `site`, if any, on PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(site)} if site else {})}
    command = [sys.executable, "-P", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, **options)


SEVERAL = """
import json, sys
from slime_core.cli import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""


def slime(*commands: list[str | Path], site: Path | None, cwd: Path) -> str:
    """What commands print that are done one after the other, in one process: each would import torch anew."""
    done = run("-c", SEVERAL, json.dumps([[str(word) for word in words] for words in commands]), site=site, cwd=cwd)
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> Path:
    """The packages as somebody else's folder would hold them, away from the repository and its pytest settings."""
    folder = tmp_path_factory.mktemp("examples")
    for name in NAMES:
        shutil.copytree(EXAMPLES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    return folder


@pytest.fixture(scope="module")
def site(copies, tmp_path_factory) -> Path:
    """A folder with both packages installed."""
    folder = tmp_path_factory.mktemp("site")
    pip = ("pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-build-isolation")
    for name in NAMES:
        done = run("-m", *pip, "--target", folder, copies / name, site=None)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_tests_of_an_example_pass_where_only_it_and_slime_are_installed(name, copies, site):
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", site=site, cwd=copies / name)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_installing_is_all_it_takes_to_be_listed(site, tmp_path):
    rows = {row["distribution"]: row for row in json.loads(slime(["plugins", "--json"], site=site, cwd=tmp_path))}
    for name in NAMES:
        assert rows[name]["status"] == "loaded"
        assert rows[name]["version"] == "0.1.0"
        assert rows[name]["file"].startswith(str(site))
    assert rows["slime-focal-loss"]["hooks"] == ["argument_groups", "losses"]
    assert rows["slime-arithmetic-pack"]["hooks"] == ["argument_groups", "dynamic_filters", "rewards", "sample_filters"]
    without = json.loads(slime(["plugins", "--json"], site=None, cwd=tmp_path))
    assert not {row["distribution"] for row in without} & set(NAMES)


@pytest.fixture(scope="module")
def recipe(tiny_model, chat_rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(
        f"hf_checkpoint: {tiny_model}\nprompt_data: {chat_rows}\ninput_key: messages\nrollout_function_path: sft\n"
        "rollout_batch_size: 4\nnum_rollout: 2\nlr: 1.0e-3\n"
    )
    return path


@pytest.mark.slow
def test_a_new_loss_is_one_flag_has_an_effect_and_equals_sft_loss_at_gamma_0(site, recipe, tmp_path):
    flags = {
        "sft": ["sft_loss"],
        "gamma-0": ["focal_loss", "--focal-gamma", "0"],
        "gamma-2": ["focal_loss", "--focal-gamma", "2"],
    }
    folders = {name: tmp_path / name for name in flags}
    output = {name: ["--run-dir", folder, "--save-hf", folder / "model"] for name, folder in folders.items()}
    runs = (["train", recipe, "--loss-type", *words, *output[name]] for name, words in flags.items())
    slime(*runs, site=site, cwd=tmp_path)
    lines = {name: read_metrics(folder / "metrics.jsonl") for name, folder in folders.items()}
    weights = {name: (folder / "model" / "model.safetensors").read_bytes() for name, folder in folders.items()}
    assert [len(rows) for rows in lines.values()] == [2, 2, 2]
    assert weights["gamma-0"] == weights["sft"]
    assert weights["gamma-2"] != weights["sft"]
    for plain, zero, two in zip(*lines.values(), strict=True):
        assert zero["train/loss"] == zero["train/nll"] == plain["train/loss"]
        assert zero["train/grad_norm"] == plain["train/grad_norm"]
        # (1 - p)² < 1: the focal loss is smaller than the likelihood it re-weights.
        assert two["train/loss"] < two["train/nll"]
    first_plain, first_two = lines["sft"][0], lines["gamma-2"][0]
    assert first_two["train/nll"] == first_plain["train/loss"], "before the first step the weights are the same"


def test_the_pack_scores_answers_in_a_run_that_names_its_reward(site, recipe, tmp_path):
    sums = tmp_path / "sums.jsonl"
    row = {
        "messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "Answer: 2"}],
        "label": "2",
    }
    sums.write_text(json.dumps(row) + "\n")
    words = ["--num-rollout", "0", "--eval-prompt-data", "sums", sums, "--eval-generate", "1", "--label-key", "label"]
    words += [
        "--rollout-engine",
        "local",
        "--eval-max-response-len",
        "8",
        "--loss-type",
        "sft_loss",
        "--run-dir",
        "run",
    ]
    words += ["--rm-type", "arithmetic", "--arithmetic-format-credit", "0.2"]
    assert "no effect" not in slime(["check", recipe, *words], ["train", recipe, *words], site=site, cwd=tmp_path)
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["eval/sums/reward"] == 0.0, "a random model does not write an answer line"


def test_an_option_of_a_package_whose_component_is_not_chosen_is_reported(site, recipe, tmp_path):
    words = ["--loss-type", "sft_loss", "--focal-gamma", "3", "--arithmetic-solved-to", "0.5"]
    printed = slime(["check", recipe, *words], site=site, cwd=tmp_path)
    assert "--focal-gamma has no effect: it is read by the loss 'focal_loss', which this run does not use." in printed
    assert "--arithmetic-solved-to has no effect: it is read by the dynamic_filter 'arithmetic_middling'" in printed


MISSED = {
    "loss_type: focal_loss": "There is no loss named 'focal_loss' for --loss-type.",
    "focal_gamma: 2": "sets 'focal_gamma', which is no option.",
}
"""What is said of a line of a recipe where the package that it is for was uninstalled."""


@pytest.fixture(scope="module")
def named(site, recipe, tmp_path_factory) -> dict[str, Path]:
    """Recipes with those lines, good while the packages are installed."""
    folder, found = tmp_path_factory.mktemp("named"), {}
    for number, line in enumerate(MISSED):
        found[line] = folder / f"{number}.yaml"
        loss = "" if "loss_type" in line else "loss_type: sft_loss\n"
        found[line].write_text(f"{recipe.read_text()}{loss}{line}\n")
    slime(*(["check", path] for path in found.values()), site=site, cwd=folder)
    return found


@pytest.mark.parametrize(("line", "message"), MISSED.items())
def test_a_recipe_that_names_what_was_uninstalled_says_what_is_missing(named, tmp_path, line, message):
    done = run("-m", "slime_core", "check", named[line], site=None, cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
