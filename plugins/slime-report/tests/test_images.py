"""A report shows the images of recorded samples, and names a run whose images show nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser
from opened_pages import shown, texts
from PIL import Image
from synthetic_reports import report_of, run
from vision_checkpoints import picture, write_checkpoint
from written_runs import keep, sample, tuned, write_run

from slime_core.cli import main
from slime_core.run.tracking import read_metrics
from slime_core.sample import Sample
from slime_report.page import render
from slime_report.reading.run import RunReader
from slime_report.recording.pictures import SIDES, image_rows
from slime_report.recording.rows import Kept
from slime_report.report import Picture, Run, SampleRow

SFT = {"n_samples_per_prompt": 1, "disable_compute_advantages_and_returns": True}


def read(folder: Path) -> Run:
    return RunReader(folder).read(1_000_000)


def white(number: int) -> bytes:
    """An image without content: its size differs from row to row, and so do its bytes."""
    buffer = io.BytesIO()
    Image.new("RGBA", (40 + number, 30), (0, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[int], bytes]], Path]:
    """`trained(name, image)` fine-tunes a tiny model on rows of one or two images for two rollouts, and returns its folder."""
    folder = tmp_path_factory.mktemp("vision")
    checkpoint = write_checkpoint(folder / "model", "qwen2_5_vl")

    def make(name: str, image: Callable[[int], bytes]) -> Path:
        rows = []
        for number in range(8):
            images = [image(2 * number + place) for place in range(1 + number % 2)]
            text = "<image>" * len(images) + f"What is {number}?"
            messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"It is {number}."}]
            rows.append({"messages": messages, "images": [base64.b64encode(data).decode() for data in images]})
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [
            *("--hf-checkpoint", checkpoint, "--rollout-function-path", "sft", "--debug-train-only"),
            *("--prompt-data", data, "--input-key", "messages", "--multimodal-keys", '{"image": "images"}'),
            *("--num-rollout", "2", "--rollout-batch-size", "4", "--loss-type", "sft_loss", "--lr", "1e-3"),
            *("--calculate-per-token-loss", "--disable-compute-advantages-and-returns"),
            *("--use-dynamic-batch-size", "--max-tokens-per-gpu", "400", "--run-dir", folder / name),
        ]
        assert main(["train", *map(str, words)]) == 0
        return folder / name

    return make


def test_a_run_with_images_shows_them_with_their_tokens_and_counts_them(trained):
    made = trained("real", lambda number: picture(40 + number, 30, seed=number))
    found = read(made)
    assert found.alarms == []
    assert len(found.samples.rows) == 8
    for row in found.samples.rows:
        assert len(row.images) in (1, 2)
        for image in row.images:
            assert image.size is not None
            assert image.tokens == image.pieces, "nothing is cut here"
            first, end = image.pieces
            assert set(row.pieces[first:end]) == {"<|image_pad|>"}
            assert row.pieces[first - 1] == "<|vision_start|>"
            assert row.pieces[end] == "<|vision_end|>"
            small = Image.open(io.BytesIO(base64.b64decode(image.png)))
            assert small.size == image.size, "a small image is kept as it is"
            assert not image.blank
    for line in read_metrics(made / "metrics.jsonl"):
        own = [row for row in found.samples.rows if row.step == line["rollout_id"] + 1]
        assert line["rollout/images"] == sum(len(row.images) for row in own)
        assert line["rollout/image_tokens"] == sum(end - first for row in own for first, end in _tokens(row))
    assert "images" in {chart.id for chart in found.charts}


def _tokens(row: SampleRow) -> list[tuple[int, int]]:
    return [image.tokens for image in row.images if image.tokens]


def test_a_run_whose_images_are_blank_is_named(trained):
    found = read(trained("blank", white))
    assert [alarm.id for alarm in found.alarms] == ["blank_images"]
    assert found.alarms[0].text.startswith("100% of the 12 recorded images are blank")
    assert "threshold: 90%" in found.alarms[0].text
    assert found.alarms[0].chart == "images"
    assert any(row.id == found.alarms[0].sample for row in found.samples.rows)


def with_images(rollout: int, place: int, *pixels: str, blank: bool = False, prompt: str = "") -> dict:
    known = {"bytes": 90, "size": [8, 8], "png": None, "blank": blank, "tokens": [1, 2], "pieces": [1, 2]}
    images = [{**known, "pixels": name} for name in pixels]
    return sample(rollout, place, prompt=prompt or f"p{rollout}-{place}", images=images)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([with_images(0, n, "a") for n in range(4)], ["same_image"]),
        ([with_images(0, n, "a", "b") for n in range(4)], ["same_image"]),
        ([with_images(n, 0, "a", prompt="the only row") for n in range(8)], []),
        ([with_images(0, n, "a") for n in range(3)], []),
        ([with_images(0, n, "a" if n % 5 else "b") for n in range(20)], []),
        ([with_images(0, n, f"{n}", blank=n % 2 == 0) for n in range(8)], []),
        ([with_images(0, n, "a", blank=True) for n in range(8)], ["blank_images"]),
        ([with_images(0, 0, "a", blank=True), *(sample(0, n) for n in range(1, 9))], ["blank_images"]),
        ([sample(0, n) for n in range(8)], []),
    ],
)
def test_images_that_tell_nothing_are_named_and_others_are_not(tmp_path, rows, expected):
    made = write_run(tmp_path / "run", tuned, arguments=SFT, evaluate=None)
    keep(made, rows)
    assert [alarm.id for alarm in read(made).alarms] == expected


def test_an_image_is_found_again_in_a_sample_that_is_cut(tmp_path):
    pad, text = 9, 1
    tokens = [text] * 6 + [pad] * 4 + [text] * 10 + [pad] * 4 + [text] * 76
    one = Sample(tokens=tokens, response_length=78, images=[picture(20, 20), picture(20, 20, 1)])

    class Processor:
        token = pad

        def counts(self, images, whole):
            return [4] * len(images)

    kept = Kept.of_sample(one, 48)  # 12 of the prompt, 18 and 18 of the response
    first, second = image_rows(one, kept, Processor(), 10_000)
    assert (first["tokens"], first["pieces"]) == ([6, 10], None), "left out with the beginning of the prompt"
    assert (second["tokens"], second["pieces"]) == ([20, 24], [10, 14])
    made = write_run(tmp_path / "run", tuned, 1, arguments=SFT, evaluate=None)
    pieces = [f"{n}" for n in range(48)]
    left_out = {"prompt": 10, "at": 18, "response": 42}
    keep(made, [sample(0, 0, pieces=pieces, prompt_tokens=12, mask="1" * 36, left_out=left_out, images=[second])])
    row = read(made).samples.rows[0]
    begin, end = row.images[0].pieces
    assert row.pieces[begin:end] == ["10", "11", "12", "13"]


@pytest.mark.parametrize(("count", "room", "side"), [(1, 20_000, SIDES[0]), (4, 20_000, SIDES[1]), (40, 20_000, None)])
def test_thumbnails_keep_within_their_room_and_get_smaller_before_any_is_left_out(count, room, side):
    one = Sample(tokens=[1], response_length=1, images=[picture(300, 200, n) for n in range(count)])
    pngs = [row["png"] for row in image_rows(one, Kept.of_sample(one, 10), None, room)]
    there = [png for png in pngs if png]
    assert sum(map(len, there)) <= room
    if side is None:
        assert 0 < len(there) < count, "some do not fit at all"
        side = SIDES[-1]
    sizes = {Image.open(io.BytesIO(base64.b64decode(png))).size for png in there}
    assert sizes == {(side, round(side * 2 / 3))}


def test_the_page_shows_images_and_goes_to_their_tokens(browser: Browser, tmp_path):
    made = run(samples=2, steps=4)
    png = base64.b64encode(picture(8, 8)).decode()
    pictures = [
        Picture((8, 8), 300, (2, 4), (2, 4), False, "a", png),
        Picture((500, 400), 9000, (4, 6), (4, 6), True, "b", None),
        Picture((8, 8), 300, (0, 1), None, False, "c", '"><script>window.attacked = 1</script>'),
    ]
    rows = [replace(row, images=pictures, advantage=row.advantage) for row in made.samples.rows]
    (tmp_path / "page.html").write_text(
        render(report_of(replace(made, samples=replace(made.samples, rows=rows)))), "utf-8"
    )
    shown(browser, tmp_path / "page.html")
    assert texts(browser, ".images h4") == ["3 images, 5 tokens, 1 without picture"]
    assert browser.eval("window.attacked === undefined")
    alt = browser.eval("document.querySelector('.images img').alt")
    assert alt == "image 1 · 8 × 8 pixels · tokens 3 to 4 (2)"
    browser.wait("document.querySelector('.images img').naturalWidth === 8")
    assert "blank: one colour · picture left out" in texts(browser, ".images li")[1]
    browser.eval("document.querySelector('.images button').focus()")
    browser.press("Enter")
    assert texts(browser, ".detail .readout")[0].startswith("token 3 of ")
    assert "image 1" in texts(browser, ".detail .readout")[0]
    assert texts(browser, ".tokens .now") == ["▦"]
    assert browser.eval("document.querySelectorAll('.images button')[2].disabled"), "its tokens are left out"
