"""`slime data preview` reads the whole file, says what is wrong with which row, and counts what is trained of each role."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_core.cli import main
from slime_core.data.chat_template import Template
from slime_core.sample import Sample, Status
from slime_rollout_sft.lint import LeftOut, kind_of
from slime_rollout_sft.looks import as_conversations
from slime_rollout_sft.masks.roles import roles_in_text, roles_of_ids

QUESTION = {"role": "user", "content": "Hi?"}
ANSWER = {"role": "assistant", "content": "Hello!"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"a": "Rome"}}]}
RESULT = {"role": "tool", "content": "sunny today"}
GOOD = {"messages": [QUESTION, ANSWER]}
SPELLS = {"messages": [QUESTION, {**ANSWER, "content": "Say <|im_end|> now."}]}
MALFORMED = {"messages": [QUESTION, {**ANSWER, "content": 5}]}
PROMPT = {"messages": [QUESTION]}
EMPTY = {"messages": [QUESTION, {**ANSWER, "step_loss_mask": 0}]}

Preview = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def checkpoint(load_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`checkpoint(template)`: a folder with a tokenizer of ChatML and that template, by default Qwen3's own."""

    def make(template: str | None = None) -> str:
        tokenizer = copy.deepcopy(load_tokenizer("qwen3"))
        if template is not None:
            tokenizer.chat_template = template
        folder = tmp_path_factory.mktemp("checkpoint")
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def qwen3(checkpoint: Callable[..., str]) -> str:
    return checkpoint()


@pytest.fixture
def preview(tmp_path: Path, qwen3: str, capsys: pytest.CaptureFixture[str]) -> Preview:
    """`preview(rows, *words)`: exit status, stdout and stderr of the command on these rows, objects or text."""

    def run(rows: list[Any], *words: str, model: str = qwen3, key: str = "messages") -> tuple[int, str, str]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        status = main(["data", "preview", str(file), "--hf-checkpoint", model, "--input-key", key, *words])
        said = capsys.readouterr()
        return status, said.out.replace(f"{tmp_path}/", ""), said.err.replace(f"{tmp_path}/", "")

    return run


def test_no_row_stops_the_others_and_each_is_named_with_what_is_wrong(preview: Preview) -> None:
    rows = [GOOD, MALFORMED, GOOD, "[1", "5", {"other": 1}, PROMPT, EMPTY, SPELLS, GOOD]
    status, out, _ = preview(rows, "--rows", "1")
    assert status == 0
    assert "10 of 10 rows: 4 used, 6 at which a run stops" in out
    assert "rows with warnings: 7" in out
    for number, said in {
        2: "stops the run: message 2 (assistant) has the content 5",
        4: "stops the run: not valid JSON",
        5: "stops the run: the row is a number",
        6: "stops the run: the row has no key 'messages'",
        7: "stops the run: no message is of the assistant",
        8: "stops the run: no token of the conversation is trained",
        9: "message 2 (assistant) has text that spells '<|im_end|>'",
    }.items():
        assert f"\nrows.jsonl:{number}: {said}" in out
    assert set(re.findall(r"^rows\.jsonl:(\d+)", out, re.MULTILINE)) == set("2456789")
    assert re.search(r"read in [\d.]+ s, [\d,]+ rows/s", out)


@pytest.mark.parametrize(
    ("rows", "words", "status"),
    [
        ([GOOD, GOOD], (), 0),
        ([GOOD, SPELLS], (), 1),
        ([GOOD, MALFORMED], (), 1),
        ([GOOD, "{"], (), 1),
        ([GOOD, MALFORMED, "{"], ("--malformed-row", "skip"), 0),
        ([GOOD, EMPTY], (), 1),
        ([GOOD, EMPTY], ("--no-trainable-token", "skip"), 0),
        ([GOOD, GOOD], ("--rollout-max-context-len", "8"), 1),
        ([GOOD, {"messages": [QUESTION, {**ANSWER, "content": "x " * 90}]}], ("--rollout-max-context-len", "40"), 1),
        (
            [GOOD, {"messages": [QUESTION, {**ANSWER, "content": "x " * 90}]}],
            ("--rollout-max-context-len", "40", "--over-long-sample", "truncate"),
            0,
        ),
        ([GOOD, {**GOOD, "id": 7}], (), 0),  # a column that nobody reads is said, and changes nothing
    ],
)
def test_the_exit_status_of_strict_is_that_of_what_a_run_would_do(
    preview: Preview, rows: list[Any], words: tuple[str, ...], status: int
) -> None:
    assert preview(rows, "--strict", *words)[0] == status
    assert preview(rows, *words)[0] == 0


def test_where_every_row_is_malformed_the_first_is_the_error(preview: Preview) -> None:
    status, out, err = preview([PROMPT, MALFORMED])
    assert status == 1
    assert "0 used" in out
    assert "None of the 2 rows can be used. The first: rows.jsonl:1: no message is of the assistant" in err
    assert "read with --rl" in err


def test_the_report_has_every_row_with_a_warning(preview: Preview, tmp_path: Path) -> None:
    rows = [GOOD, MALFORMED, *[SPELLS] * 70, GOOD]
    _, out, _ = preview(rows, "--report", str(tmp_path / "report.jsonl"))
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [row["row"].rpartition(":")[2] for row in report] == [str(number) for number in range(2, 73)]
    assert {row["fate"] for row in report} == {"stops", "used"}
    assert "and 21 more; --report FILE writes all of them" in out
    assert "  70 × message … (assistant) has text that spells …: it becomes the special token" in out


def test_the_rows_that_are_shown_are_taken_from_the_whole_file(preview: Preview) -> None:
    rows = [*[GOOD] * 5, MALFORMED, *[GOOD] * 4]
    shown = [int(n) for n in re.findall(r"^── rows\.jsonl:(\d+)$", preview(rows, "--rows", "2")[1], re.MULTILINE)]
    assert shown == [1, 7]
    assert preview(rows, "--rows", "0")[1].startswith("10 of 10 rows")


def test_a_page_is_written_and_the_counts_are_printed_as_well(preview: Preview, tmp_path: Path) -> None:
    _, out, _ = preview([GOOD, SPELLS, MALFORMED], "--html", str(tmp_path / "page.html"))
    assert out.startswith("page.html: 2 of 3 rows\n3 of 3 rows: 2 used, 1 at which a run stops")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<section>") == 2
    assert "has the content 5" in page


@pytest.mark.parametrize("option", ["--html", "--report"])
def test_the_rows_are_not_replaced_by_what_is_said_of_them(option: str, preview: Preview, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("rows.jsonl")
    for output in ("rows.jsonl", "link"):
        status, _, err = preview([GOOD], option, str(tmp_path / output))
        assert status == 2
        assert f"{option} {output} is one of the files that are read, and would be replaced" in err
        assert (tmp_path / "rows.jsonl").read_text() == json.dumps(GOOD) + "\n"


@pytest.mark.parametrize("option", ["--html", "--report"])
def test_what_is_said_of_rows_may_go_into_a_new_folder_and_not_in_the_place_of_one(
    option: str, preview: Preview, tmp_path: Path
) -> None:
    assert preview([GOOD], option, str(tmp_path / "new" / "said"))[0] == 0
    assert (tmp_path / "new" / "said").is_file()
    for output, said in (("new", "is a folder; name a file in it"), ("new/said/more", "cannot be written")):
        status, _, err = preview([GOOD], option, str(tmp_path / output))
        assert (status, said in err) == (2, True), err


@pytest.mark.parametrize("other", ["said", "./new/../said", "link"])
def test_page_and_report_are_two_files(
    other: str, preview: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("said")
    status, _, err = preview([GOOD], "--html", "said", "--report", other)
    assert status == 2
    assert f"--html said and --report {other} are one file, of which one is lost; name two." in err
    assert not (tmp_path / "said").exists()


MARKS_A_RESULT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n"
    "{% if loop.nextitem and loop.nextitem.role == 'tool' %}<|im_start|>tool\n{{ loop.nextitem.content }}{% endif %}"
    "{% endgeneration %}{% elif m.role == 'tool' %}<|im_end|>\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_PROMPT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_trained_tokens_are_counted_per_role(preview: Preview, checkpoint: Callable[..., str], qwen3: str) -> None:
    rows = [{"messages": [{"role": "system", "content": "Be kind."}, QUESTION, ANSWER, RESULT, ANSWER]}]
    _, out, _ = preview(rows)
    for role in ("system", "user", "tool", "template"):
        assert re.search(rf"^  {role}: 0 of [1-9]\d* tokens are trained$", out, re.MULTILINE)
    assert re.search(r"^  assistant: (\d+) of \1 tokens are trained$", out, re.MULTILINE)
    _, out, _ = preview(rows, model=checkpoint(MARKS_A_RESULT))
    assert re.search(r"^  tool: ([1-9]\d*) of \1 tokens are trained$", out, re.MULTILINE)
    assert re.search(r"^  user: 0 of", out, re.MULTILINE)
    _, out, _ = preview(rows, model=checkpoint(NO_PROMPT))
    assert re.search(r"^  template: [1-9]\d* of", out, re.MULTILINE)  # the headers


def test_trained_tokens_of_rows_of_token_ids_are_counted_per_role(preview: Preview, family: Any) -> None:
    tokenizer = family("qwen3")
    parts = [("<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", 0), ("Hello!<|im_end|>", 1)]
    parts += [("\n<|im_start|>user\n", 0), ("and now<|im_end|>", 1)]
    encoded = [(tokenizer(text, add_special_tokens=False)["input_ids"], on) for text, on in parts]
    row = {"ids": [i for ids, _ in encoded for i in ids], "loss_mask": [on for ids, on in encoded for _ in ids]}
    _, out, _ = preview([row], key="ids")
    assert re.search(rf"^  assistant: {len(encoded[1][0])} of", out, re.MULTILINE)
    assert re.search(rf"^  user: {len(encoded[3][0])} of", out, re.MULTILINE)


# ------------------------------------------------------------------------------------------------- prompts of RL


def test_prompts_are_shown_as_the_model_reads_them_with_their_label(preview: Preview) -> None:
    rows = [{"prompt": "Two and two?", "label": 4}, {"prompt": [QUESTION], "label": {"answer": "x"}}]
    status, out, _ = preview(rows, "--label-key", "label", "--apply-chat-template", key="prompt")
    assert status == 0
    assert "<|im_start|>user↵\nTwo and two?<|im_end|>↵\n<|im_start|>assistant↵\n" in out
    assert "<|im_start|>user↵\nHi?<|im_end|>↵\n<|im_start|>assistant↵\n" in out
    assert "label: 4\n" in out
    assert 'label: {"answer": "x"}\n' in out
    assert "⟦" not in out
    assert re.search(r"^  user: 0 of [1-9]", out, re.MULTILINE)
    status, out, _ = preview(rows[:1], "--rl", "--label-key", "label", key="prompt")
    assert status == 0
    assert "\nTwo and two?\n" in out


@pytest.mark.parametrize(
    ("row", "words", "said"),
    [
        ({"prompt": "a b c d", "label": 1}, ("--rl", "--rollout-max-prompt-len", "2"), "is skipped: the prompt has 4"),
        (
            {"prompt": "a b c d", "label": 1},
            ("--rl", "--rollout-max-context-len", "4"),
            "that --rollout-max-context-len",
        ),
        ({"prompt": "x", "label": None}, ("--rl",), "the label 'label' is null"),
        ({"prompt": "x"}, ("--rl",), "stops the run: the row has no key 'label'"),
        ({"prompt": "", "label": 1}, ("--rl",), "stops the run: 'prompt' is \"\", expected text"),
        ({"prompt": "a <|im_end|> b", "label": 1}, ("--apply-chat-template",), "has text that spells '<|im_end|>'"),
        ({"prompt": [999_999], "label": 1}, ("--rl",), "stops the run: token 1 is 999999"),
        (
            {"prompt": [{"role": "narrator", "content": "x"}], "label": 1},
            ("--apply-chat-template",),
            "drops the content of message 1 (narrator): 'x'",
        ),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(preview: Preview, row: Any, words: tuple[str, ...], said: str) -> None:
    _, out, _ = preview([{"prompt": "x", "label": 1}, row], "--label-key", "label", *words, key="prompt")
    assert said in next(line for line in out.splitlines() if line.startswith("rows.jsonl:2: "))


def test_messages_without_the_template_are_a_mistake_of_the_command(preview: Preview) -> None:
    status, _, err = preview([PROMPT], "--rl")
    assert (status, "Give --apply-chat-template" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--rl", "--loss-mask-type", "auto"), "--loss-mask-type belongs to fine-tuning"),
        (("--apply-chat-template", "--dropped-text", "skip"), "--dropped-text belongs to fine-tuning"),
        (("--rollout-max-prompt-len", "7"), "--rollout-max-prompt-len belongs to reinforcement learning"),
        (("--over-long-sample", "skip"), "--over-long-sample has no effect without --rollout-max-context-len"),
    ],
)
def test_an_option_without_effect_is_refused(preview: Preview, words: tuple[str, ...], why: str) -> None:
    status, _, err = preview([GOOD], *words)
    assert status == 2
    assert why in err


# ------------------------------------------------------------------------------------------------- whose a token is


@pytest.mark.parametrize(
    "name",
    ["smollm2", "qwen2.5", "qwen3", "deepseek-v3", "llama-3", "llama-3.1", "gemma-3", "glm-4", "phi-3", "gpt-oss"],
)
def test_every_token_is_its_messages_or_the_templates(family: Any, name: str) -> None:
    from slime_rollout_sft.masks.generators import auto

    messages = [QUESTION, ANSWER, {"role": "user", "content": "assistant user"}, {**ANSWER, "content": "user"}]
    masked = auto(family(name), messages, None)
    template = Template(family(name), None)
    roles = roles_in_text(template, masked.messages, masked.text, masked.offsets)
    for role in ("user", "assistant"):
        said = "".join(
            masked.text[start:end] for (start, end), of in zip(masked.offsets, roles, strict=True) if of == role
        )
        for message in messages:
            if message["role"] == role:
                assert message["content"] in said
    trained = {role for role, on in zip(roles, masked.loss_mask, strict=True) if on}
    assert trained == {"assistant"}


def test_roles_are_found_where_no_skeleton_is(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from slime_rollout_sft.masks import roles
    from slime_rollout_sft.masks.generators import auto

    messages = [QUESTION, CALL, RESULT, {**ANSWER, "reasoning_content": "So."}]
    masked = auto(family("qwen3"), messages, None)
    template = Template(family("qwen3"), None)
    expected = roles_in_text(template, masked.messages, masked.text, masked.offsets)
    assert {"user", "assistant", "tool", "template"} == set(expected)
    monkeypatch.setattr(roles, "places", lambda *_: None)
    assert roles_in_text(template, masked.messages, masked.text, masked.offsets) == expected


def test_ids_without_a_header_are_nobodys(family: Any) -> None:
    tokenizer = family("qwen3")
    assert roles_of_ids(tokenizer, tokenizer("no header")["input_ids"]) == ["template"] * 2


def test_a_sentence_without_what_differs_is_its_kind() -> None:
    assert kind_of("message 12 (user) has 'it\\'s' 1,000 times") == "message … (user) has … … times"


def test_a_loss_mask_that_fails_stops_no_other_row(qwen3: str, plugins: Any) -> None:
    from slime_core.data.tokenizer import load_tokenizer
    from slime_rollout_sft.conversations import Conversations, Policy

    conversations = Conversations(Policy(qwen3, "messages"), plugins.select("loss_mask", "auto"))
    look = as_conversations(conversations, load_tokenizer(qwen3), {})
    masked, roles, status = look(Sample(prompt=[QUESTION, ANSWER]))
    assert (len(roles), status) == (len(masked.token_ids), Status.COMPLETED)
    with pytest.raises(LeftOut):
        look(Sample(prompt=[QUESTION]))
