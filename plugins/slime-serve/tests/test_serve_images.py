"""`slime serve` and `slime chat` with images: answers see them, log-probs are those of training, and what cannot be shown is
refused."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from serve_fixtures import NAME, Served, serving
from transformers import AutoModelForImageTextToText
from vision_checkpoints import picture, write_checkpoint

from slime_core.cli import main
from slime_core.data.images import data_url
from slime_core.sample import Sample
from slime_serve import chat
from slime_serve.app import READERS
from slime_serve.model import ServedModel
from slime_serve.prompts import SENT

FIRST, SECOND = picture(60, 40), picture(90, 30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vl"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def seeing(checkpoint: Path) -> Iterator[Served]:
    """A server for a model that reads images."""
    with serving(checkpoint) as running:
        yield running


def question(*urls: Any, text: str = "What is it?") -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def asked(served: Served, messages: list[Any], **more: Any) -> Any:
    return served.openai.chat.completions.create(
        model=NAME, messages=messages, max_tokens=6, temperature=0, logprobs=True,
        extra_body={"return_token_ids": True, "ignore_eos": True}, **more,
    )  # fmt: skip


@pytest.mark.parametrize("images", [[FIRST], [FIRST, SECOND], [SECOND, FIRST]], ids=["one", "two", "turned"])
def test_log_probs_of_an_answer_to_images_are_those_of_training(
    seeing: Served, checkpoint: Path, images: list[bytes]
) -> None:
    answer = asked(seeing, question(*map(data_url, images)))
    prompt, tokens = answer.model_extra["prompt_token_ids"], answer.choices[0].model_extra["token_ids"]
    ids = torch.tensor([[*prompt, *tokens]])
    sample = Sample(tokens=ids[0].tolist(), images=images, response_length=len(tokens))
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    processor = seeing.model.processor
    assert processor is not None
    with torch.no_grad():
        logits = model(input_ids=ids, **processor.alone(sample, ids)).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    found = [entry.logprob for entry in answer.choices[0].logprobs.content]
    assert found == pytest.approx(expected, abs=1e-5)
    other = asked(seeing, question(*[data_url(picture(60, 40, seed=9))] * len(images)))
    assert found != [entry.logprob for entry in other.choices[0].logprobs.content]
    assert answer.usage.prompt_tokens == len(prompt)


def test_base64_alone_is_an_image_too_and_streams_show_the_same(seeing: Served) -> None:
    alike = base64.b64encode(FIRST).decode()
    answer = asked(seeing, question(alike))
    assert (
        answer.model_extra["prompt_token_ids"]
        == asked(seeing, question(data_url(FIRST))).model_extra["prompt_token_ids"]
    )
    streamed = "".join(piece.choices[0].delta.content or "" for piece in asked(seeing, question(alike), stream=True))
    assert streamed == answer.choices[0].message.content


def large() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20000, 20000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/etc/hostname", "No files are read"),
        ("file:///etc/hostname", "No files are read"),
        ("image.png", "No files are read"),
        ("http://127.0.0.1:1/a.png", "addresses are not fetched"),
        ("data:text/plain;base64,AAAA", r"expected data:image/…;base64,…"),
        ("data:image/png;base64,####", "base64 that cannot be read"),
        (data_url(b"broken"), "in no format that is read"),
        (data_url(FIRST[: len(FIRST) // 2]), "cannot be decoded"),
        (data_url(large()), "more than the 67,108,864"),
        ("", "expected a path"),
    ],
    ids=["path", "file", "name", "address", "text", "base64", "broken", "cut", "large", "nothing"],
)
def test_what_is_no_image_in_the_message_is_refused(seeing: Served, url: str, message: str) -> None:
    answer = seeing.post("/v1/chat/completions", {"messages": question(url)})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages"
    assert message in error["message"]
    assert "/etc/hostname: " not in error["message"]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": question(data_url(FIRST))[0]["content"]}], "the model answers in text"),
        (
            [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "data:"}}]}],
            "only parts of the type text and image",
        ),
        ([{"role": "user", "content": "<|image_pad|>"}], "0 images"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not all of them say which image"),
    ],
)
def test_messages_whose_images_have_no_place_are_refused(seeing: Served, messages: list[Any], message: str) -> None:
    answer = seeing.post("/v1/chat/completions", {"messages": messages})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("slow", "others"),
    [(1, question(data_url(FIRST))), (READERS, [{"role": "user", "content": "hi"}])],
    ids=["another image", "all readers, and text"],
)
def test_who_waits_for_a_slow_address_keeps_nobody_else_waiting(
    slow: int, others: list[Any], seeing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeing.service, "images", replace(SENT, fetch=True))
    monkeypatch.setattr("slime_core.data.images._SECONDS", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(slow) as pool, ExitStack() as waiting:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        body = {"messages": question(address)}
        posted = [pool.submit(seeing.post, "/v1/chat/completions", body) for _ in range(slow)]
        for _ in posted:
            waiting.enter_context(silent.accept()[0])
        answered = seeing.post("/v1/chat/completions", {"messages": others, "max_tokens": 1})
        assert (answered.status_code, any(one.done() for one in posted)) == (200, False)
        refused = [one.result(30) for one in posted]
    assert {one.status_code for one in refused} == {400}
    assert "cannot be fetched: it took more than 4 s" in refused[0].json()["error"]["message"]


def test_a_model_that_reads_no_images_refuses_them(served: Served) -> None:
    answer = served.post("/v1/chat/completions", {"messages": question(data_url(FIRST))})
    assert answer.status_code == 400
    assert "the model reads none" in answer.json()["error"]["message"]


def test_chat_shows_images_of_files(
    seeing: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(FIRST)
    (tmp_path / "b.png").write_bytes(SECOND)
    expected = asked(seeing, question(data_url(FIRST), data_url(SECOND))).model_extra["prompt_token_ids"]
    prompts: list[Any] = []
    original = ServedModel.answer

    def answer(self: Any, tokens: list[int], params: Any, likeliest: int = 0, images: Any = ()) -> Any:
        prompts.append((tokens, list(images)))
        return original(self, tokens, params, likeliest, images)

    monkeypatch.setattr(ServedModel, "answer", answer)
    flags = ["--rollout-temperature", "0", "--rollout-max-response-len", "4"]
    files = ["--image", str(tmp_path / "a.png"), "--image", str(tmp_path / "b.png")]
    assert main(["chat", seeing.model.folder, "What is it?", *files, *flags]) == 0
    assert prompts == [(expected, [FIRST, SECOND])]

    lines = iter([f"/image {tmp_path / 'b.png'}", "And this?", "And now?", "/image missing.png", "/image", "/quit"])
    monkeypatch.setattr(chat, "is_a_person_there", lambda: True)
    monkeypatch.setattr(chat, "ask", lambda: next(lines))
    assert main(["chat", seeing.model.folder, *files[:2], *flags]) == 0
    assert [images for _, images in prompts[1:]] == [[FIRST, SECOND]] * 2  # those of earlier turns are seen later too
    err = capfd.readouterr().err
    assert "shows this image, of 3 tokens" in err
    assert "There is no image file missing.png" in err
    assert "Which image?" in err


def test_chat_names_images_that_cannot_be_shown(
    tiny_model: Path, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    for model, message in ((tiny_model, "is shown no images"), (checkpoint, "in no format that is read")):
        assert main(["chat", str(model), "What?", "--image", str(tmp_path / "a.png")]) != 0
        assert message in capfd.readouterr().err
