"""The RL rollout over prompts that are token ids already."""

from __future__ import annotations

import pytest
from rollout_cases import ScriptedEngine, rollout

from slime_core.errors import DataError


def test_ids_are_generated_from_as_they_are_and_give_what_their_text_gives(arguments, plugins) -> None:
    texts = [{"input": f"w4 w{5 + n}"} for n in range(3)]
    ids = [{"input": [4, 5 + n], "labels": [-100, 5 + n]} for n in range(3)]
    engines = ScriptedEngine(), ScriptedEngine()
    one, other = (
        rollout(arguments(rows), plugins, engine).samples for rows, engine in zip((texts, ids), engines, strict=True)
    )
    assert [(s.tokens, s.prompt, s.loss_mask) for s in other] == [(s.tokens, s.prompt, s.loss_mask) for s in one]
    assert [s.tokens[:2] for s in other] == [[4, 5], [4, 5], [4, 6], [4, 6], [4, 7], [4, 7]]


def test_ids_outside_the_vocabulary_are_malformed_rows_and_long_ones_over_long(arguments, plugins) -> None:
    rows = [{"input": [4, 999]}, {"input": [4] * 9}, *({"input": [4, 5 + n]} for n in range(3))]
    with pytest.raises(DataError, match=r"prompts\.jsonl:1: token 2 is 999, but the tokenizer .* below 60 only"):
        rollout(arguments(rows), plugins, ScriptedEngine())
    args = arguments(rows, malformed_row="skip", rollout_max_prompt_len=8)
    output = rollout(args, plugins, ScriptedEngine())
    assert [group[0].tokens[:2] for group in output.groups] == [[4, 5], [4, 6], [4, 7]]
    assert output.metrics["skipped_malformed"] == 1
    assert output.metrics["skipped_over_long_prompt"] == 1
