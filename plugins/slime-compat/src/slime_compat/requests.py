"""A request in the format of SGLang's `/generate` becomes one of the run's engine. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.contracts.data import ImageTexts
from slime_core.data.image_texts import expanded
from slime_core.data.images import ImageRules, encoded
from slime_core.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.data.image_processor import Processor

DEFAULT_LENGTH = 128
"""SGLang's `max_new_tokens` of a request that names none."""

_OF_THE_TEXT = {"skip_special_tokens", "no_stop_trim", "spaces_between_special_tokens"}
"""Sampling parameters that say how the text of a response is written."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "min_p"), (0,)),
    **dict.fromkeys(("repetition_penalty", "n"), (1,)),
}
"""Sampling parameters of SGLang that the engines here do not have, with the values that change nothing; None is one for all."""

NO_FILES = ImageRules(files=False)
"""Where the images of a request come from: from itself alone."""

_NO_EFFECT = {"model", "priority", "session_id", "routing_key"}
"""What merely says where or when SGLang serves a request."""

_UNSET: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "top_logprobs_num": (0,),
    "logprob_start_len": (-1,),
    **dict.fromkeys(("return_hidden_states", "return_routed_experts", "return_prompt_token_ids"), (False,)),
    **dict.fromkeys(("video_data", "audio_data", "input_embeds", "lora_path"), ([],)),
    **dict.fromkeys(("token_ids_logprob", "custom_logit_processor", "session_params"), ()),
}
"""Fields of a request that ask for what is not here, with the values that ask for nothing."""


@dataclass(frozen=True)
class GenerateRequest:
    """What is asked of the engine, and how the answer shall be written.

    Attributes:
        input_ids: the prompt.
        params: the sampling parameters under slime-core's names.
        stops: strings that end the response.
        stop_token_ids: tokens that end it, besides those of the model.
        images: the encoded images that the request shows; None: those of the sample, where the ids have image tokens.
        rid: the name of the request, if it has one.
        return_logprob: whether log-probs are part of the answer.
        text_of_tokens: whether they name the text of each token.
        skip_special_tokens: whether special tokens are left out of the text.
        trim_stop: whether the text ends before what ended the response.
    """

    input_ids: list[int]
    params: dict[str, Any]
    stops: tuple[str, ...]
    stop_token_ids: frozenset[int]
    images: list[bytes] | None = None
    rid: str | None = None
    return_logprob: bool = False
    text_of_tokens: bool = False
    skip_special_tokens: bool = True
    trim_stop: bool = True


def is_batch(payload: Mapping[str, Any]) -> bool:
    """Whether a payload asks for several responses at once, by a list of texts or of lists of token ids."""
    text, ids = payload.get("text"), payload.get("input_ids")
    return isinstance(text, list) or (isinstance(ids, list) and bool(ids) and isinstance(ids[0], list))


def single_payloads(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the payloads of a batch one by one. Fields that are lists in a batch are taken apart.

    Raises:
        ArgumentError: such a list has another length.
    """
    prompts = "text" if isinstance(payload.get("text"), list) else "input_ids"
    count = len(payload[prompts])
    found = [dict(payload) for _ in range(count)]
    for name in (prompts, "image_data", "sampling_params", "rid", "return_logprob"):
        values = payload.get(name)
        if not isinstance(values, list):
            continue
        if len(values) != count:
            raise ArgumentError(
                f"A request to the engine has {count} prompts and {len(values)} {name}; expected one each."
            )
        for single, value in zip(found, values, strict=True):
            single[name] = value
    return found


def read_payload(
    payload: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    seed: int | None,
    images: Sequence[bytes] = (),
    processor: Processor | None = None,
) -> GenerateRequest:
    """Read the payload of a request for one response.

    Args:
        tokenizer: reads `text`, with the special tokens that it puts around texts, as SGLang does.
        seed: that of the sample, for a request that names none.
        images: those of the sample, which `text` shows where it has places for images and the request names none.
        processor: what the checkpoint makes of images: each place in `text` becomes as many tokens as its image takes.

    Raises:
        ArgumentError: there is no prompt, its images cannot be read, `text` has more or fewer places for images than there are, or
            the payload asks for something that the engines here do not do.
    """
    known = {"text", "input_ids", "image_data", "sampling_params", "rid", "return_logprob", "return_text_in_logprobs"}
    for name, value in payload.items():
        if name in known or name in _NO_EFFECT or value is None or value in _UNSET.get(name, ()):
            continue
        raise ArgumentError(
            f"A request to the run's engine asks for {name}={value!r}, which the engines here do not do. They take text or "
            "input_ids, image_data, sampling_params, return_logprob, return_text_in_logprobs and rid."
        )
    asked = payload.get("sampling_params") or {}
    given = engine_params(asked)
    if seed is not None:
        given.setdefault("seed", seed)
    stops = given.get("stop") or ()
    shown = _images(payload.get("image_data"))
    return GenerateRequest(
        _prompt(payload, tokenizer, images if shown is None else shown, processor),
        {"max_new_tokens": DEFAULT_LENGTH, **given},
        (stops,) if isinstance(stops, str) else tuple(stops),
        frozenset(given.get("stop_token_ids") or ()),
        images=shown,
        rid=payload.get("rid"),
        return_logprob=bool(payload.get("return_logprob")),
        text_of_tokens=bool(payload.get("return_text_in_logprobs")),
        skip_special_tokens=bool(asked.get("skip_special_tokens", True)),
        trim_stop=not asked.get("no_stop_trim", False),
    )


def engine_params(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return sampling parameters of SGLang under slime-core's names, without those that say how the text is written and those
    that change nothing. What is left is the engine's to know or to refuse."""
    found = {name: value for name, value in given.items() if value is not None and name not in _OF_THE_TEXT}
    if "sampling_seed" in found:
        found["seed"] = found.pop("sampling_seed")
    return {name: value for name, value in found.items() if value not in _NEUTRAL.get(name, ())}


def _images(given: Any) -> list[bytes] | None:
    """Read `image_data`: one image or a list of them, each a data URL or base64; no file is read."""
    if not given:
        return None
    try:
        return [encoded(image, Path(), NO_FILES) for image in (given if isinstance(given, list) else [given])]
    except DataError as error:
        raise ArgumentError(f"A request to the run's engine has image_data that cannot be read: {error}.") from None


def _prompt(
    payload: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    images: Sequence[bytes],
    processor: Processor | None,
) -> list[int]:
    ids, text = payload.get("input_ids"), payload.get("text")
    if ids is not None and not isinstance(ids, str):
        return [int(token) for token in ids]
    if isinstance(text, str):
        return _read(text, tokenizer, images, processor)
    raise ArgumentError(
        f"A request to the run's engine needs a prompt: text, or input_ids, a list of token ids. Given were {', '.join(payload)}."
    )


def _read(
    text: str, tokenizer: PreTrainedTokenizerBase, images: Sequence[bytes], processor: Processor | None
) -> list[int]:
    """Return the ids of a text. One that has all tokens of its images already, as decoded ids do, is read as it is."""
    ids: list[int] = tokenizer.encode(text)
    if processor is None or processor.placeholder not in text:
        return ids
    try:
        counts = processor.counts(images, whole=False)
        if ids.count(processor.token) == sum(counts):
            return ids
        shown = expanded(text, ImageTexts(processor.placeholder, tuple(map(processor.text, counts))))[0]
    except DataError as error:
        raise ArgumentError(f"A request to the run's engine has text that shows images: {error}.") from None
    return list(tokenizer.encode(shown))
