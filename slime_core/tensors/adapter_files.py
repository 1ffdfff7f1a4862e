"""LoRA adapters on disk, as peft reads them. Called by the backends that train adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slime_core.arguments import RunArguments
from slime_core.data.checkpoint_folders import advice, recognise

_ONCE_OF_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Layers that peft takes for experts in a model that has experts, whatever else has the name."""
_NO_BASE = """\
This adapter lies on the weights in {base}, which peft cannot read. {advice} Then `peft.PeftModel.from_pretrained(model, folder)`
puts the adapter on that model; on the one in {hf_checkpoint} only if it holds the same weights.
"""


def write_adapter(
    folder: Path,
    adapter: Mapping[str, Tensor],
    args: RunArguments,
    *,
    experts: bool,
    transposed: bool = False,
    some: bool = False,
) -> None:
    """Write an adapter into a folder, as `peft.PeftModel.from_pretrained(base, folder)` reads it.

    Its base is the folder of the weights that it lies on: `args.ref_load` or, without it, `args.hf_checkpoint`. Where peft cannot read
    that folder, a README.md beside the adapter says what to do.

    Args:
        adapter: A (rank, in) and B (out, rank) of every layer, by the layer's name in the Hugging Face model followed by
            ".lora_A.weight" and ".lora_B.weight".
        experts: whether the model has experts, none of which has an adapter.
        transposed: its linear layers hold (in, out) weights.
        some: other layers may have the same last names, such as those of a vision tower, and no adapter.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{name}": tensor.cpu().contiguous() for name, tensor in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    layers = sorted({name.rpartition(".lora_")[0] for name in adapter})
    of_weights = [layer for layer in layers if experts and _last(layer) in _ONCE_OF_EXPERTS]
    base = args.ref_load or args.hf_checkpoint
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": args.lora_rank,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": 0.0 if of_weights else args.lora_dropout,  # of training alone, and none there of weights
        "target_modules": sorted({layer if some else _last(layer) for layer in layers if layer not in of_weights}),
        "target_parameters": [f"{layer}.weight" for layer in of_weights] or None,
        "bias": "none",
        "fan_in_fan_out": transposed,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if (found := recognise(Path(base))) and found.format != "huggingface":
        text = _NO_BASE.format(base=base, advice=advice(found), hf_checkpoint=args.hf_checkpoint)
        (folder / "README.md").write_text(text, encoding="utf-8")


def _last(name: str) -> str:
    return name.rpartition(".")[2]
