"""What is posted to the router's URL is answered by the run's engine as SGLang's server would; all else goes over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from vision_checkpoints import picture, write_checkpoint

from slime.rollout.sglang_rollout import generate
from slime.utils.http_utils import get, post
from slime.utils.processing_utils import encode_image_for_rollout_engine
from slime_compat import posting
from slime_core.contracts.engine import Generation
from slime_core.data.images import data_url, decode
from slime_core.data.prompts import read_prompt
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.vision import load_processor
from slime_core.errors import ArgumentError, PluginError
from slime_core.plugins import Plugins
from slime_core.rollout.surroundings import Surroundings, surrounded_by
from slime_core.sample import Sample, Status

URL = "http://engine.invalid:30000/generate"


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Recording:
    """An engine that answers with given tokens, and keeps what it was asked."""

    def __init__(self, tokens: list[int], reason: Any = "stop") -> None:
        self.tokens, self.reason = tokens, reason
        self.asked: list[tuple[list[int], dict[str, Any], str | None]] = []
        self.aborted: list[Any] = []

    async def generate(
        self, input_ids: Any, sampling_params: Any, request_id: str | None = None, images: Any = None
    ) -> Generation:
        self.shown = images
        self.asked.append((list(input_ids), dict(sampling_params), request_id))
        log_probs = [-0.5 * (n + 1) for n in range(len(self.tokens))]
        versions = [3] * (len(self.tokens) - 1) + [4] * bool(self.tokens)
        return Generation(self.tokens, log_probs, self.reason, versions, "not read")

    async def abort(self, request_ids: Any = None) -> None:
        self.aborted.append(request_ids)


@pytest.fixture
def tokenizer(writer: Path) -> Any:
    return posting.load_tokenizer(str(writer))


def surroundings(engine: Any, model: Path, images: Any = ()) -> Surroundings:
    args: Any = SimpleNamespace(hf_checkpoint=str(model), sglang_router_ip="10.1.2.3", sglang_router_port=4000)
    args.image_min_pixels = args.image_max_pixels = None
    args.rollout_skip_special_tokens = True
    rewards: Any = None
    return Surroundings(args, engine, rewards, Plugins(), lambda: False, seed=99, images=images)


@pytest.fixture
def ask(writer: Path) -> Callable[..., Any]:
    """`ask(engine, payload)` posts a payload to the router of a run with this engine."""

    def asking(
        engine: Any, payload: Any, url: str = URL, model: Path = writer, images: Any = (), **options: Any
    ) -> Any:
        async def surrounded() -> Any:
            with surrounded_by(surroundings(engine, model, images)):
                return await post(url, payload, **options)

        return asyncio.run(surrounded())

    return asking


def test_images_of_a_request_are_shown_and_without_any_the_engine_decides(ask: Any, tokenizer: Any) -> None:
    encoded, engine = base64.b64encode(PNG).decode(), Recording([tokenizer.eos_token_id])
    for given, shown in (
        ([f"data:image/png;base64,{encoded}", encoded], [PNG, PNG]),
        (encoded, [PNG]),
        ([], None),
        (None, None),
    ):
        ask(engine, {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}, "image_data": given})
        assert engine.shown == shown
    with pytest.raises(ArgumentError, match="No files are read"):
        ask(engine, {"input_ids": [1], "image_data": [__file__]})


@pytest.fixture(scope="module", params=["qwen2_5_vl", "gemma3"])
def seer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that reads images."""
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


ONE, TWO = picture(90, 60), picture(60, 120, seed=1)


@pytest.mark.parametrize("images", [[ONE], [TWO], [ONE, TWO]], ids=len)
def test_places_for_images_in_text_are_as_many_tokens_as_the_images_take(
    images: list[bytes], ask: Any, seer: Path
) -> None:
    processor, tokenizer = load_processor(str(seer)), load_tokenizer(str(seer))
    assert processor is not None
    text = "".join(f"{number}: {processor.placeholder} " for number in range(len(images)))
    ids = read_prompt(Sample(prompt=text, images=images), tokenizer, None, False, processor).tokens  # type: ignore[arg-type]  # renders nothing
    assert ids.count(processor.token) == sum(processor.counts(images))
    given = [data_url(image) for image in images]
    for payload, of_the_sample, shown in (
        ({"text": text, "image_data": given}, [], images),
        ({"text": text, "image_data": given}, [TWO, TWO, TWO], images),
        ({"text": text}, images, None),
        ({"text": tokenizer.decode(ids), "image_data": given}, [], images),  # has all of them already
    ):
        engine = Recording([tokenizer.eos_token_id])
        answer = ask(engine, payload, model=seer, images=of_the_sample)
        assert (engine.asked[0][0], engine.shown) == (ids, shown)
        assert answer["meta_info"]["prompt_tokens"] == len(ids)
    engine = Recording([tokenizer.eos_token_id])
    made = asyncio.run(generated(engine, seer, Sample(prompt=text, images=images)))
    assert (engine.asked[0][0], made.tokens[:-1]) == (ids, ids)
    with pytest.raises(ArgumentError, match=f"has {len(images)} images, and the rendering .* {len(images) + 1} times"):
        ask(engine, {"text": f"{text}{processor.placeholder}", "image_data": given}, model=seer)
    with pytest.raises(ArgumentError, match=r"text that shows images: image 1: .* in no format"):
        ask(engine, {"text": text, "image_data": base64.b64encode(b"x" * 99).decode()}, model=seer)


async def generated(engine: Any, model: Path, sample: Sample) -> Any:
    around = surroundings(engine, model, sample.images)
    with surrounded_by(around):
        return await generate(around.args, sample, {"max_new_tokens": 4})


def test_text_without_places_is_read_as_it_is_whatever_images_the_sample_has(ask: Any, seer: Path) -> None:
    engine = Recording([1])
    ask(engine, {"text": "A judge's question."}, model=seer, images=[ONE])
    assert (engine.asked[0][0], engine.shown) == (load_tokenizer(str(seer)).encode("A judge's question."), None)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_an_image_that_a_hook_encodes_is_shown_with_its_pixels(mode: str, ask: Any, tokenizer: Any) -> None:
    image = pytest.importorskip("PIL.Image").new("RGB", (6, 4), (200, 100, 50)).convert(mode)
    engine = Recording([tokenizer.eos_token_id])
    data = [encode_image_for_rollout_engine(image)]
    ask(engine, {"input_ids": [1], "sampling_params": {"max_new_tokens": 1}, "image_data": data})
    (shown,) = engine.shown
    assert decode(shown).tobytes() == image.convert("RGB").tobytes()


def test_an_answer_has_the_fields_of_sglangs(ask: Any, tokenizer: Any) -> None:
    ids = tokenizer.encode("Seven is right.")
    engine = Recording([*ids, tokenizer.eos_token_id])
    answer = ask(engine, {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 9}, "return_logprob": True})
    assert answer["text"] == "Seven is right."
    assert answer["output_ids"] == engine.tokens
    meta = answer["meta_info"]
    assert meta["finish_reason"] == {"type": "stop", "matched": tokenizer.eos_token_id}
    expected = [[-0.5 * (n + 1), token, None] for n, token in enumerate(engine.tokens)]
    assert meta["output_token_logprobs"] == expected
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (2, len(engine.tokens))
    assert meta["weight_version"] == "4"
    assert meta["weight_versions"] == [3] * len(ids) + [4]
    json.dumps(answer)


def test_log_probs_are_part_of_the_answer_where_they_are_asked_for(ask: Any, tokenizer: Any) -> None:
    assert "output_token_logprobs" not in ask(Recording([5]), {"input_ids": [1]})["meta_info"]
    payload = {"input_ids": [1], "return_logprob": True, "return_text_in_logprobs": True}
    (entry,) = ask(Recording([5]), payload)["meta_info"]["output_token_logprobs"]
    assert entry == [-0.5, 5, tokenizer.decode([5])]


@pytest.mark.parametrize(
    ("reason", "stop", "params", "text", "matched"),
    [
        ("stop", "END", {"no_stop_trim": True, "skip_special_tokens": False}, "one two<|im_end|>", "eos"),
        ("stop", "END", {"skip_special_tokens": False}, "one two", "eos"),
        ("stop", "END", {}, "one two", "eos"),
        ("stop", "two", {"no_stop_trim": True}, "one two", "two"),
        ("stop", ["x", "two"], {}, "one ", "two"),
        ("length", None, {}, "one two", None),
        ("abort", None, {}, "one two", None),
    ],
)
def test_the_text_is_written_as_the_sampling_parameters_say(
    ask: Any, tokenizer: Any, reason: str, stop: Any, params: Any, text: str, matched: Any
) -> None:
    tokens = tokenizer.encode("one two") + ([tokenizer.eos_token_id] if matched == "eos" else [])
    answer = ask(Recording(tokens, reason), {"text": "x", "sampling_params": {**params, "stop": stop}})
    assert answer["text"] == text
    assert answer["output_ids"] == tokens
    finish = answer["meta_info"]["finish_reason"]
    assert finish["type"] == reason
    assert finish.get("matched") == (tokenizer.eos_token_id if matched == "eos" else matched)


def test_text_is_read_by_the_tokenizer_and_ids_are_taken_as_they_are(ask: Any, tokenizer: Any) -> None:
    engine = Recording([5])
    ask(engine, {"text": "How much is it?"})
    ask(engine, {"input_ids": (7, 8)})
    assert [asked[0] for asked in engine.asked] == [tokenizer.encode("How much is it?"), [7, 8]]


def test_sampling_parameters_reach_the_engine_under_its_names(ask: Any) -> None:
    engine = Recording([5])
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "max_new_tokens": 4,
        "min_new_tokens": 1,
        "ignore_eos": True,
        "stop": ["a"],
        "stop_token_ids": [1],
        "sampling_seed": 12,
        "skip_special_tokens": False,
        "n": 1,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
        "repetition_penalty": 1.0,
        "min_p": None,
    }
    ask(engine, {"input_ids": [1], "sampling_params": given, "rid": "mine", "stream": False, "image_data": None})
    ((_, params, rid),) = engine.asked
    assert rid == "mine"
    assert params == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "max_new_tokens": 4,
        "min_new_tokens": 1,
        "ignore_eos": True,
        "stop": ["a"],
        "stop_token_ids": [1],
        "seed": 12,
    }


def test_parameters_that_a_request_does_not_name_are_sglangs_and_its_seed_that_of_the_sample(ask: Any) -> None:
    engine = Recording([5])
    ask(engine, {"input_ids": [1]})
    assert engine.asked[0][1] == {"max_new_tokens": 128, "seed": 99}


def test_a_batch_is_answered_in_its_order(ask: Any) -> None:
    engine = Recording([5])
    answers = ask(engine, {"input_ids": [[1], [2, 3]], "sampling_params": {"max_new_tokens": 2}, "rid": ["a", "b"]})
    assert [answer["meta_info"]["prompt_tokens"] for answer in answers] == [1, 2]
    assert [answer["meta_info"]["id"] for answer in answers] == ["a", "b"]
    assert len(ask(engine, {"text": ["x", "y", "z"]})) == 3
    with pytest.raises(ArgumentError, match="2 prompts and 1 rid"):
        ask(engine, {"input_ids": [[1], [2]], "rid": ["a"]})


def test_no_room_for_a_token_is_a_response_without_any(ask: Any) -> None:
    answer = ask(Recording([5]), {"input_ids": [1], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True})
    assert answer["text"] == ""
    assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
    assert answer["meta_info"]["output_token_logprobs"] == []


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"input_ids": [1], "image_data": ["data:image"]}, "image_data"),
        ({"input_ids": [1], "return_routed_experts": True}, "return_routed_experts"),
        ({"input_ids": [1], "stream": True}, "stream"),
        ({"input_ids": [1], "top_logprobs_num": 5}, "top_logprobs_num"),
        ({"sampling_params": {}}, "needs a prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ],
)
def test_what_the_engines_do_not_do_is_refused_by_its_name(ask: Any, payload: Any, message: str) -> None:
    engine = Recording([5])
    with pytest.raises(ArgumentError, match=message):
        ask(engine, payload)
    assert engine.asked == []


@pytest.mark.parametrize("url", [URL, "http://10.1.2.3:4000/generate", "http://10.1.2.3:4000/generate/"])
def test_every_way_to_write_the_address_of_the_router_leads_to_the_engine(ask: Any, url: str) -> None:
    assert ask(Recording([5]), {"input_ids": [1]}, url=url)["output_ids"] == [5]


def test_other_paths_of_the_router_are_refused_and_aborts_reach_the_engine(ask: Any) -> None:
    engine = Recording([5])
    with pytest.raises(ArgumentError, match="/v1/chat/completions"):
        ask(engine, {"messages": []}, url="http://10.1.2.3:4000/v1/chat/completions")
    for payload in ({"rid": "mine"}, {"abort_all": True}):
        ask(engine, payload, url="http://10.1.2.3:4000/abort_request")
    assert engine.aborted == [["mine"], None]


def test_the_engine_is_there_for_generate_functions_and_rewards_alone() -> None:
    with pytest.raises(ArgumentError, match="generate functions and rewards"):
        asyncio.run(post(URL, {"input_ids": [1]}))
    with pytest.raises(ArgumentError, match="nothing else"):
        asyncio.run(get("http://engine.invalid:30000/workers"))


@pytest.mark.parametrize(
    ("budget", "there", "asked"), [(8, 0, [8]), (5, 3, [2]), (9, 3, [6]), (3, 3, []), (2, 3, []), (0, 0, [])]
)
def test_slimes_generate_takes_what_there_is_of_a_response_off_the_budget(
    writer: Path, budget: int, there: int, asked: list[int]
) -> None:
    engine, evaluations = Recording([7, 8]), (False, True)
    limits = {
        "rollout_max_response_len": 12,
        "eval_max_response_len": None,
    }  # of the run, which are no bound of this call
    args: Any = SimpleNamespace(hf_checkpoint=str(writer), rollout_skip_special_tokens=True, **limits)
    rewards: Any = None
    made = []

    async def surrounded() -> None:
        for evaluation in evaluations:
            sample = Sample(tokens=[1, *range(2, 2 + there)], response_length=there, response="x" * there)
            sample.rollout_log_probs, sample.weight_versions = [-1.0] * there, [3] * there
            with surrounded_by(Surroundings(args, engine, rewards, Plugins(), lambda: False, evaluation=evaluation)):
                made.append(await generate(args, sample, {"max_new_tokens": budget}))

    asyncio.run(surrounded())
    assert [params["max_new_tokens"] for _, params, _ in engine.asked] == asked * len(evaluations)
    for sample in made:
        assert sample.status is (Status.COMPLETED if asked else Status.TRUNCATED)
        assert sample.response_length == there + 2 * bool(asked)


def test_blocking_an_event_loop_is_refused() -> None:
    from slime.utils.async_utils import run

    async def inside() -> Any:
        return run(asyncio.sleep(0, "x"))

    with pytest.raises(PluginError, match="await the coroutine"):
        asyncio.run(inside())
    assert run(asyncio.sleep(0, "x")) == "x"


# ---------------------------------------------------------------------------------------------------- over HTTP


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was sent, after as many failures as the path says."""

    failures: dict[str, int] = {}  # noqa: RUF012  # counts down

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        left = self.failures.get(self.path, int(self.path.rpartition("/")[2] or 0))
        self.failures[self.path] = left - 1
        answer = b"busy" if left > 0 else json.dumps([json.loads(body), self.headers["X-Key"]]).encode()
        self._answer(503 if left > 0 else 200, b"plain text" if self.path.startswith("/text") else answer)

    def do_GET(self) -> None:
        self._answer(200, b'{"got": 1}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(posting, "PAUSE", 0.01)
    Echo.failures.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


def test_other_servers_are_sent_json_and_headers_and_answer_json_or_text(server: str) -> None:
    assert done(post(f"{server}/0", {"a": [1]}, headers={"X-Key": "k"})) == [{"a": [1]}, "k"]
    assert done(post(f"{server}/text/0", {})) == "plain text"
    assert done(get(f"{server}/")) == {"got": 1}


def test_a_server_that_fails_is_tried_again_and_told_of_once(server: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "slime_compat.posting"):
        assert done(post(f"{server}/3", {"a": 1}, max_retries=5))[0] == {"a": 1}
    (record,) = caplog.records
    assert "503" in record.getMessage()
    assert "busy" in record.getMessage()


def test_the_last_failure_is_raised(server: str) -> None:
    with pytest.raises(httpx.HTTPStatusError, match="503"):
        done(post(f"{server}/9", {}, max_retries=2))
    assert Echo.failures["/9"] == 7
    with pytest.raises(httpx.ConnectError):
        done(post("http://127.0.0.1:9/x", {}, max_retries=1))
    with pytest.raises(ArgumentError, match="max_retries"):
        done(post(f"{server}/0", {}, max_retries=0))
