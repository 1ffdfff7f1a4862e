"""Conversations with images: every form of an image gives the same pixels, the tokens are those of transformers' processors, and what
cannot be trained on is named with file and row."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, TiffImagePlugin, TiffTags
from vision_checkpoints import picture, write_checkpoint

from slime_core.cli import main
from slime_core.data import open_rows
from slime_core.data.image_processor import Processor
from slime_core.data.images import NO_RULES, ImageRules, decode, size_of
from slime_core.data.images import encoded as encoded_of
from slime_core.data.prompts import read_prompt
from slime_core.data.samples import Columns, sample_from_row
from slime_core.data.source import GlobalDataSource
from slime_core.data.vision import load_processor
from slime_core.data.vision_families import QwenProcessor
from slime_core.errors import ArgumentError, DataError
from slime_core.plugins import Plugins
from slime_core.sample import Sample
from slime_rollout_sft.conversations import Conversations, Policy

RAW = picture(60, 40)
URL = "data:image/png;base64," + base64.b64encode(RAW).decode()
COLUMNS = Columns("messages", image_key="images")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("gemma"), "gemma3"))


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("smolvlm"), "smolvlm"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of data with an image in it and one outside of it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(RAW)
    (tmp_path / "outside.png").write_bytes(RAW)
    return tmp_path / "data"


def chat(*content: Any, answer: Any = "ok") -> list[dict[str, Any]]:
    """A question with this content (one text, or parts) and its answer."""
    asked: Any = content[0] if len(content) == 1 and isinstance(content[0], str) else list(content)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def conversations(checkpoint: str, **policy: Any) -> Conversations:
    return Conversations(Policy(checkpoint, "messages", **policy), Plugins().select("loss_mask", "auto"))


def encoded(image: Image.Image, format: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


FORMS: dict[str, Callable[[Path], Any]] = {
    "relative path": lambda folder: "a.png",
    "absolute path": lambda folder: str(folder / "a.png"),
    "file address": lambda folder: f"file://{folder / 'a.png'}",
    "bytes": lambda folder: RAW,
    "bytes and path": lambda folder: {"bytes": RAW, "path": None},
    "path alone": lambda folder: {"bytes": None, "path": "a.png"},
    "data URL": lambda folder: URL,
    "base64": lambda folder: base64.b64encode(RAW).decode(),
    "OpenAI": lambda folder: {"type": "image_url", "image_url": {"url": URL}},
    "Qwen": lambda folder: {"type": "image", "image": "a.png"},
    "Pillow": lambda folder: Image.open(io.BytesIO(RAW)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_pixels(folder: Path, form: str) -> None:
    value, source = FORMS[form](folder), f"{folder}/rows.jsonl:1"
    in_column = sample_from_row(COLUMNS, {"messages": chat("<image>What?"), "images": [value]}, source)
    own = value if isinstance(value, dict) and "type" in value else {"type": "image", "image": value}
    in_part = sample_from_row(Columns("messages"), {"messages": chat(own, {"type": "text", "text": "What?"})}, source)
    for sample in (in_column, in_part):
        assert sample.prompt[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]  # type: ignore[index]  # messages
        assert decode(sample.images[0]).tobytes() == decode(RAW).tobytes()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_pixels_are_those_of_the_processor_bit_for_bit(tmp_path: Path, family: str) -> None:
    processor = load_processor(str(write_checkpoint(tmp_path / "model", family)))
    assert isinstance(processor, QwenProcessor)
    images = [picture(*size) for size in ((64, 32), (20, 90), (300, 500), (33, 31))]
    for some in (images, images[:1]):
        found = processor.features(some)
        expected = Processor.features(processor, some)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert all(found[name].dtype == expected[name].dtype for name in found)
    with pytest.raises(ValueError, match="aspect ratio"):
        processor.features([encoded(Image.new("L", (4000, 10)))])


def test_base64_of_megabytes_is_not_looked_for_among_files(folder: Path) -> None:
    """As a path it has thousands of folders, and took minutes."""
    large = encoded(Image.effect_noise((1000, 1000), 100).convert("RGB"), "BMP")
    started = time.perf_counter()
    assert encoded_of(base64.b64encode(large).decode(), folder, NO_RULES) == large
    assert time.perf_counter() - started < 5


def test_a_jpeg_of_which_less_is_enough_is_decoded_smaller_and_shows_the_same() -> None:
    large = encoded(Image.linear_gradient("L").resize((1600, 800)).convert("RGB"), "JPEG")
    small = decode(large, side=96)
    assert 96 <= min(small.size) < 800
    difference = ImageChops.difference(decode(large).resize(small.size), small)
    assert max(high for _, high in difference.getextrema()) <= 4
    assert decode(RAW, side=2).size == decode(RAW).size, "a PNG as it is"


def test_images_take_their_places_in_order_and_a_row_may_have_none(folder: Path) -> None:
    second = picture(30, 30)
    messages = [*chat("a <image> b"), *chat({"type": "text", "text": "c"}, {"type": "image"})]
    sample = sample_from_row(COLUMNS, {"messages": messages, "images": [RAW, second]}, f"{folder}/r:1")
    assert sample.images == [RAW, second]
    assert [part["type"] for part in sample.prompt[0]["content"]] == ["text", "image", "text"]  # type: ignore[index]  # messages
    assert sample_from_row(COLUMNS, {"messages": chat("no image")}, "r:1").images == []
    assert sample_from_row(Columns("messages"), {"messages": chat("an <image> tag")}, "r:1").images == []


UNSAID: dict[str, dict[str, Any]] = {
    "the type alone": {},
    "an index": {"index": 1},
    "keys of text parts": {"index": 1, "text": None},
    "an empty text": {"text": ""},
    "keys of other images": {"image": None, "image_url": None, "max_pixels": None},
}


@pytest.mark.parametrize("keys", UNSAID.values(), ids=UNSAID)
def test_a_part_that_does_not_say_which_image_takes_the_next(folder: Path, keys: dict[str, Any]) -> None:
    second = picture(30, 30)
    messages = [*chat("<image>"), *chat({"type": "image", **keys}, {"type": "text", "index": None, "text": "c"})]
    sample = sample_from_row(COLUMNS, {"messages": messages, "images": [RAW, second]}, f"{folder}/r:1")
    assert sample.images == [RAW, second]
    assert sample.prompt[2]["content"][0] == {"type": "image"}  # type: ignore[index]  # messages


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file of any size, with next to no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


TWO_FRAMES = encoded(
    Image.new("L", (8, 8)), "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 255)], duration=10
)
BAD: dict[str, tuple[Any, str]] = {
    "fewer images than places": ((chat("<image><image>"), [RAW]), "has 1 images, but its messages have 2 places"),
    "more images than places": ((chat("<image>"), [RAW, RAW]), "has 2 images, but its messages have 1 places"),
    "no place at all": ((chat("What?"), [RAW]), "has 1 images, but its messages have 0 places"),
    "place without column": ((chat({"type": "image"}), None), "has 0 images, but its messages have 1 places"),
    "text of a part": ((chat({"type": "text", "text": "<image>"}), [RAW]), "0 places for images; .*, whose texts are not searched"),
    "another index": ((chat({"type": "image", "index": 1}, {"type": "image", "index": 0}), [RAW, RAW]), "has 'index' 1, expected 0: "),
    "an index twice": ((chat({"type": "image", "index": 0}, {"type": "image", "index": 0}), [RAW, RAW]), "image 2: .*expected 1: "),
    "an index that is text": ((chat({"type": "image", "index": "0"}), [RAW]), "has 'index' \"0\", expected 0: "),
    "a caption": ((chat({"type": "image", "text": "a cat"}), [RAW]), "object with text; expected 'bytes'"),
    "a size in a part": ((chat({"type": "image", "max_pixels": 784}), [RAW]), "has max_pixels, a size of its own"),
    "another program's image": ((chat({"type": "image", "source": {"data": "x"}}), [RAW]), "object with source; expected 'bytes'"),
    "place in an answer": ((chat("<image>", answer="<image>"), [RAW, RAW]), r"message 2 \(assistant\) has an image"),
    "part in an answer": ((chat("x", answer=[{"type": "image", "image": RAW}]), None), "message 2 .* has an image"),
    "missing file": ((chat("<image>"), ["b.png"]), 'image 1: there is no image file "b.png"; paths are relative'),
    "outside of the folder": ((chat("<image>"), ["../outside.png"]), "lies outside of .*--image-folders"),
    "absolute and outside": ((chat("<image>"), ["/etc/hostname"]), "lies outside of"),
    "a folder": ((chat("<image>"), ["."]), "there is no image file"),
    "null byte": ((chat("<image>"), ["a\x00.png"]), "cannot be read"),
    "address": ((chat("<image>"), ["https://localhost/x.png"]), "addresses are not fetched; .*--fetch-images"),
    "other data URL": ((chat("<image>"), ["data:text/plain;base64,aGk="]), "expected data:image/"),
    "broken base64": ((chat("<image>"), ["data:image/png;base64,%%%"]), "base64 that cannot be read"),
    "a number": ((chat("<image>"), [7]), "an image is 7; expected a path"),
    "null": ((chat("<image>"), [None]), "an image is null; expected a path|an image is None; expected a path"),
    "empty text": ((chat("<image>"), [""]), "expected a path"),
    "no bytes": ((chat("<image>"), [b""]), "has no bytes"),
    "unknown object": ((chat("<image>"), [{"file": "a.png"}]), "object with file; expected 'bytes'"),
    "a size of its own": ((chat("<image>"), [{"image": RAW, "max_pixels": 784}]), "image 1: an image has max_pixels, a size of"),
    "no image": ((chat("<image>"), [b"hello, world"]), "image 1: an image of 12 bytes is in no format that is read"),
    "a program": ((chat("<image>"), [b"%!PS-Adobe-3.0 EPSF-3.0\n"]), "in no format that is read"),
    "truncated PNG": ((chat("<image>"), [RAW[:900]]), "cannot be decoded: .*truncated|cannot be decoded"),
    "truncated JPEG": ((chat("<image>"), [picture(60, 40, format="JPEG")[:900]]), "cannot be decoded: .*truncated"),
    "too many pixels": ((chat("<image>"), [png(20_000, 20_000)]), "more than the 67,108,864 pixels that are decoded"),
    "no pixels in the file": ((chat("<image>"), [png(40, 40)]), "cannot be decoded"),
    "animated": ((chat("<image>"), [TWO_FRAMES]), "has 2 frames; only still images"),
    "too long and thin": ((chat("<image>"), [picture(1, 300)]), "processor refuses it: absolute aspect ratio"),
    "floating point": ((chat("<image>"), [encoded(Image.new("F", (40, 40)), "TIFF")]), "whose white nobody knows"),
    "text spells an image": ((chat("<image> <|image_pad|>"), [RAW]), "1 images, and the rendering .* 2 times"),
    "text spells an image, none there": ((chat("<|image_pad|>"), None), "has 1 image tokens, and its 0 images"),
    "video": ((chat({"type": "video", "video": "a.mp4"}), None), "has the part .*video.*only parts of the type text and image"),
    "key of a message": (([{"role": "user", "content": "x", "images": [1]}, *chat("x")[1:]], None), "has the key 'images'"),
    "somebody's folder": ((chat("<image>"), ["~nobody-of-this-name/a.png"]), "cannot be read: .*home directory"),
    "text without a place": (("a text", [RAW]), "has 1 images, but its messages have 0 places"),
    "text without an image": (("an <image>", []), "has 0 images, but its messages have 1 places"),
    "token ids": (([1, 2, 3], [RAW]), "is neither text nor a list of messages, in which"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(qwen: str, folder: Path, name: str) -> None:
    (messages, images), message = BAD[name]
    row = {"messages": messages, "images": images} if images is not None else {"messages": messages}
    where = f"{folder}/rows.jsonl:3"
    with pytest.raises(DataError, match=message) as raised:
        conversations(qwen).complete(sample_from_row(COLUMNS, row, where))
    assert str(raised.value).startswith(f"{where}: ")
    try:
        sample = sample_from_row(COLUMNS, row, where)
    except DataError:
        return  # the data source skips it
    skipping = conversations(qwen, malformed_row="skip")
    assert skipping.complete(sample) is None
    assert skipping.counts == {"skipped_malformed": 1}


def test_a_text_with_images_is_one_message_of_the_user(folder: Path) -> None:
    (folder / "a b.png").write_bytes(RAW)
    address = (folder / "a b.png").as_uri()
    text, messages = (
        sample_from_row(COLUMNS, {"messages": prompt, "images": [address]}, f"{folder}/rows.jsonl:1")
        for prompt in ("Look: <image> What is it?", [{"role": "user", "content": "Look: <image> What is it?"}])
    )
    assert (text.prompt, text.images) == (messages.prompt, messages.images)
    assert text.images == [RAW]
    for images in ({}, {"images": None}, {"images": []}):
        assert sample_from_row(COLUMNS, {"messages": "What is it?", **images}, "r:1").prompt == "What is it?"


CMYK = encoded(Image.new("CMYK", (30, 30), (0, 255, 255, 0)), "JPEG", quality=95)
CLEAR = encoded(Image.new("RGBA", (30, 30), (0, 0, 0, 0)))
PALETTE = encoded(Image.new("RGB", (30, 30), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE))
DEEP = encoded(Image.frombytes("I;16", (30, 30), struct.pack("<900H", *[32768] * 900)))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # it lies on its side
TURNED = encoded(Image.open(io.BytesIO(RAW)), "JPEG", exif=EXIF)
PHOTO = encoded(
    Image.new("RGB", (30, 30), (250, 9, 9)), "MPO", save_all=True, append_images=[Image.new("RGB", (15, 15))]
)


@pytest.mark.parametrize(
    ("data", "size", "pixel"),
    [(CMYK, (30, 30), (254, 0, 0)), (CLEAR, (30, 30), (255, 255, 255)), (PALETTE, (30, 30), (10, 200, 30)),
     (DEEP, (30, 30), (128, 128, 128)), (picture(1, 1), (1, 1), None), (TURNED, (40, 60), None),
     (PHOTO, (30, 30), (250, 9, 9))],
    ids=["CMYK", "transparent", "palette", "16 bits", "1 x 1", "turned", "a photo with its preview"],
)  # fmt: skip
def test_unusual_images_have_the_colours_that_they_mean(
    qwen: str, data: bytes, size: tuple[int, int], pixel: tuple[int, int, int] | None
) -> None:
    image = decode(data)
    assert (image.mode, image.size) == ("RGB", size)
    if pixel is not None:
        assert image.getpixel((15, 15)) == pytest.approx(pixel, abs=3)
    done = conversations(qwen).complete(
        sample_from_row(COLUMNS, {"messages": chat("<image>"), "images": [data]}, "r:1")
    )
    assert done is not None
    assert done.tokens.count(260) >= 1


def oriented(format: str, orientation: int | str) -> bytes:
    """An image of 60 × 20 pixels with an EXIF orientation, be it one that there is not."""
    entries = TiffImagePlugin.ImageFileDirectory_v2()
    entries.tagtype[0x0112] = TiffTags.ASCII if isinstance(orientation, str) else TiffTags.SHORT
    entries[0x0112] = orientation
    exif = entries if format == "TIFF" else b"Exif\0\0II*\0\x08\0\0\0" + entries.tobytes(8)
    return encoded(Image.new("RGB", (60, 20)), format, **{"tiffinfo" if format == "TIFF" else "exif": exif})


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_size_that_is_counted_is_the_decoded_one_whatever_the_orientation(format: str) -> None:
    for orientation in (*range(10), 42, 65535, "6"):
        data = oriented(format, orientation)
        assert size_of(data) == decode(data).size == ((20, 60) if orientation in (5, 6, 7, 8) else (60, 20))
    assert size_of(encoded(Image.new("RGB", (60, 20)), format)) == (60, 20)


def test_files_outside_and_addresses_are_read_where_that_is_asked_for(folder: Path) -> None:
    rules = ImageRules((str(folder.parent),))
    row = {"messages": chat("<image>"), "images": ["outside.png"]}
    sample = sample_from_row(Columns("messages", image_key="images", images=rules), row, f"{folder}/r:1")
    assert sample.images == [RAW]
    link = folder / "link.png"
    link.symlink_to(folder.parent / "outside.png")
    with pytest.raises(DataError, match="lies outside"):
        sample_from_row(COLUMNS, {**row, "images": ["link.png"]}, f"{folder}/r:1")
    fetching = Columns("messages", image_key="images", images=ImageRules(fetch=True))
    for address in ("http://127.0.0.1:9/x.png", "http://127.0.0.1:no-port/x.png"):
        with pytest.raises(DataError, match="cannot be fetched"):
            sample_from_row(fetching, {**row, "images": [address]}, f"{folder}/r:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_image_splitting": True}, "splits images into tiles"),
        ({"max_image_size": {"longest_edge": 60}}, r"60 × 60 pixels .* squares of 28"),
        ({"image_mean": [0.0, 0.0, 0.0]}, "makes zeros of a colour"),
        ({"do_normalize": False}, "makes zeros of a colour"),
    ],
)
def test_images_of_smolvlm_that_the_model_would_not_take_as_they_are_are_refused(
    smolvlm: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(smolvlm, tmp_path / "changed")
    file = tmp_path / "changed" / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ArgumentError, match=message):
        load_processor(str(tmp_path / "changed"))


def test_the_samples_of_a_group_share_an_image_which_is_stored_and_read_again(
    folder: Path, default_arguments: Any
) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"messages": chat("<image>"), "images": ["a.png"]}) + "\n")
    args = default_arguments(rows, input_key="messages", multimodal_keys={"image": "images"}, n_samples_per_prompt=3)
    source = GlobalDataSource(args)
    (group,) = source.get_samples(1)
    assert len({id(sample.images[0]) for sample in group}) == 1
    source.add_samples([group])
    other = GlobalDataSource(args)
    other.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert [sample.images for sample in other.buffer[0]] == [[RAW]] * 3
    assert len({id(sample.images[0]) for sample in other.buffer[0]}) == 1
    assert "images" not in Sample().to_dict()


INLINE = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}]
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("where", ["beside", "elsewhere"])
@pytest.mark.parametrize(
    ("row", "format", "keyed", "count"),
    [
        (
            {"conversations": [{"from": "human", "value": "<image>a<image>"}, {"from": "gpt", "value": "b"}]}
            | {"images": ["a.png", {"bytes": None, "path": "a.png"}]},
            "openhermes",
            True,
            2,
        ),
        ({"prompt": "<image>q", "response": "r", "images": ["a.png"]}, "verl", True, 1),
        ({"messages": [*INLINE, ANSWER]}, "messages", False, 1),
        ({"messages": [*INLINE, ANSWER], "images": None}, "messages", True, 1),
        ({"messages": chat("t")}, "messages", True, 0),
    ],
    ids=["openhermes", "verl", "inline", "inline-keyed", "text"],
)
def test_converted_rows_show_the_images_that_they_showed(
    folder: Path, tmp_path: Path, row: dict[str, Any], format: str, keyed: bool, count: int, where: str, suffix: str
) -> None:
    (folder / "in.jsonl").write_text(json.dumps(row) + "\n")
    output = (folder if where == "beside" else tmp_path / "new") / f"out.{suffix}"
    keys = ["--multimodal-keys", '{"image": "images"}'] if keyed else []
    assert main(["data", "convert", str(folder / "in.jsonl"), str(output), "--from", format, *keys]) == 0
    (written,) = open_rows([str(output)])
    columns = Columns("messages", None, "tools", "metadata", "images" if keyed else None)
    sample = sample_from_row(columns, written, f"{output}:1")
    assert sample.images == [RAW] * count
    assert ("a.png" in json.dumps(written)) == (where == "beside" and bool(sample.images))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": chat("<image>"), "images": []}, "the row has 0 images, but its messages have 1 places"),
        ({"messages": chat("t"), "images": ["a.png"]}, "the row has 1 images, but its messages have 0 places"),
        ({"messages": chat("<image>"), "images": ["../a.png"]}, "lies outside of"),
        ({"messages": chat("<image>"), "images": ["http://localhost/a.png"]}, "addresses are not fetched"),
    ],
)
def test_rows_whose_images_do_not_fit_are_not_converted(
    folder: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], message: str
) -> None:
    (folder / "in.jsonl").write_text(json.dumps(row) + "\n")
    files = [str(folder / "in.jsonl"), str(folder / "out.jsonl")]
    assert main(["data", "convert", *files, "--from", "messages", "--multimodal-keys", '{"image": "images"}']) != 0
    said = capsys.readouterr().err
    assert message in said
    assert "in.jsonl:1" in said
    assert not (folder / "out.jsonl").exists()


def transformers_ids(checkpoint: str, messages: list[Any], images: list[bytes]) -> Any:
    """What transformers' own processor makes of a conversation, without the part of it that needs torchvision."""
    from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

    class ImagesOnly(Qwen2_5_VLProcessor):
        """The processor without its videos."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = 260, 261
            ProcessorMixin.__init__(self, image_processor, tokenizer)

    tokenizer, images_of = (
        AutoTokenizer.from_pretrained(checkpoint),
        AutoImageProcessor.from_pretrained(checkpoint, backend="pil"),
    )
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    if "qwen" in checkpoint:
        processor: Any = ImagesOnly(images_of, tokenizer)
    elif "smolvlm" in checkpoint:
        processor = Idefics3Processor(images_of, tokenizer, image_seq_len=4)
        processor.image_token, processor.image_token_id = "<|image_pad|>", 260
    else:
        tokenizer.boi_token, tokenizer.eoi_token, tokenizer.image_token = (
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
        )
        tokenizer.boi_token_id, tokenizer.image_token_id = 258, 260
        processor = Gemma3Processor(images_of, tokenizer, image_seq_length=4)
    return processor(text=[text], images=[[decode(data) for data in images]], return_tensors="pt")


@pytest.mark.parametrize("family", ["qwen", "gemma", "smolvlm"])
def test_tokens_and_pixels_are_those_of_transformers_processor(request: Any, family: str) -> None:
    checkpoint = request.getfixturevalue(family)
    images = [RAW, picture(90, 30)]
    row = {"messages": [*chat("a<image>b", answer="one"), *chat("<image>c", answer="two")], "images": images}
    sample = sample_from_row(COLUMNS, row, "r:1")
    done = conversations(checkpoint).complete(sample)
    assert done is not None
    expected = transformers_ids(checkpoint, sample.prompt, images)  # type: ignore[arg-type]  # messages
    assert done.tokens == expected["input_ids"][0].tolist()
    processor = load_processor(checkpoint)
    assert processor is not None
    pixels = processor.features(images)["pixel_values"]
    assert (pixels == expected["pixel_values"].view_as(pixels)).all()
    assert processor.counts(images) == processor.tokens(processor.features(images))
    first = len(done.tokens) - done.response_length
    trained = [token for token, on in zip(done.tokens[first:], done.trained_mask, strict=True) if on]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.decode(trained) == "one<|im_end|>two<|im_end|>"

    asked = replace(sample, prompt=sample.prompt[:-1])
    args: Any = SimpleNamespace(chat_template_date=None, apply_chat_template_kwargs={})
    prompt = read_prompt(asked, tokenizer, args, True, processor)
    assert prompt.text == tokenizer.apply_chat_template(asked.prompt, tokenize=False, add_generation_prompt=True)
    assert prompt.tokens == done.tokens[: len(prompt.tokens)]


def test_a_long_conversation_is_never_cut_inside_of_an_image(qwen: str) -> None:
    images = [RAW, picture(90, 30)]
    row = {"messages": [*chat("<image>", answer="one"), *chat("<image>", answer="two")], "images": images}
    whole = conversations(qwen).complete(sample_from_row(COLUMNS, row, "r:1"))
    assert whole is not None
    kept = set()
    for limit in range(whole.tokens.index(257) + 20, len(whole.tokens)):
        done = conversations(qwen, rollout_max_context_len=limit, over_long_sample="truncate").complete(
            sample_from_row(COLUMNS, row, "r:1")
        )
        assert done is not None
        assert len(done.tokens) <= limit
        counts = load_processor(qwen).counts(done.images)  # type: ignore[union-attr]  # it is one that reads images
        assert done.tokens.count(260) == sum(counts)
        kept.add(len(done.images))
    assert kept == {1, 2}
    with pytest.raises(DataError, match=f"has {len(whole.tokens)} tokens, more than"):
        conversations(qwen, rollout_max_context_len=20).complete(sample_from_row(COLUMNS, row, "r:1"))


def test_the_sizes_of_images_are_bounded_by_the_options(qwen: str, gemma: str, tiny_model: Path) -> None:
    large = picture(200, 150)
    counts = {most: load_processor(qwen, None, most).counts([large])[0] for most in (784, 784 * 4, 784 * 9)}  # type: ignore[union-attr]  # it is one
    assert counts == {784: 1, 784 * 4: 2, 784 * 9: 6}
    assert load_processor(qwen, 784 * 12, None).counts([picture(28, 28)]) == [16]  # type: ignore[union-attr]  # it is one
    with pytest.raises(ArgumentError, match="is above --image-max-pixels"):
        load_processor(qwen, 2000, 1000)
    with pytest.raises(ArgumentError, match="makes every image the same size"):
        load_processor(gemma, None, 1000)
    with pytest.raises(ArgumentError, match="reads no images here"):
        load_processor(str(tiny_model), None, 1000)


def test_images_for_a_model_that_reads_none_and_text_alone_for_one_that_does_are_refused(
    qwen: str, tiny_model: Path, folder: Path, capfd: Any
) -> None:
    shown, plain = folder / "shown.jsonl", folder / "plain.jsonl"
    shown.write_text(json.dumps({"messages": chat("<image>"), "images": ["a.png"]}) + "\n")
    plain.write_text(json.dumps({"messages": chat("x")}) + "\n")
    run = ["--input-key", "messages", "--rollout-function-path", "sft", "--loss-type", "sft_loss", "--num-rollout", "1"]
    run += ["--debug-train-only", "--disable-compute-advantages-and-returns", "--rollout-batch-size", "1"]
    keys = ["--multimodal-keys", '{"image": "images"}']

    def told(checkpoint: str | Path, rows: Path, *more: str) -> tuple[int, str]:
        status = main(["check", "--hf-checkpoint", str(checkpoint), "--prompt-data", str(rows), *run, *more])
        return status, "".join(capfd.readouterr())

    assert told(qwen, shown, *keys)[0] == 0
    assert told(qwen, plain, "--text-only")[0] == 0
    for checkpoint, rows, more, message in (
        (qwen, plain, [], "reads images, and none of the first 1,000 rows"),
        (qwen, plain, keys, "--text-only"),
        (qwen, shown, [], "name the column of images with --multimodal-keys"),
        (qwen, shown, [*keys, "--text-only"], "the row has images, and --text-only"),
        (tiny_model, shown, keys, "the row has images, and the checkpoint .* reads none"),
        (tiny_model, plain, ["--text-only"], "reads no images anyway"),
        (tiny_model, plain, ["--freeze-vision"], "has no vision tower"),
    ):
        status, text = told(checkpoint, rows, *more)
        assert status
        assert re.search(message, text), text


def test_the_preview_shows_every_image_with_its_tokens(qwen: str, folder: Path, capsys: Any) -> None:
    rows, page = folder / "rows.jsonl", folder / "page.html"
    rows.write_text(json.dumps({"messages": chat("<image>"), "images": ["a.png"]}) + "\n")
    given = ["data", "preview", str(rows), "--hf-checkpoint", qwen, "--input-key", "messages"]
    given += ["--multimodal-keys", '{"image": "images"}']
    assert main(given) == 0
    line = f"image 1: 60 × 40 pixels, {len(RAW):,} bytes, tokens 8 to 9 (2)"
    assert line in capsys.readouterr().out
    assert main([*given, "--html", str(page)]) == 0
    assert f'alt="{line}"' in page.read_text()
