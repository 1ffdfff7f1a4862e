"""What `slime check` asks of a model's configuration, kept from one command to the next in `$SLIME_CACHE/models`.

transformers reads a configuration with a class of the model, and imports torch's compiler, its distributed tensors and the classes
that all models have in common with it: two seconds of the four that a check takes. What it answers depends on config.json and on
versions alone, so it is asked once for each. Whoever changes what is asked, or how, changes `_FORMAT`.

The check of the memory keeps facts (`keep`), since it makes the model of a configuration, without its weights; checks of components
find them (`configuration_of`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slime_core.contracts.memory import ModelShape
from slime_core.data.cache import cache_folder
from slime_core.remote_code import is_trusted
from slime_core.training.checkpoint_check import read_configuration
from slime_core.whole_file import write_whole

_FORMAT = 1


@dataclass(frozen=True)
class ModelFacts:
    """Of a configuration from which transformers has made a model that it knows without code of the checkpoint's own. Stands for the
    configuration where no more than this is asked.

    Attributes:
        model_type: of the whole model.
        tie_word_embeddings, layer_types, rope_parameters: of the language model; None where its class has no such attribute.
        shape: its parameters, and the language model's part of config.json, as transformers completes it.
    """

    model_type: str
    tie_word_embeddings: bool | None
    layer_types: tuple[str, ...] | None
    rope_parameters: Mapping[str, Any] | None
    shape: ModelShape

    def get_text_config(self) -> ModelFacts:
        """As a configuration has it."""
        return self

    @classmethod
    def of(cls, config: Any, shape: ModelShape) -> ModelFacts:
        """Those of a transformers configuration, and of the model that was made of it."""
        text = config.get_text_config()
        layers = getattr(text, "layer_types", None)
        return cls(
            config.model_type,
            getattr(text, "tie_word_embeddings", None),
            None if layers is None else tuple(layers),
            getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None),
            shape,
        )


def configuration_of(folder: str, option: str) -> Any:
    """Return the kept facts of a Hugging Face checkpoint, or else its configuration. Raises like `read_configuration`."""
    return kept(folder) or read_configuration(folder, option)


def kept(folder: str) -> ModelFacts | None:
    """Return what an earlier command kept of the configuration in a folder; None where nothing is."""
    try:
        file = _file(folder)
        found = json.loads(file.read_text(encoding="utf-8")) if file else None
        if found is None:
            return None
        shape = found.pop("shape")
        found["layer_types"] = None if found["layer_types"] is None else tuple(found["layer_types"])
        parameters = {name: tuple(map(int, sizes)) for name, sizes in shape["parameters"].items()}
        return ModelFacts(**found, shape=ModelShape(parameters, dict(shape["config"])))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ):  # gone, or not written by this module
        return None


def keep(folder: str, facts: ModelFacts) -> None:
    """Keep facts of the configuration in a folder for later commands. Where they cannot be written, those find them anew."""
    with suppress(OSError, ValueError, TypeError):  # no room; or values that JSON has not
        text = json.dumps(asdict(facts))
        if (file := _file(folder)) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, text)


def _file(folder: str) -> Path | None:
    """Where the facts of a configuration are kept; None where they may not be: code of a checkpoint may answer anything."""
    content = (Path(folder) / "config.json").read_bytes()
    if is_trusted() or b'"auto_map"' in content:
        return None
    try:
        versions = [version(name) for name in ("transformers", "torch", "slime-core")]
    except PackageNotFoundError:
        return None
    digest = hashlib.sha256(content + "|".join(("", *versions, str(_FORMAT))).encode())
    return cache_folder() / "models" / f"{digest.hexdigest()}.json"
