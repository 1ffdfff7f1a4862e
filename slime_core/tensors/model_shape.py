"""The shape of a model without its weights, from its configuration alone. Called where memory is estimated before a run."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from slime_core.contracts.memory import ModelShape
from slime_core.data.vision import auto_model
from slime_core.remote_code import from_config
from slime_core.tensors.quantised_weights import in_high_precision


def shape_of(config: Any) -> ModelShape:
    """Build the model of a transformers configuration without memory for its weights, and return its shape.

    Raises:
        ValueError: transformers has no model for it that reads text, or text and images.
    """
    language = config.get_text_config().to_dict() | {
        key: value for key, value in config.to_dict().items() if key == "quantization_config"
    }
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model: Any = from_config(auto_model(config), in_high_precision(config), dtype=torch.float32)
    model.tie_weights()
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return ModelShape(parameters, language)
