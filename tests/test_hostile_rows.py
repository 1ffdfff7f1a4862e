"""No row imports or executes anything, whatever its texts, its metadata or the type of its reward say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from slime_core.cli import main
from slime_core.data.samples import Columns, sample_from_row
from slime_core.errors import SlimeError
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import Rewards

COLUMNS = Columns("messages", "label", "tools", "metadata")


def _row(**changes: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return {"messages": talk, "label": "1", **changes}


def hostile(mark: Path) -> dict[str, dict[str, Any]]:
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    template = "{{ cycler.__init__.__globals__.os.popen('touch " + str(mark) + "').read() }}"
    talk = [{"role": "user", "content": template}, {"role": "assistant", "content": template}]
    call = {"type": "function", "function": {"name": code, "arguments": code}}
    return {
        "a template in the text": _row(messages=talk),
        "a template of its own": _row(chat_template_kwargs={"chat_template": template}),
        "code as an answer": _row(messages=[{"role": "user", "content": code}, {"role": "assistant", "content": code}]),
        "code as a label": _row(label=code),
        "code in metadata": _row(metadata={"answer": code, "__reduce__": code, "__class__": code}),
        "a module as the reward": _row(metadata={"rm_type": "marked.reward"}),
        "a module and a file as the reward": _row(metadata={"rm_type": f"{mark.parent}/marked.py:reward"}),
        "a reward that is no name": _row(metadata={"rm_type": ["marked.reward"]}),
        "a dotted builtin as the reward": _row(metadata={"rm_type": "os.system"}),
        "code as a tool": _row(
            tools=[{"type": "function", "function": {"name": code, "parameters": {"default": code}}}]
        ),
        "code as a call": _row(
            messages=[{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
        ),
        "a class as a value": _row(metadata={"py/object": "os.system", "$type": "System.Diagnostics.Process"}),
    }


NAMES = sorted(hostile(Path("x")))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that would be there if something were executed; beside it is a module that makes it when it is imported."""
    found = tmp_path / "mark"
    (tmp_path / "marked.py").write_text(
        f"__import__('pathlib').Path({str(found)!r}).touch()\ndef reward(args, sample): return 1.0\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_data(name: str, mark: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = hostile(mark)[name]
    try:
        sample = sample_from_row(COLUMNS, row, "rows.jsonl:1")
        rewards = Rewards(_arguments(), Plugins(), None, None)
        rewards.caller(sample)
    except SlimeError:
        pass
    rows = mark.parent / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    words = [
        "data",
        "preview",
        str(rows),
        "--input-key",
        "messages",
        "--tool-key",
        "tools",
        "--hf-checkpoint",
        str(tiny_model),
    ]
    assert main([*words, "--html", str(mark.parent / "page.html")]) in (0, 1)
    assert not mark.exists()
    assert "marked" not in sys.modules


def _arguments() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(
        custom_rm_path=None, rm_type="math", failure_policy=[], reward_key=None, rm_url=None, group_rm=False
    )


def test_the_module_would_be_seen(mark: Path) -> None:
    __import__("marked").reward(None, None)
    assert mark.exists()


@pytest.mark.parametrize(
    "name", ["marked.reward", "marked:reward", "boxed_marked.reward", "os.system", "no_such_reward"]
)
def test_a_row_names_installed_rewards_only(name: str, mark: Path) -> None:
    sample = sample_from_row(COLUMNS, _row(metadata={"rm_type": name}), "rows.jsonl:1")
    with pytest.raises(SlimeError, match=name):
        Rewards(_arguments(), Plugins(), None, None).caller(sample)
    assert not mark.exists()
