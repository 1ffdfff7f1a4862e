"""What is sent to `/generate` and what is read from its responses."""

from __future__ import annotations

from typing import Any

import pytest

from slime_core.errors import ArgumentError
from slime_engine_sglang.answers import (
    concatenated,
    read_answer,
    remaining_sampling,
    request_body,
    sglang_sampling_params,
    token_versions,
)
from slime_engine_sglang.errors import SGLangError

GIVEN = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.9, "top_k": -1, "seed": 7}


def said(tokens: list[int], reason: str = "length", **meta: Any) -> dict[str, Any]:
    """The body of a response with these tokens."""
    pairs = [[-0.5 * n, token, None] for n, token in enumerate(tokens)]
    info = {"finish_reason": {"type": reason}, "output_token_logprobs": pairs, "weight_version": "3", **meta}
    return {"output_ids": tokens, "meta_info": info}


def test_sampling_parameters_get_sglangs_names_and_defaults():
    assert sglang_sampling_params(GIVEN) == {
        "max_new_tokens": 8,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": -1,
        "sampling_seed": 7,
    }
    assert sglang_sampling_params({"max_new_tokens": 2, "seed": None, "stop_token_ids": {5}}) == {
        "max_new_tokens": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "stop_token_ids": [5],
    }


def test_a_response_is_limited_by_the_models_context():
    """Also one that goes on: within the last six tokens of the context a server refuses it."""
    sampling = {"max_new_tokens": 90, "min_new_tokens": 90}
    for prompt, done, room in ((80, 0, 18), (93, 0, 5), (94, 0, 0), (99, 0, 0), (80, 13, 5), (80, 14, 0), (80, 18, 0)):
        rest = remaining_sampling(sampling, prompt, done, 100)
        assert (rest["max_new_tokens"], rest["min_new_tokens"]) == (room, room)
    assert remaining_sampling(sampling, 10**6, 14, None)["max_new_tokens"] == 76


@pytest.mark.parametrize("given", [{"max_new_tokens": 1, "top_q": 1}, {"temperature": 1.0}])
def test_unusable_sampling_parameters_are_refused(given):
    with pytest.raises(ArgumentError, match=r"top_q|max_new_tokens is missing"):
        sglang_sampling_params(given)


def test_a_request_asks_for_log_probs_and_no_stream():
    body = request_body((1, 2), {"max_new_tokens": 1}, "name")
    assert body["input_ids"] == [1, 2]
    assert (body["rid"], body["return_logprob"], body["stream"]) == ("name", True, False)


def test_an_answer_has_its_tokens_log_probs_and_versions():
    answer = read_answer(said([5, 6, 7], prompt_tokens=4, cached_tokens=3))
    assert (answer.tokens, answer.log_probs, answer.versions) == ([5, 6, 7], [0.0, -0.5, -1.0], [3, 3, 3])
    assert (answer.finish_reason, answer.prompt_tokens, answer.cached_tokens) == ("length", 4, 3)


def test_an_aborted_answer_keeps_the_tokens_whose_log_probs_came():
    cut_off = said([5, 6], "abort")
    cut_off["output_ids"].append(9)
    assert read_answer(cut_off).tokens == [5, 6]
    assert read_answer({"meta_info": {"finish_reason": {"type": "abort"}}}).tokens == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"text": "no meta_info"},
        {**said([1, 2]), "output_ids": [1, 3]},
        said([1], "tired"),
        said([1, 2], weight_version="default"),
        said([1, 2], weight_versions=[{"version": "1", "start": 0, "end": 1}]),
    ],
    ids=["no meta", "other tokens", "reason", "version", "span"],
)
def test_an_answer_that_a_trainer_could_not_trust_is_an_error(wrong):
    with pytest.raises(SGLangError):
        read_answer(wrong)


def test_each_token_has_the_version_of_its_span():
    spans = [{"version": "4", "start": 0, "end": 2}, {"version": "5", "start": 2, "end": 9}]
    assert token_versions({"weight_versions": spans}, 5) == [4, 4, 5, 5, 5]
    assert token_versions({"weight_versions": spans}, 0) == []


def test_a_response_that_goes_on_asks_for_the_rest():
    sampling = sglang_sampling_params({"max_new_tokens": 8, "min_new_tokens": 2})
    rest = remaining_sampling(sampling, 4, 3, None)
    assert (rest["max_new_tokens"], rest["min_new_tokens"]) == (5, 0)
    whole = concatenated(read_answer(said([1, 2], "abort")), read_answer(said([3], "stop")))
    assert (whole.tokens, whole.versions, whole.finish_reason) == ([1, 2, 3], [3, 3, 3], "stop")
