"""The day that chat templates write is that of the run's beginning, also in a run that is continued."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slime_core.arguments.groups.data import DataArguments
from slime_core.data.tokenizer import load_tokenizer
from slime_core.run.parity_rows import _prompt
from slime_core.run.plan import _with_template_date
from slime_core.sample import Sample


def day(**given: Any) -> Any:
    args = SimpleNamespace(**{"chat_template_date": None, "load": None, "ckpt_step": None, **given})
    resolved: Any = SimpleNamespace(
        args=args, updated=lambda why, **values: SimpleNamespace(args=SimpleNamespace(**values))
    )
    return _with_template_date(resolved).args.chat_template_date


@pytest.mark.parametrize(
    ("given", "stored", "expected"),
    [
        ("2024-01-02", None, "2024-01-02"),
        ("2024-01-02", {"chat_template_date": "2023-05-06"}, "2024-01-02"),  # which the comparison of arguments reports
        (None, {"chat_template_date": "2023-05-06"}, "2023-05-06"),
        (None, {}, None),  # of a run that fixed none
        (None, None, date.today().isoformat()),
    ],
)
def test_the_day_is_that_of_the_run_that_is_continued(tmp_path: Path, given: Any, stored: Any, expected: Any) -> None:
    if stored is not None:
        (tmp_path / "iter_0000003").mkdir()
        (tmp_path / "iter_0000003" / "state.json").write_text(json.dumps({"arguments": stored}))
    assert day(chat_template_date=given, load=str(tmp_path)) == expected


@pytest.mark.parametrize("text", ["26 Jul 2024", "2024-13-01", "today"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a day, YYYY-MM-DD"):
        DataArguments(prompt_data=["x"], chat_template_date=text)


def test_prompts_that_are_compared_are_rendered_with_the_runs_day(tiny_model: Path, default_arguments: Any) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ strftime_now('%Y') }} {{ messages[0].content }}"
    try:
        prompt = Sample(prompt=[{"role": "user", "content": "x"}])
        for day in ("1999-12-31", "2000-01-01"):
            args = default_arguments("x", hf_checkpoint=str(tiny_model), chat_template_date=day)
            expected = tokenizer(f"{day[:4]} x", add_special_tokens=False)["input_ids"]
            assert _prompt(args, prompt).tokens == expected
    finally:
        tokenizer.chat_template = template
