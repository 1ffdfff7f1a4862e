"""Images of prompts, in the form in which SGLang takes them. Called by the engine, before it sends a request.

SGLang expands what stands for an image itself, and resizes images with another library than transformers does without torchvision,
which makes other pixels. So it is handed images that have the size already that they are given there, where it leaves them as they
are, and one token for each; the ids that it made of them come back with the answer, and must be those that are trained.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from slime_core.data.image_processor import Processor, image_places
from slime_core.data.images import data_url
from slime_core.data.vision import load_processor, processor_of
from slime_core.data.vision_families import QwenProcessor
from slime_core.errors import ArgumentError, DataError, SampleError
from slime_engine_sglang.answers import Answer
from slime_engine_sglang.errors import SGLangError

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

TRIED = ("qwen2_5_vl", "qwen3_vl")
"""The types of models whose log-probs with images were compared, those of servers with those of training."""


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with its images.

    Attributes:
        ids: as the model reads it.
        sent: as it is sent: each image is one token.
        urls: the images as data URLs, in their order.
    """

    ids: list[int]
    sent: list[int]
    urls: tuple[str, ...] = ()


def refusal(args: RunArguments) -> str:
    """Why servers are shown no images of a run, as half a sentence; "" where they are."""
    processor = processor_of(args)
    if processor is None:
        return f"it serves {args.hf_checkpoint}, which reads no images"
    if processor.config.model_type not in TRIED:
        return (
            f"it is known to show images rightly to models of the types {' and '.join(TRIED)} alone, and this is one of the type "
            f"{processor.config.model_type}"
        )
    if getattr(args, "rollout_external_engine_addrs", None):
        return (
            "servers that run already (--rollout-external-engine-addrs) keep what the vision tower made of images when its weights are "
            "replaced; those that it starts itself do not"
        )
    given, own = (cast("QwenProcessor", made).limits for made in (processor, load_processor(args.hf_checkpoint)))
    if given[0] < own[0] or given[1] > own[1]:
        return (
            f"its servers make images of {own[0]} to {own[1]} pixels (size in preprocessor_config.json), and --image-min-pixels and "
            f"--image-max-pixels leave {given[0]} to {given[1]}; give limits within those"
        )
    return ""


def shown_prompt(ids: list[int], images: Sequence[bytes], processor: Processor | None) -> ShownPrompt:
    """Return a prompt as it is sent.

    Args:
        processor: what the checkpoint makes of images; None of one that reads none.

    Raises:
        ArgumentError: the image tokens of the prompt are not those of the images, or an image cannot be used.
    """
    if processor is None:
        if images:
            raise ArgumentError("The prompt has images, and the checkpoint reads none.")
        return ShownPrompt(ids, ids)
    try:
        places = image_places("The prompt", ids, processor.token, processor.counts(images))
        urls = tuple(_url(data, processor) for data in images)
    except (DataError, SampleError) as error:
        raise ArgumentError(str(error)) from None
    sent, end = list[int](), 0
    for first, behind in places:
        sent += [*ids[end:first], processor.token]
        end = behind
    return ShownPrompt(ids, sent + ids[end:], urls)


def require_same_prompt(answer: Answer, prompt: ShownPrompt, begun: list[int]) -> None:
    """Check that a server made the ids of a prompt with images that are trained.

    Args:
        begun: the tokens of the response that were sent with the prompt.

    Raises:
        SGLangError: it made others, or does not say which.
    """
    if not prompt.urls or (answer.finish_reason == "abort" and answer.prompt is None):
        return
    wanted = prompt.ids + begun
    if answer.prompt is None:
        raise SGLangError(
            "SGLang does not say what it made of a prompt with images (prompt_token_ids); it is too old for them."
        )
    if list(answer.prompt) != wanted:
        place = next((n for n, pair in enumerate(zip(answer.prompt, wanted, strict=False)) if pair[0] != pair[1]), None)
        raise SGLangError(
            f"SGLang made {len(answer.prompt)} tokens of a prompt with {len(prompt.urls)} images, of which {len(wanted)} are trained"
            f"{'' if place is None else f'; the first other one is number {place + 1}'}. Its image processor has other settings than the "
            "checkpoint's (preprocessor_config.json, --sglang-mm-process-config)."
        )


def banned_tokens(processor: Processor | None) -> tuple[int, ...]:
    """The tokens that stand for images and videos, which no response may have."""
    if processor is None:
        return ()
    tokens = (processor.token, getattr(processor.config, "video_token_id", None))
    return tuple(int(token) for token in tokens if token is not None)


@lru_cache(maxsize=64)  # the samples of a group have the same images
def _url(data: bytes, processor: Processor) -> str:
    if not isinstance(processor, QwenProcessor):
        raise DataError("SGLang is shown no images of this model")
    buffer = io.BytesIO()
    processor.resized(data).save(buffer, "PNG", compress_level=1)
    return data_url(buffer.getvalue())
