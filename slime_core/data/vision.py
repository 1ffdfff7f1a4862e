"""Loads what a vision-language checkpoint makes of images: what stands for one in the text, how many tokens it takes, and the
numbers that the model's vision tower reads.

The SFT rollout asks for texts and counts, train backends for the numbers, so that encoded images are all that travels and is
kept. transformers' own composite processors need torchvision even for images alone; here their image processors are used, with
Pillow, and the text around images is expanded as theirs is, token for token.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.image_processor import Processor
from slime_core.data.vision_families import GemmaProcessor, IdeficsProcessor, QwenProcessor
from slime_core.errors import ArgumentError
from slime_core.remote_code import from_pretrained

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "idefics3")
"""The model types whose images are read."""


def is_vision_model(config: Any) -> bool:
    """Whether a transformers configuration is of a vision-language model whose images are read here."""
    return getattr(config, "model_type", None) in FAMILIES


def auto_model(config: Any) -> Any:
    """Return transformers' Auto class for a configuration: of language models, or of those that read images."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_vision_model(config) else AutoModelForCausalLM


@lru_cache(maxsize=4)
def load_processor(folder: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Processor | None:
    """Return what a Hugging Face checkpoint makes of images; None of a checkpoint that reads none.

    Args:
        min_pixels, max_pixels: `--image-min-pixels` and `--image-max-pixels`.

    Raises:
        ArgumentError: its processor cannot be loaded, or has no such limits.
    """
    from slime_core.data.tokenizer import load_tokenizer

    kind = _model_type(Path(folder))
    if kind not in FAMILIES:
        given = [
            n for n, v in (("--image-min-pixels", min_pixels), ("--image-max-pixels", max_pixels)) if v is not None
        ]
        if given:
            raise ArgumentError(
                f"{given[0]}: the checkpoint {folder} ({kind}) reads no images here. Leave it out, or give a "
                f"checkpoint of one of the types {', '.join(FAMILIES)}."
            )
        return None
    from transformers import AutoConfig, AutoImageProcessor

    config: Any = from_pretrained(AutoConfig, folder)
    try:
        images: Any = from_pretrained(AutoImageProcessor, folder, backend="pil")
    except ImportError as error:
        raise ArgumentError(f"Images need Pillow: pip install pillow ({' '.join(str(error).split())[:200]})") from error
    except Exception as error:  # transformers raises whatever its parsers raise
        raise ArgumentError(
            f"--hf-checkpoint {folder} reads images, but has no image processor that can be loaded (preprocessor_config.json): "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer: Any = load_tokenizer(folder)
    if config.model_type == "gemma3":
        _refuse_limits(min_pixels, max_pixels)
        if images.do_pan_and_scan:
            raise ArgumentError(
                f"--hf-checkpoint {folder}: its processor cuts images into crops (do_pan_and_scan), which is not supported; set it "
                "to false in preprocessor_config.json."
            )
        ids = (config.boi_token_index, config.image_token_id, config.eoi_token_index)
        begin, image, end = tokenizer.convert_ids_to_tokens(list(ids))
        return GemmaProcessor(config, images, (begin, image, end))
    if config.model_type in ("smolvlm", "idefics3"):
        _refuse_limits(min_pixels, max_pixels)
        placeholder = tokenizer.convert_ids_to_tokens(config.image_token_id)
        try:
            return IdeficsProcessor(config, images, placeholder, ("<fake_token_around_image>", "<global-img>"))
        except ArgumentError as error:
            raise ArgumentError(f"--hf-checkpoint {folder}: {error}.") from None
    merged = config.vision_config.spatial_merge_size
    if images.merge_size != merged:
        raise ArgumentError(
            f"--hf-checkpoint {folder}: its processor has the merge_size {images.merge_size} (preprocessor_config.json), its model "
            f"{merged} (spatial_merge_size in config.json); they must be equal."
        )
    _limit(images, min_pixels, max_pixels)
    return QwenProcessor(config, images, tokenizer.convert_ids_to_tokens(config.image_token_id))


def processor_of(args: RunArguments) -> Processor | None:
    """Return what the checkpoint of a run makes of images, as `load_processor`; None of one that reads none."""
    return load_processor(args.hf_checkpoint, args.image_min_pixels, args.image_max_pixels)


def _model_type(folder: Path) -> str | None:
    """The type that a checkpoint says it is of; None where it says none, such as a tokenizer alone, of which rows can be previewed."""
    try:
        said: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said.get("model_type") if isinstance(said, dict) else None


def _refuse_limits(least: int | None, most: int | None) -> None:
    if least is not None or most is not None:
        raise ArgumentError(
            "--image-min-pixels and --image-max-pixels: this model makes every image the same size; leave them out."
        )


def _limit(images: Any, least: int | None, most: int | None) -> None:
    size = dict(images.size)
    size["shortest_edge"] = least or (min(size["shortest_edge"], most) if most else size["shortest_edge"])
    size["longest_edge"] = most or max(size["longest_edge"], size["shortest_edge"])
    if size["shortest_edge"] > size["longest_edge"]:
        raise ArgumentError(
            f"--image-min-pixels {least} is above --image-max-pixels {size['longest_edge']}; give a smaller one."
        )
    images.size = size
