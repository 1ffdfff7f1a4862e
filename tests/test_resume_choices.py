"""`--load` cannot be misread: which checkpoint a run goes on from, and what may have changed since it was written."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from slime_core.cli import main
from slime_core.data.checkpoint_folders import Weights, recognise
from slime_core.run.checkpoints import find_checkpoint, set_newer_aside
from slime_core.run.resume import set_dumps_aside
from slime_core.run.tracking import read_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{name of a run: its folder}, filled by the first test that trains it."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def saved(sft, trained, tmp_path):
    """A folder with the checkpoints of a run of three rollouts."""
    if not (trained / "c").exists():
        assert main(["train", *sft, "--num-rollout", "3", "--save", str(trained / "c"), "--save-interval", "1"]) == 0
        shutil.rmtree(tmp_path / "run")
    return shutil.copytree(trained / "c", tmp_path / "c")


def outcome(capsys, *words):
    """(exit status, what was said on standard error)."""
    capsys.readouterr()
    status = main(["train", *map(str, words)])
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("load", "more", "from_rollout"),
    [
        ("c", [], 3),
        ("c/iter_0000002", [], 3),
        ("c/iter_0000001", [], 2),
        ("c", ["--ckpt-step", "0"], 1),
        ("c", ["--ckpt-step", "1"], 2),
        ("c/iter_0000001", ["--ckpt-step", "1"], 2),
    ],
)
def test_the_checkpoint_that_is_named_is_gone_on_from(
    sft, saved, tmp_path, capsys, monkeypatch, load, more, from_rollout
):
    """And where numbers may differ in their last digits, as on a GPU, that is said."""
    exact = from_rollout < 3
    monkeypatch.setattr("slime_core.tensors.determinism.repeats_itself", lambda args: exact)
    words = [*sft, "--num-rollout", "3", "--load", saved.parent / load, *more]
    status, said = outcome(capsys, *words)
    assert status == 0
    assert f"iter_{from_rollout - 1:07d}: {from_rollout} of 3 rollouts are done" in said
    assert ("bit for bit if both were started with --deterministic-mode" in said) is not exact
    done = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in line]
    assert [line["rollout_id"] for line in done] == list(range(from_rollout, 3))


@pytest.mark.parametrize(
    ("more", "branches"),
    [
        ([], False),
        (["--ckpt-step", "1"], True),
        (["--lr", "1e-1", "--on-resume-change", "lr=allow"], True),
        (["--lr", "1e-1", "--on-resume-change", "warn"], True),
        (["--on-resume-change", "lr=allow"], False),
    ],
)
def test_trackers_are_told_where_repeated_metrics_may_be_others(sft, saved, tmp_path, monkeypatch, more, branches):
    (tmp_path / "told.py").write_text(
        "class Tracker:\n"
        "    def __init__(self, args, run_dir, config): (run_dir / 'told').write_text(str(config['branches']))\n"
        "    def log(self, metrics, step): ...\n"
        "    def close(self, error): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [*sft, "--num-rollout", "3", "--load", str(saved), "--save", str(saved), "--tracker", "told.Tracker"]
    assert main(["train", *words, *more]) == 0
    assert (tmp_path / "run" / "told").read_text() == str(branches)


def test_a_run_that_goes_back_sets_newer_checkpoints_aside_and_its_own_are_the_newest(sft, saved, capsys):
    words = [*sft, "--num-rollout", "3", "--load", saved, "--save", saved, "--save-interval", "1"]
    status, said = outcome(
        capsys,
        *words,
        *("--num-rollout", "2", "--on-resume-change", "num-rollout=allow"),
        *("--ckpt-step", "0", "--save-total-limit", "1"),
    )
    assert status == 0, said
    assert f"newer than iter_0000000, which the run goes on from, are now in {saved / 'earlier-1'}" in said
    assert sorted(path.name for path in saved.glob("iter_*")) == ["iter_0000001"]
    assert sorted(path.name for path in (saved / "earlier-1").iterdir()) == ["iter_0000001", "iter_0000002"]
    status, said = outcome(capsys, *words, "--on-resume-change", "num-rollout=allow")
    assert status == 0, said
    assert "iter_0000001: 2 of 3 rollouts are done" in said
    assert "newer than" not in said
    status, said = outcome(capsys, *[word if word != "3" else "0" for word in words[:-4]], "--ckpt-step", "1")
    assert not (saved / "earlier-2").exists(), "nothing is moved by a run that trains nothing"


def test_a_run_that_goes_back_sets_the_dumps_that_it_makes_anew_aside(sft, tmp_path, capsys):
    dumps, saved = tmp_path / "dumps", tmp_path / "save"
    words = [*sft, "--save", saved, "--save-interval", "1", "--dump-details", dumps]
    assert outcome(capsys, *words, "--num-rollout", "3")[0] == 0
    first = {path: path.read_bytes() for path in sorted(dumps.glob("*/*.arrow"))}
    assert len(first) == 6
    back = [*words, "--load", saved, "--num-rollout", "2", "--on-resume-change", "warn", "--lr", "0.5"]
    status, said = outcome(capsys, *back, "--ckpt-step", "0")
    assert status == 0, said
    for folder in (dumps / "rollout_data", dumps / "train_data"):
        assert f"from rollout 1 on, are now in {folder / 'earlier-1'}" in said
        assert sorted(path.name for path in folder.glob("*.arrow")) == ["0.arrow", "1.arrow"]
        aside = {path.name: path.read_bytes() for path in (folder / "earlier-1").iterdir()}
        assert aside == {name: first[folder / name] for name in ("1.arrow", "2.arrow")}
    status, said = outcome(capsys, *back)
    assert status == 0
    assert "dumps of rollouts" not in said, "nothing is moved by a run that trains nothing"


@pytest.mark.parametrize(
    ("pattern", "other", "kept", "moved"),
    [
        ("{rollout_id}.jsonl", "x.jsonl", ["0.jsonl"], ["1.jsonl", "12.jsonl"]),
        ("run_{rollout_id}_a.jsonl", "run_3_b.jsonl", ["run_0_a.jsonl"], ["run_12_a.jsonl", "run_1_a.jsonl"]),
        ("{rollout_id}/{rollout_id}.jsonl", "3/4.jsonl", ["0"], ["1", "12"]),
        ("same.jsonl", "0.jsonl", ["same.jsonl"], []),
    ],
)
def test_dumps_are_known_by_their_whole_names(tmp_path, pattern, other, kept, moved):
    for name in [*(pattern.replace("{rollout_id}", str(n)) for n in (0, 1, 12)), other]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    there = str(tmp_path / pattern)
    for read in (there, str(tmp_path / other)):
        args = SimpleNamespace(save_debug_rollout_data=there, save_debug_train_data=None, load_debug_rollout_data=read)
        assert set_dumps_aside(args, 0, 0) == []
    args = SimpleNamespace(save_debug_rollout_data=None, save_debug_train_data=there, load_debug_rollout_data=None)
    assert set_dumps_aside(args, 13, 1) == ([tmp_path / "earlier-1"] if moved else [])
    assert sorted(path.name for path in tmp_path.glob("earlier-1/*")) == moved
    left = {path.name for path in tmp_path.iterdir()} - {"earlier-1"}
    assert left == {*kept, other.partition("/")[0]}


def test_evaluation_sets_that_changed_are_said(sft, chat_rows, tmp_path, caplog):
    """They change no training, but what it is measured by, and which checkpoint is the best."""
    held = tmp_path / "held.jsonl"
    rows = chat_rows.read_bytes().splitlines(keepends=True)
    held.write_bytes(rows[0])
    folder = tmp_path / "c"
    words = [*sft, "--num-rollout", "1", "--save", folder, "--load", folder, "--save-interval", "1"]
    words += ["--eval-prompt-data", "held", held, "--eval-interval", "1", "--skip-eval-before-train"]
    words = list(map(str, words))
    assert main(["train", *words]) == 0
    held.write_bytes(rows[1])
    assert main(["train", *words]) == 0
    assert f"the evaluation file {held} has changed" in caplog.text


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_newer_checkpoints_are_set_aside_leaves_a_folder_to_go_on_from(tmp_path, monkeypatch, moves):
    for number in range(3):
        (tmp_path / f"iter_{number:07d}").mkdir()
        (tmp_path / f"iter_{number:07d}" / "manifest.json").write_text("{}")
    for what in ("latest", "best"):
        (tmp_path / f"{what}_checkpointed_iteration.txt").write_text("2\n")
    rename, done = Path.rename, []

    def killed(self, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with suppress(KeyboardInterrupt):
        set_newer_aside(str(tmp_path), tmp_path / "iter_0000000")
    left = sorted(path.name for path in tmp_path.glob("iter_*"))
    assert left == [f"iter_{number:07d}" for number in range(3 - moves)]
    assert recognise(tmp_path) == Weights("slime", tmp_path / "iter_0000000"), (
        "the file with a number names one that is there"
    )
    assert not (tmp_path / "best_checkpointed_iteration.txt").exists(), (
        "the next one of that number may not be the best"
    )
    assert find_checkpoint(tmp_path, 0) == tmp_path / "iter_0000000"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--load", "c", "--ckpt-step", "7"],
            r"--ckpt-step 7: there is no iter_0000007 in --load .*iter_0000000, iter_0000001",
        ),
        (
            ["--load", "c/iter_0000001", "--ckpt-step", "2"],
            "there is no iter_0000002 in --load .*which has iter_0000001",
        ),
        (["--load", "typo"], "typo is not there. Name the folder that --save wrote checkpoints into"),
        (["--load", "typo", "--save", "new"], "typo is not there"),
        (["--load", "typo", "--ckpt-step", "1"], "there is no iter_0000001 in --load .*no checkpoint of a run"),
        (
            ["--load", "c", "--save", "other"],
            "holds checkpoints already .*and the run would go on from .*which is elsewhere",
        ),
        (["--save", "c"], "holds a checkpoint of an earlier run"),
        (
            ["--load", "c", "--lr", "1"],
            r"--lr was .* and is 1\.0. Restore them, or .*--on-resume-change warn or lr=allow\.",
        ),
        (
            ["--load", "c", "--lr", "1", "--seed", "5", "--on-resume-change", "lr=allow"],
            "by: --seed was 1234 and is 5. .*or seed=allow",
        ),
        (["--load", "c", "--on-resume-change", "lr"], "'lr' is none of error, warn and OPTION=allow"),
        (
            ["--load", "c", "--on-resume-change", "num-rolout=allow"],
            "--on-resume-change num-rolout=allow: there is no option --num-rolout. Did you mean '--num-rollout'",
        ),
        (["--on-resume-change", "learning_rate=allow"], "there is no option --learning-rate"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_loads(sft, saved, tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "other")
    status, said = outcome(capsys, *sft, "--num-rollout", "3", *words)
    assert status != 0
    assert re.search(says, said), said
    assert "loading" not in said


@pytest.mark.parametrize("permission", [["lr=allow"], ["warn"], ["lr=allow", "seed=allow"]])
def test_an_option_may_differ_where_that_is_allowed_and_the_run_says_so(sft, saved, capsys, permission):
    words = [*sft, "--num-rollout", "3", "--load", saved, "--ckpt-step", "1", "--lr", "1e-4"]
    status, said = outcome(capsys, *words, "--on-resume-change", *permission)
    assert status == 0
    assert "2 of 3 rollouts are done" in said


def test_options_that_nothing_in_the_run_reads_may_come_and_go(sft, saved, capsys, install_plugin):
    """As they do where a plugin is installed, updated or removed."""
    install_plugin(
        "from slime_core.contracts.options import ArgumentGroup, option\n"
        "class Group(ArgumentGroup):\n    'Others'\n    others_scale: float = option(2.0, 'Of a reward that nobody uses.')\n"
        "@hookimpl\ndef slime_argument_groups(): return [Group]\n"
        "@hookimpl\ndef slime_rewards(): return {'others': Lazy('open_pack:reward', 'r', reads_options=('others_scale',))}\n"
        "def reward(args, sample): return 1.0\n"
    )
    checkpoint = saved / "iter_0000001"
    state = json.loads((checkpoint / "state.json").read_text())
    state["arguments"] |= {"gone_with_its_plugin": 3, "others_scale": 1.0}
    (checkpoint / "state.json").write_text(json.dumps(state))
    from slime_core.run.checkpoints import describe

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = describe(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    status, said = outcome(capsys, *sft, "--num-rollout", "3", "--load", checkpoint)
    assert status == 0, said
    assert "2 of 3 rollouts are done" in said


def test_a_damaged_checkpoint_is_named_and_nobody_is_told_to_remove_it(sft, saved, capsys):
    (saved / "iter_0000002" / "state.json").write_text("{")
    status, said = outcome(capsys, *sft, "--num-rollout", "3", "--load", saved)
    assert status != 0
    assert (
        "iter_0000002 is damaged: state.json. Go on from an earlier one with --ckpt-step N; there are iter_0000000"
        in said
    )
    assert "emove" not in said
    assert outcome(capsys, *sft, "--num-rollout", "3", "--load", saved, "--ckpt-step", "1")[0] == 0
