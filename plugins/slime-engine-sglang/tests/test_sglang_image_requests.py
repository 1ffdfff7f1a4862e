"""Prompts with images as they are sent to SGLang, and responses without tokens that stand for images. Needs no SGLang."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import pytest
import sglang_cases as cases
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from vision_checkpoints import make_model, picture, write_checkpoint

from slime_core.data.vision import load_processor
from slime_core.errors import ArgumentError
from slime_engine_sglang.checkpoint_names import as_in_files
from slime_engine_sglang.engine import SGLangEngine
from slime_engine_sglang.errors import SGLangError
from slime_engine_sglang.images import TRIED, banned_tokens, shown_prompt

PAD, VIDEO = 260, 261
IMAGES = [picture(60, 40), picture(90, 30)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vl"), "qwen2_5_vl")


def prompt_of(checkpoint: Path) -> tuple[Any, list[int]]:
    processor = load_processor(str(checkpoint))
    assert processor is not None
    first, second = processor.counts(IMAGES)
    return processor, [1, 258, *[PAD] * first, 259, 7, 258, *[PAD] * second, 259, 9]


def test_an_image_is_sent_as_one_token_in_the_size_in_which_its_pixels_are_those_of_training(checkpoint: Path) -> None:
    processor, ids = prompt_of(checkpoint)
    sent = shown_prompt(ids, IMAGES, processor)
    assert sent.ids == ids
    assert sent.sent == [1, 258, PAD, 259, 7, 258, PAD, 259, 9]
    again = [base64.b64decode(url.partition(",")[2]) for url in sent.urls]
    assert again != IMAGES
    found, expected = processor.features(again), processor.features(IMAGES)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert shown_prompt([1, 2], [], processor).sent == [1, 2]


def test_prompts_whose_tokens_are_not_those_of_their_images_are_refused(checkpoint: Path) -> None:
    processor, ids = prompt_of(checkpoint)
    for tokens, images in ((ids, IMAGES[:1]), (ids, []), ([1, 2], IMAGES), (ids, [b"broken", IMAGES[1]])):
        with pytest.raises(
            ArgumentError, match=r"image tokens, and its|behind those of its 1 images|in no format that is read"
        ):
            shown_prompt(tokens, images, processor)
    with pytest.raises(ArgumentError, match="reads none"):
        shown_prompt([1], IMAGES, None)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen2_5_vl", {}, ""),
        ("qwen2_5_vl", {"image_min_pixels": 1000, "image_max_pixels": 2000}, ""),
        ("qwen2_5_vl", {"image_max_pixels": 10**6}, "its servers make images of 784 to 9408 pixels"),
        ("qwen2_5_vl", {"rollout_external_engine_addrs": ["host:1"]}, "keep what the vision tower made"),
        ("gemma3", {}, "this is one of the type gemma3"),
    ],
)
def test_what_servers_would_be_shown_wrongly_is_refused_before_the_run(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    args = cases.options(hf_checkpoint=str(write_checkpoint(tmp_path / family, family)), **changes)
    found = SGLangEngine.image_refusal(args)
    assert reason in found
    assert bool(found) == bool(reason)


def answers(
    checkpoint: Path, *scripted: dict[str, Any], images: list[bytes] = IMAGES, **params: Any
) -> tuple[Any, list[Any]]:
    """What an engine makes of these responses of a server, and what it asked for."""
    processor, ids = prompt_of(checkpoint)
    prompt = shown_prompt(ids if images else [1, 2], images, processor)
    return cases.answer_of(prompt, scripted, {"max_new_tokens": 4, **params}, banned=banned_tokens(processor))


def said(prompt: list[int] | None, *tokens: int, share: float = 0.25, reason: str = "length") -> dict[str, Any]:
    """The body of a response in which every token has the log-prob -1, and each banned one half of a probability."""
    banned = [[[math.log(share / 2), PAD, None], [math.log(share / 2), VIDEO, None]] for _ in tokens]
    meta = {"finish_reason": {"type": reason}, "output_token_logprobs": [[-1.0, t, None] for t in tokens]}
    meta |= {"output_token_ids_logprobs": banned, "weight_version": "0"}
    return {"output_ids": list(tokens), "meta_info": meta, "prompt_token_ids": prompt}


def test_a_token_that_stands_for_an_image_is_never_in_a_response_and_the_others_keep_their_log_probs(
    checkpoint: Path,
) -> None:
    _, ids = prompt_of(checkpoint)
    found, asked = answers(
        checkpoint, said(ids, 5, PAD, 6, VIDEO), said([*ids, 5], 8, share=1e-9), said([*ids, 5, 8], 3, reason="stop")
    )
    assert found.tokens == [5, 8, 3]
    assert found.log_probs == pytest.approx([-1.0, -1.0 + math.log(0.75), -1.0])
    assert found.finish_reason == "stop"
    assert [body["sampling_params"].get("max_new_tokens") for body in asked] == [4, 1, 2]
    assert [sorted(body["sampling_params"].get("logit_bias", {})) for body in asked] == [[], ["260", "261"], []]
    assert [body["input_ids"][len(asked[0]["input_ids"]) :] for body in asked] == [[], [5], [5, 8]]
    assert all(
        body["host"] == "server" and len(body["image_data"]) == 2 and body["token_ids_logprob"] == [PAD, VIDEO]
        for body in asked
    )


def test_prompts_of_text_have_no_images_and_are_kept_from_image_tokens_too(checkpoint: Path) -> None:
    found, asked = answers(checkpoint, said(None, 5, 6, 7, PAD), said(None, 4), images=[])
    assert found.tokens == [5, 6, 7, 4]
    assert found.finish_reason == "length"
    assert all("image_data" not in body for body in asked)
    assert [body["host"] for body in asked] == ["router", "server"]  # the router leaves out logit_bias


def test_no_request_asks_for_more_tokens_than_it_allows(checkpoint: Path) -> None:
    """SGLang refuses such a one, also where a single token is chosen in the place of one that stands for an image."""
    found, asked = answers(
        checkpoint, said(None, 5, PAD), said(None, 6), said(None, 7, 8, reason="stop"), images=[], min_new_tokens=3
    )
    assert found.tokens == [5, 6, 7, 8]
    bounds = [[body["sampling_params"][f"{bound}_new_tokens"] for bound in ("min", "max")] for body in asked]
    assert bounds == [[3, 4], [1, 1], [1, 2]]


def test_other_tokens_than_those_that_are_trained_are_an_error(checkpoint: Path) -> None:
    _, ids = prompt_of(checkpoint)
    other = [*ids[:2], PAD, *ids[2:]]
    with pytest.raises(
        SGLangError, match=rf"SGLang made {len(other)} tokens of a prompt with 2 images, of which {len(ids)}"
    ):
        answers(checkpoint, said(other, 5, 6, 7, 8))
    with pytest.raises(SGLangError, match="too old"):
        answers(checkpoint, said(None, 5, 6, 7, 8))
    body = said(ids, 5, PAD)
    del body["meta_info"]["output_token_ids_logprobs"]
    with pytest.raises(SGLangError, match="does not say how likely"):
        answers(checkpoint, body)


@pytest.mark.parametrize("family", TRIED)
def test_servers_are_given_weights_under_the_names_of_checkpoint_files(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / family, family)
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert {name for name, _ in as_in_files(make_model(family).named_parameters(), str(folder))} == stored


def test_servers_are_given_experts_one_by_one_as_checkpoint_files_have_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 4, "num_experts": 3, "vocab_size": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    config = AutoConfig.for_model("qwen3_moe", num_experts_per_tok=2, **sizes, **heads)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    stored, given = load_file(tmp_path / "model.safetensors"), dict(model.named_parameters())
    assert stored.keys() != given.keys()
    sent = dict(as_in_files(given.items(), str(tmp_path)))
    assert sent.keys() == stored.keys()
    assert all(torch.equal(weight, stored[name]) for name, weight in sent.items())
    assert dict(as_in_files(given.items(), str(tmp_path / "none"))).keys() == given.keys()
