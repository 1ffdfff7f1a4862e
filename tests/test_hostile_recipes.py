"""A recipe is a small file of options: nothing in it is executed, grows without bounds or is read otherwise than it looks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from slime_core.arguments.recipe import MAX_BYTES, read_recipe
from slime_core.cli import main
from slime_core.errors import ArgumentError


def doubled(first: str, each: str, levels: int) -> str:
    """Anchors of which each repeats the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {each.format(','.join([f'*a{n - 1}'] * 9))}" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a tag that calls": (
        "seed: !!python/object/apply:os.system ['touch MARK']",
        "could not determine a constructor for the tag",
    ),
    "a tag that imports": ("seed: !!python/module:antigravity", "could not determine a constructor for the tag"),
    "a tag that makes": (
        "seed: !!python/object/new:subprocess.Popen [['touch', 'MARK']]",
        "could not determine a constructor",
    ),
    "a tag that names": ("seed: !!python/name:os.system", "could not determine a constructor for the tag"),
    "a tag of its own": ("seed: !mine 1", "could not determine a constructor for the tag '!mine'"),
    "bytes": ("save: !!binary aGk=", "could not determine a constructor"),
    "a set": ("save: !!set {a, b}", "could not determine a constructor"),
    "values without end": (
        doubled("[x,x,x,x,x,x,x,x,x]", "[{}]", 12),
        "more than 10000 values, which anchors may repeat",
    ),
    "keys without end": (doubled("{x: 1, y: 2}", "{{<<: [{}]}}", 12), "more than 10000 keys"),
    "itself": ("a: &a [*a]", "more than 10000 values"),
    "megabytes": ("#" * (MAX_BYTES + 1), "has more than 1048576 bytes"),
    "depth": ("seed: " + "[" * 500 + "]" * 500, "nested too deeply"),
    "digits": ("seed: " + "1" * 5000, "is not valid YAML: Exceeds the limit"),
    "an octal number": ("seed: 010", "what is the number '010'"),
    "a time of day": ("lr: 1:30", "what is the number '1:30'"),
    "a time of day with a fraction": ("lr: 1:30.5", "what is the number '1:30.5'"),
    "a key twice": ("lr: 1\nlr: 2", "the key 'lr' is there twice\n  in \"r.yaml\", line 2, column 1"),
    "a key twice, with dashes": ("num-rollout: 1\nnum_rollout: 2", "sets --num-rollout twice"),
    "no integer": ("seed: !!int foo", "is not valid YAML"),
    "no date": ("save: 2001-99-99", "month must be in 1..12"),
    "no timestamp": ("save: !!timestamp foo", "is not valid YAML"),
    "no truth value": ("save: !!bool foo", "is not valid YAML: KeyError"),
    "a list as a key": ("? [a]\n: 1", "found unhashable key"),
    "two documents": ("lr: 1\n---\nlr: 2", "expected a single document"),
    "latin-1": (b"save: f\xfcr\n", "is no text in UTF-8"),
    "a control character": ("save: a\x1b[31m", "special characters are not allowed"),
    "no mapping": ("- lr", "must be a YAML mapping"),
    "nothing": ("", "must be a YAML mapping"),
    "stages of text": ("stages: [lr]", "stages must be a list of mappings"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_refused_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    assert main(["check", "r.yaml"]) == 2
    assert time.monotonic() - started < 20
    said = capsys.readouterr().err
    assert message in said
    assert said.isprintable() or "\x1b" not in said
    assert not Path("MARK").exists()


def test_anchors_may_share_what_stages_have_in_common(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("stages:\n- &first {lr: 1e-3, seed: 5}\n- {<<: *first, seed: 6}\n")
    first, second = read_recipe(str(tmp_path / "r.yaml"))
    assert (first.given["seed"], second.given["seed"], second.given["lr"]) == (5, 6, "1e-3")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read_recipe(str(tmp_path))
