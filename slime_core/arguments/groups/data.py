"""Which rows are read, and how."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

from pydantic import field_validator

from slime_core.contracts.options import REQUIRED, ArgumentGroup, from_json, option


class DataArguments(ArgumentGroup):
    """Data"""

    read_by_core = True

    prompt_data: list[str] = option(
        REQUIRED,
        "Training data: .jsonl, .parquet, .arrow or Hugging Face dataset folders; several, globs and slices such as "
        "'rows.jsonl@[0:1000]' are fine.",
        min_length=1,
    )
    prompt_data_weights: list[float] | None = option(
        None,
        "Mix the data: one positive number for each path or glob of --prompt-data, its share of the prompts. Default: all "
        "files are one set.",
        min_length=1,
    )
    input_key: str = option(
        "input", "Column with the prompt text, the list of chat messages, or the list of token ids, used as they are."
    )
    label_key: str | None = option(None, "Column with the label that rewards compare with.")
    tool_key: str | None = option("tools", "Column with the tool definitions of a conversation; rows may lack it.")
    metadata_key: str | None = option("metadata", "Column with a dict that is handed on to hooks; rows may lack it.")
    multimodal_keys: dict[str, str] | None = option(
        None,
        'Columns of images, as a JSON object: with \'{"image": "images"}\' every <image> in the text of a message, and every image part '
        "that says nothing further, takes the next image of the row's column images.",
    )
    image_folders: list[str] | None = option(
        None, "Folders in which image files may lie besides the folder of their data file; paths outside are refused."
    )
    fetch_images: bool = option(
        False, "Fetch images that rows name by an address (http, https); else they are refused."
    )
    image_min_pixels: int | None = option(
        None,
        "Smaller images are enlarged to so many pixels before they become tokens. Default: as the checkpoint's processor says.",
        ge=1,
        read_by_core=False,
    )
    image_max_pixels: int | None = option(
        None,
        "Larger images are made smaller, to so many pixels, before they become tokens. Default: as the checkpoint's processor says.",
        ge=1,
        read_by_core=False,
    )
    text_only: bool = option(
        False,
        "Train the text of a vision-language model alone, with data that has no images; without it such data is refused.",
        read_by_core=False,
    )
    apply_chat_template: bool = option(
        False,
        "Render prompts with the tokenizer's chat template before they are generated from: lists of messages, and text as one "
        "message of the user. SFT always renders its messages.",
        read_by_core=False,
    )
    apply_chat_template_kwargs: dict[str, Any] = option(
        {},
        "JSON object of variables for the chat template, such as '{\"enable_thinking\": false}'.",
        read_by_core=False,
    )
    chat_template_date: str | None = option(
        None,
        "The day that chat templates write where they write today's, as YYYY-MM-DD. Default: the day on which the run began, "
        "so that a run that is continued goes on with it.",
        read_by_core=False,
    )
    malformed_row: Literal["error", "skip"] = option(
        "error",
        "A row that cannot be read, lacks its column, or says something about training that nobody reads: stop, or skip it and "
        "count it.",
    )
    rollout_shuffle: bool = option(False, "Shuffle the prompts anew in every epoch.")
    rollout_seed: int = option(42, "Seed of the shuffling and of sampling.", ge=0)
    shuffle_buffer_size: int = option(
        10_000,
        "How many rows of a stream are held in memory and shuffled together.",
        ge=1,
        read_by_core=False,
        when="rollout_shuffle",
    )
    data_source_path: str = option(
        "global",
        "The data source: a component name ('streaming' for files and pipes that are read forward only) or import path.",
    )
    buffer_filter_path: str = option("pop_first", "How groups are taken from the buffer: a name or import path.")

    _json_object = field_validator("apply_chat_template_kwargs", "multimodal_keys", mode="before")(from_json)

    @field_validator("multimodal_keys")
    @classmethod
    def _only_images(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and (others := sorted(set(value) - {"image"})):
            raise ValueError(f"names {', '.join(others)}; only images are read: '{{\"image\": COLUMN}}'")
        return value or None

    @field_validator("chat_template_date")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        try:
            return None if value is None else date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError("expected a day, YYYY-MM-DD") from None
