"""The SFT rollout over rows of token ids: the same samples as from the conversations they were made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slime_core.cli import main
from slime_core.data import GlobalDataSource
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import RolloutOutput, Sample, Status, check_rollout
from slime_rollout_sft.arguments import SftArguments
from slime_rollout_sft.rollout import generate_rollout


@pytest.fixture
def roll_out(default_arguments: Any, tmp_path: Path, tiny_model: Path, components: Any) -> Any:
    """`roll_out(rows, **changes)`: one rollout over a file with these rows, as large as it."""

    def run(rows: list[dict[str, Any]], evaluation: bool = False, **changes: Any) -> RolloutOutput:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        own = {"hf_checkpoint": str(tiny_model), "rollout_batch_size": len(rows), "eval_prompt_data": [str(path)]}
        args = default_arguments(path, groups=[SftArguments], **{**own, **changes})
        output = generate_rollout(args, 0, GlobalDataSource(args), evaluation, components=components(args))
        check_rollout(output.groups, need_reward=True)
        return output

    return run


def test_ids_with_a_mask_or_labels_give_the_very_samples_of_the_conversations(roll_out: Any, chat_rows: Path) -> None:
    messages = [json.loads(line)["messages"] for line in chat_rows.read_text().splitlines()[:4]]
    chats = roll_out([{"input": m} for m in messages]).samples
    masks = [[0] * (len(s.tokens) - s.response_length) + (s.loss_mask or []) for s in chats]
    assert all(0 in s.loss_mask[1:] for s in chats)  # the mask has a part that the split alone does not say
    masked = [{"input": s.tokens, "loss_mask": mask} for s, mask in zip(chats, masks, strict=True)]
    labelled = [
        {"input": s.tokens, "labels": [t if m else -100 for t, m in zip(s.tokens, mask, strict=True)]}
        for s, mask in zip(chats, masks, strict=True)
    ]
    for rows in (masked, labelled):
        found = roll_out(rows)
        assert found.metrics == {}
        assert [replace(s, prompt="") for s in found.samples] == [replace(s, prompt="") for s in chats]
        assert found.samples[1].prompt.endswith("<|im_start|>assistant\n")
        assert [s.tokens for s in roll_out(rows, evaluation=True).samples] == [s.tokens for s in chats]


def test_without_a_mask_everything_behind_the_first_token_is_trained(roll_out: Any) -> None:
    (sample,) = roll_out([{"input": [5, 6, 7]}]).samples
    assert (sample.tokens, sample.response_length, sample.loss_mask) == ([5, 6, 7], 2, [1, 1])


def test_over_long_and_untrained_rows_of_ids_follow_the_stated_policies(roll_out: Any) -> None:
    rows = [{"input": [5, 6, 7, 8]}, {"input": [5, 6], "loss_mask": [1, 0]}, {"input": [9, 10]}]
    skipped = roll_out(
        rows, rollout_max_context_len=3, over_long_sample="skip", no_trainable_token="skip", rollout_batch_size=1
    )
    assert [s.tokens for s in skipped.samples] == [[9, 10]]
    assert skipped.metrics == {"skipped_over_long": 1.0, "skipped_no_trainable_token": 1.0}
    (cut,) = roll_out(rows[:1], rollout_max_context_len=3, over_long_sample="truncate").samples
    assert (cut.tokens, cut.status) == ([5, 6, 7], Status.TRUNCATED)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: no token .* is trained.*'loss_mask' or 'labels' trains"):
        roll_out(rows[1:2])


def test_an_id_outside_the_vocabulary_is_a_malformed_row(roll_out: Any) -> None:
    rows = [{"input": [5, 10**6]}, {"input": [9, 10]}]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: token 2 is 1000000, but the tokenizer .* knows ids below \d+"):
        roll_out(rows)
    output = roll_out(rows, malformed_row="skip", rollout_batch_size=1)
    assert [s.tokens for s in output.samples] == [[9, 10]]
    assert output.metrics == {"skipped_malformed": 1.0}


def test_answers_cannot_be_generated_for_rows_of_ids(roll_out: Any) -> None:
    from slime_rollout_sft.answers import question_of

    (sample,) = roll_out([{"input": [5, 6, 7]}]).samples
    with pytest.raises(ArgumentError, match=r"rows\.jsonl:1: --eval-generate needs messages"):
        question_of(sample)


def test_answers_cannot_be_generated_where_images_of_the_question_were_cut_off() -> None:
    from slime_rollout_sft.answers import question_of

    look = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]}
    sample = Sample(prompt=[look, {"role": "assistant", "content": "Both."}], images=[b"1"])
    sample.note(source="rows.jsonl:3")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:3: --eval-generate .* has 2 images, of which 1 fit into --rollout-max"
    ):
        question_of(sample)
    sample.images.append(b"2")
    assert question_of(sample).label == "Both."


def test_the_preview_shows_rows_of_ids(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(json.dumps({"input_ids": [504, 3575], "loss_mask": [0, 1]}) + "\n")
    words = ["data", "preview", str(path), "--input-key", "input_ids", "--hf-checkpoint", str(tiny_model)]
    assert main(words) == 0
    assert "2 tokens, 1 trained (50 %)" in capsys.readouterr().out
