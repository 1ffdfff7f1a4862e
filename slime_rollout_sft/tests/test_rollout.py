"""The SFT rollout: batches keep their size, policies are followed and counted, evaluation is the same every time."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from slime_core.contracts.data import MaskedTokens
from slime_core.data import GlobalDataSource
from slime_core.errors import ArgumentError, DataError
from slime_core.sample import RolloutOutput, Sample, Status, check_rollout
from slime_rollout_sft.arguments import SftArguments
from slime_rollout_sft.conversations import Policy, Unusable, respond
from slime_rollout_sft.rollout import generate_rollout

MASKS = '''
"""Loss-mask generators of somebody's own, named by import path."""
from slime_core.errors import DataError
from slime_core.contracts.data import MaskedTokens

def marked(tokenizer, messages, tools):
    if any(message["content"] == "unrenderable" for message in messages):
        raise DataError("the template does not know what to do with it")
    done = tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return MaskedTokens(done["input_ids"], done["assistant_masks"])
'''
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> "
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }} <end>{% endgeneration %} "
    "{% else %}{{ m.content }} <end> {% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer with one token per word, and a template that marks what the assistant says."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", chat_template=TEMPLATE)
    folder = tmp_path_factory.mktemp("tokenizer")
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def arguments(default_arguments: Any, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`arguments(rows, **changes)`: arguments of a run over a file with these rows."""
    (tmp_path / "own_masks.py").write_text(MASKS)
    monkeypatch.syspath_prepend(tmp_path)

    def make(rows: list[Any], **changes: Any) -> Any:
        path = tmp_path / "train.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        own = {"hf_checkpoint": checkpoint, "loss_mask_type": "own_masks.marked", "rollout_batch_size": 2}
        return default_arguments(path, groups=[SftArguments], **{"input_key": "messages", **own, **changes})

    return make


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


GOOD = [chat("w1", "w2 w3"), chat("w4 w5", "w6")]
LONG = chat("w7", " ".join(["w8"] * 20))
SILENT = {"messages": [{"role": "user", "content": "w9"}]}
UNRENDERABLE = chat("unrenderable", "w1")
TEXT = {"messages": "w1 w2"}


@pytest.fixture
def rollout(components: Any) -> Any:
    """`rollout(args)`: the first rollout, or the next one of a data source that is given; or an evaluation, of a run that is given."""

    def run(
        args: Any, source: GlobalDataSource | None = None, evaluation: bool = False, at_end: ExitStack | None = None
    ) -> RolloutOutput:
        source = source or GlobalDataSource(args)
        return generate_rollout(args, 0, source, evaluation, components=components(args), at_end=at_end)

    return run


def test_a_conversation_becomes_a_sample_whose_response_starts_at_the_first_trained_token(arguments, rollout) -> None:
    output = rollout(arguments(GOOD))
    check_rollout(output.groups, need_reward=True)
    first, second = output.samples
    ids = {word: i for i, word in enumerate(["<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(40))])}
    assert first.tokens == [ids[word] for word in ["<user>", "w1", "<end>", "<assistant>", "w2", "w3", "<end>"]]
    assert (first.response_length, first.loss_mask, first.response) == (3, [1, 1, 1], "w2 w3 <end>")
    assert (first.reward, first.status, first.index, second.index) == (0.0, Status.COMPLETED, 0, 1)
    assert (second.response_length, second.response) == (2, "w6 <end>")
    assert output.metrics == {}


def test_prompts_between_answers_belong_to_the_response_but_are_not_trained(arguments, rollout) -> None:
    row = {"messages": GOOD[0]["messages"] + GOOD[1]["messages"]}
    (sample,) = rollout(arguments([row], rollout_batch_size=1)).samples
    assert sample.response == "w2 w3 <end> <user> w4 w5 <end> <assistant> w6 <end>"
    assert sample.loss_mask == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]


def test_a_group_holds_equal_samples_with_numbers_of_their_own(arguments, rollout) -> None:
    output = rollout(arguments(GOOD, n_samples_per_prompt=2))
    assert [[s.index for s in group] for group in output.groups] == [[0, 1], [2, 3]]
    assert all(a.tokens == b.tokens and a.loss_mask == b.loss_mask for a, b in output.groups)


ERRORS = [
    (
        LONG,
        {"rollout_max_context_len": 8},
        "the conversation has 25 tokens, more than --rollout-max-context-len 8. Raise the limit, shorten the row, "
        "or choose --over-long-sample skip or truncate.",
    ),
    (
        SILENT,
        {},
        "no token of the conversation is trained. It needs an assistant message that is not masked out; "
        "add one, or choose --no-trainable-token skip.",
    ),
    (UNRENDERABLE, {}, "the template does not know what to do with it"),
    (
        TEXT,
        {},
        "'messages' is text, but fine-tuning needs messages, which say what is trained. "
        "Name the column of messages with --input-key, or make one with `slime data convert`.",
    ),
]


@pytest.mark.parametrize(("row", "changes", "message"), ERRORS)
def test_by_default_a_conversation_that_cannot_be_trained_stops_the_run(
    arguments, rollout, row: dict, changes: dict, message: str
) -> None:
    args = arguments([GOOD[0], row], **changes)
    with pytest.raises(DataError) as caught:
        rollout(args)
    assert str(caught.value) == f"{args.prompt_data[0]}:2: {message}"


@pytest.mark.parametrize(
    ("row", "changes", "metric"),
    [
        (LONG, {"rollout_max_context_len": 8, "over_long_sample": "skip"}, "skipped_over_long"),
        (SILENT, {"no_trainable_token": "skip"}, "skipped_no_trainable_token"),
        (UNRENDERABLE, {"malformed_row": "skip"}, "skipped_malformed"),
        (TEXT, {"malformed_row": "skip"}, "skipped_malformed"),
        ("no json", {"malformed_row": "skip"}, "skipped_malformed"),
    ],
)
def test_a_skipped_conversation_is_replaced_by_the_next_and_counted(
    arguments, rollout, row: Any, changes: dict, metric: str
) -> None:
    args = arguments([GOOD[0], row, GOOD[1], row], **changes)
    source = GlobalDataSource(args)
    output = rollout(args, source)
    assert [s.source.rpartition(":")[2] for s in output.samples] == ["1", "3"]
    assert output.metrics == {metric: 1.0}
    assert rollout(args, source).metrics == {metric: 2.0}


def test_an_over_long_conversation_is_cut_and_counted_when_asked_for(arguments, rollout) -> None:
    args = arguments([GOOD[0], LONG], rollout_max_context_len=8, over_long_sample="truncate")
    output = rollout(args)
    whole, cut = output.samples
    assert (len(cut.tokens), cut.response_length, cut.loss_mask) == (8, 4, [1] * 4)
    assert (whole.status, cut.status) == (Status.COMPLETED, Status.TRUNCATED)
    assert output.metrics == {"truncated": 1.0}


def test_cutting_may_leave_nothing_to_train(arguments, rollout) -> None:
    row = chat(" ".join(["w8"] * 20), "w1")
    args = arguments([GOOD[0], row], rollout_max_context_len=8, over_long_sample="truncate")
    with pytest.raises(DataError, match=r"no token of the conversation is trained within its first 8 tokens"):
        rollout(args)
    args.no_trainable_token = "skip"
    assert rollout(args).metrics == {"skipped_no_trainable_token": 1.0}


def test_an_epoch_without_one_usable_row_ends_in_an_error(arguments, rollout) -> None:
    args = arguments([SILENT, SILENT, TEXT], no_trainable_token="skip", malformed_row="skip")
    with pytest.raises(
        DataError,
        match=r"No conversation of a whole epoch \(3 rows\) can be trained: "
        r"2 skipped no trainable token, 1 skipped malformed\.",
    ):
        rollout(args)


def test_the_first_token_is_never_trained() -> None:
    policy = Policy(hf_checkpoint="", input_key="")
    done = respond(Sample(), MaskedTokens([5, 6, 7], [1, 1, 0]), policy)
    assert (done.response_length, done.loss_mask) == (2, [1, 0])
    with pytest.raises(Unusable):
        respond(Sample(), MaskedTokens([5, 6, 7], [1, 0, 0]), policy)
    check_rollout([[done]], need_reward=True)


def test_evaluation_reads_every_row_of_every_set_the_same_each_time(arguments, rollout, tmp_path: Path) -> None:
    args = arguments(GOOD)
    for name, rows in (("easy", GOOD), ("hard", [GOOD[1], SILENT, UNRENDERABLE, LONG])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args.eval_prompt_data = ["e", str(tmp_path / "easy.jsonl"), "h", f"{tmp_path}/hard.jsonl@[:3]"]
    args.malformed_row = args.no_trainable_token = "skip"
    source = GlobalDataSource(args)

    run = ExitStack()
    first = rollout(args, source, evaluation=True, at_end=run)
    check_rollout(first.groups, need_reward=False)
    assert [(s.dataset, s.response) for s in first.samples] == [
        ("e", "w2 w3 <end>"),
        ("e", "w6 <end>"),
        ("h", "w6 <end>"),
    ]
    assert first.metrics == {"skipped_no_trainable_token": 1.0, "skipped_malformed": 1.0}
    assert source.state_dict()["sets"][0]["offset"] == 0
    for sample in first.samples:
        sample.reward = 1.0
        sample.note(dataset="changed by somebody")
    (tmp_path / "easy.jsonl").write_text(json.dumps(GOOD[1]) + "\n")  # tokenised once, not read again
    again = rollout(args, source, evaluation=True, at_end=run)
    assert [s.dataset for s in again.samples] == ["e", "e", "h"]
    assert {s.reward for s in again.samples} == {0.0}
    for later in (ExitStack(), None):  # another run of this process
        assert [s.dataset for s in rollout(args, source, evaluation=True, at_end=later).samples] == ["e", "h"]


def test_an_evaluation_set_without_one_usable_row_is_named(arguments, rollout) -> None:
    args = arguments([SILENT], no_trainable_token="skip")
    args.eval_prompt_data = args.prompt_data
    with pytest.raises(DataError, match=r"No row of the evaluation set train \(.*train\.jsonl\) can be used"):
        rollout(args, evaluation=True)


def test_a_batch_may_span_several_epochs_of_mostly_unusable_rows(arguments, rollout) -> None:
    args = arguments([SILENT, GOOD[0], SILENT], rollout_batch_size=4, no_trainable_token="skip")
    output = rollout(args)
    assert [s.response for s in output.samples] == ["w2 w3 <end>"] * 4
    assert output.metrics == {"skipped_no_trainable_token": 7.0}


def test_a_checkpoint_without_tokenizer_is_named(arguments, rollout, tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=rf"--hf-checkpoint {tmp_path} holds no tokenizer .*: none of tokenizer\.json, .* Copy"
    ):
        rollout(arguments(GOOD, hf_checkpoint=str(tmp_path)))


@pytest.mark.parametrize("name", ["sft", "slime.rollout.sft_rollout.generate_rollout"])
def test_the_rollout_is_selected_by_its_name_and_by_the_one_it_had_in_slime(plugins, name: str) -> None:
    assert plugins.select("rollout", name).target is generate_rollout
