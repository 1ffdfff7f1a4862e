"""`slime check --as-slime` reads a launch script without running it, and explains every option in one call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slime_core.arguments.namespace import Namespace
from slime_core.cli import main
from slime_core.cli.as_slime.bash_words import UNKNOWN, expand, tokens
from slime_core.cli.as_slime.launch_script import read_launch_script
from slime_core.cli.as_slime.report import judge
from slime_core.errors import ArgumentError
from slime_core.plugins import Plugins

VALUES = {"A": "a b", "EMPTY": "", "N": "6", "LIST": ["x y", "z"], "NONE": []}


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("plain", ["plain"]),
        ("'one word'", ["one word"]),
        ('"one $A"', ["one a b"]),
        ("$A", ["a", "b"]),
        ("pre${A}post", ["prea", "bpost"]),
        ("'$A'", ["$A"]),
        (r"\$A", ["$A"]),
        (r'"\$A \q"', [r"$A \q"]),
        ("$EMPTY", []),
        ('"$EMPTY"', [""]),
        ("''", [""]),
        ("${EMPTY:-other}", ["other"]),
        ("${EMPTY-other}", []),
        ("${UNSET_HERE:-${N}}", ["6"]),
        ('"${UNSET_HERE:-1 2}"', ["1 2"]),
        ("${A:+set}", ["set"]),
        ("${UNSET_HERE:+set}", []),
        ("${LIST[@]}", ["x", "y", "z"]),
        ('"${LIST[@]}"', ["x y", "z"]),
        ('"--${LIST[@]}"', ["--x y", "z"]),
        ("${NONE[@]}", []),
        ("${UNSET_HERE[@]}", []),
        ("$((N * 2 + 1))", ["13"]),
        ("$(( 1024 * 1024 ))", ["1048576"]),
        ("$((7 / N))", ["1"]),
        ("$(seq 4 2 8)", ["4", "6", "8"]),
        ("[0]*$N+[1]*2", ["[0]*6+[1]*2"]),
        ("$(dirname /a/b/c)", ["/a/b"]),
        ('"$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" &>/dev/null && pwd)/x"', ["/place/x"]),
        ("$(cd /a/b/.. && pwd)", ["/a"]),
        ("a#b", ["a#b"]),
    ],
)
def test_words_become_what_bash_makes_of_them(word: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET_HERE", raising=False)
    assert expand(word, VALUES, "/place") == words


@pytest.mark.parametrize(
    "word", ["$(date +%s)", "`hostname -I`", "$UNSET_HERE", "${A//a/b}", "$((UNSET_HERE + 1))", '"x$(rm -r /)"']
)
def test_what_only_a_shell_knows_is_marked_and_never_run(word: str) -> None:
    (made,) = expand(word, VALUES, "/place")
    assert UNKNOWN in made


def test_comments_redirections_and_here_documents_are_no_words() -> None:
    script = "a b # c\nd 2>&1 >log e\ncat <<EOF > f\n not a word\nEOF\ng 'h # i' &> j; k | l"
    words = [token.text for token in tokens(script) if token.kind == "word"]
    assert words == ["a", "b", "d", "e", "cat", "g", "'h # i'", "k", "l"]


SCRIPT = r"""#!/bin/bash
pkill -9 nobody
export PYTHONUNBUFFERED=1
COUNT=$(some-program | wc -l)
if [ "$COUNT" -gt 0 ]; then LINKED=1; else LINKED=0; fi
GPUS=${GPUS:-2}
if [ -z "$GPUS" ] || [ "$GPUS" -le 0 ]; then
    GPUS=8
fi
SCRIPT_DIR="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" &>/dev/null && pwd)"
source "/somewhere/else/models/small.sh"

DATA_ARGS=(
   --prompt-data "${SCRIPT_DIR}/rows of mine.jsonl"   # a comment
   #--prompt-data other.jsonl
   --input-key question
)
DATA_ARGS+=(--label-key answer)
if [[ "${MODE:-full}" == "full" && 1 == 1 ]]; then EXTRA=(--no-such-option); fi
for ((i=0; i<3; i++)); do
   arr+=("$i")
done
printf -v FREQUENCIES "[%s]" "${arr[*]}"
rm -rf "${SCRIPT_DIR}"
JSON="{
  \"env_vars\": {\"A\": \"${LINKED}\"}
}"
ray job submit --address="http://127.0.0.1:8265" --runtime-env-json="${JSON}" \
   -- python3 -u "${SCRIPT_DIR}/train.py" \
   --actor-num-gpus-per-node ${GPUS} \
   ${MODEL_ARGS[@]} "${DATA_ARGS[@]}" ${NOTHING[@]} \
   --moe-layer-freq $FREQUENCIES 2>&1 | tee log
"""


def test_a_script_is_read_as_bash_would_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPUS", raising=False)
    (tmp_path / "scripts" / "models").mkdir(parents=True)
    (tmp_path / "scripts" / "models" / "small.sh").write_text("LAYERS=1\nMODEL_ARGS=(--num-layers $((LAYERS + 1)))\n")
    path = tmp_path / "scripts" / "run.sh"
    path.write_text(SCRIPT)
    read = read_launch_script(path)
    assert read.command == "train"
    assert read.words == [
        *("--actor-num-gpus-per-node", "2", "--num-layers", "2"),
        *(
            "--prompt-data",
            f"{tmp_path / 'scripts'}/rows of mine.jsonl",
            "--input-key",
            "question",
            "--label-key",
            "answer",
        ),
        *("--moe-layer-freq", f"{UNKNOWN}FREQUENCIES"),
    ]
    assert any("line 20: what a loop or function puts into arr is not known" in remark for remark in read.remarks)
    assert path.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("python train.py --a 1", ["--a", "1"]),
        ("cd x && python3 train_async.py --a; echo --b", ["--a"]),
        ("A=(--a)\npython train.py ${A[@]}\nA=(--b)", ["--a"]),
        ('if [ -n "$A" ]; then X=1; elif true; then X=2; fi\nA=b\npython train.py --x ${X:-3}', ["--x", "3"]),
        ('A=b\nif [ -n "$A" ]; then X=1; else X=2; fi\npython train.py --x $X', ["--x", "1"]),
        ("if [ ! -d /no/such/place ]; then X=(--a); fi\npython train.py ${X[@]}", ["--a"]),
        ("if [ a == b ]; then X=1; elif [ 2 -lt 3 ]; then X=2; else X=3; fi; python train.py --x $X", ["--x", "2"]),
        ("f() { python train.py --inside; }\npython train.py --outside", ["--outside"]),
        ("case $1 in a) X=1;; esac\npython train.py --x ok", ["--x", "ok"]),
    ],
)
def test_control_flow_is_followed_where_it_is_known(script: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(script)
    assert read_launch_script(tmp_path / "run.sh").words == words


def test_a_script_that_starts_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("echo train.py.bak\n")
    with pytest.raises(ArgumentError, match=r"calls neither train.py nor train_async.py"):
        read_launch_script(tmp_path / "run.sh")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_launch_script(tmp_path / "none.sh")


@pytest.fixture
def launched(tmp_path: Path, tiny_model: Path) -> list[str]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}?", "label": "1"}) + "\n" for n in range(4)))
    (tmp_path / "run.sh").write_text(
        "A=(--hf-checkpoint /root/Model --input-key prompt --label-key label --rollout-batch-size 2 --num-rollout 1 --colocate\n"
        "   --rm-type math --apply-chat-template --ci-test --use-opd --opd-kl-coef 0.5 --exit-interval 3 --load-it $WHO)\n"
        "python3 train.py ${A[@]}\n"
    )
    words = ["--hf-checkpoint", str(tiny_model), "--prompt-data", str(rows), "--rollout-engine", "local"]
    return ["check", "--as-slime", str(tmp_path / "run.sh"), *words]


def test_every_option_is_explained_and_the_run_with_the_others_is_checked(
    launched: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHO", raising=False)
    assert main(launched) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--colocate Trainer and engine share devices, but memory changes hands only with --offload" in said
    assert "left out, and nothing is lost (1) --ci-test" in said
    assert "--opd-kl-coef 0.5 It weighs the penalty of --use-opd" in said
    assert "--exit-interval 3 It is an option of Megatron that is not available here" in said
    assert "left out, their values are known only when the script runs (1) --load-it $WHO" in said
    assert "--bf16 slime: on, here: off." in said
    assert "--offload slime: on, here: off." in said
    assert "for slime's: --actor-num-gpus-per-node 8 --offload --train-backend megatron" in said
    assert "--rollout-engine slime" not in said  # it is given
    assert "4 prompts, 1 rollouts of 2 samples" in said


def test_an_option_that_may_be_repeated_keeps_all_its_values_and_any_other_the_last() -> None:
    words = ["--rollout-sample-hook-path", "a.b", "--lr", "1", "--rollout-sample-hook-path", "c.d", "--lr", "2"]
    argv = judge(None, words, Namespace(Plugins())).argv
    assert sorted(argv) == sorted(["--rollout-sample-hook-path", "a.b", "c.d", "--lr", "2"])


def test_words_alone_are_those_of_train_py(launched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = launched[3:]
    assert (
        main(["check", "--as-slime", "--", "--rollout-batch-size", "2", "--num-rollout", "1", *words, "--rm-typo", "x"])
        == 2
    )
    told = capsys.readouterr()
    assert "options of neither slime, Megatron nor SGLang (1)" in told.out
    assert "Did you mean '--rm-type'?" in told.err
    assert main(["check", "--as-slime", "recipe.yaml", "--as-slime"]) == 2
    assert "--as-slime is given twice" in capsys.readouterr().err
    assert main(["train", "--as-slime", *words]) == 2
    assert "--as-slime belongs to `slime check`" in capsys.readouterr().err
