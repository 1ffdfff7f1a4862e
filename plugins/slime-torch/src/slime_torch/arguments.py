"""The options of the torch backend alone; the optimizer's, the schedule's and LoRA's are shared by all backends
(`slime_core.arguments.groups.optimizer`, `slime_core.arguments.groups.lora`)."""

from __future__ import annotations

from pydantic import model_validator

from slime_core.arguments import RunArguments
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.training.precision import refused_in_emulation, refused_with_adapters

FUSED = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
"""Model types whose decoder layers --fuse-layers knows, with the beginning of their class's name: norm, attention with queries and keys
that are turned half against half, addition, norm, MLP or experts, addition."""


class TorchArguments(ArgumentGroup):
    """Torch backend"""

    gradient_checkpointing: bool = option(
        False, "Keep only every layer's input for the backward pass and compute the rest again: less memory, slower."
    )
    fuse_layers: bool = option(
        True,
        "With --bf16 on a GPU: compute what lies between the matrix products of Llama-like layers by fused kernels, and sum gradients of "
        "their weights in float32. Kernels and layers are compared with torch's and the model's own at the start.",
    )
    compile_layers: bool = option(
        False,
        "Fuse what lies between the matrix products of a layer with torch.compile instead of --fuse-layers: equal but for rounding, "
        "and the first steps take minutes. On a CPU it needs a C++ compiler. Not with FP8 or LoRA.",
    )
    fsdp_reshard_after_forward: bool = option(
        True,
        "Between several training ranks: have a layer's weights whole only while the layer is computed. With "
        "--no-fsdp-reshard-after-forward each rank holds all weights and gradients during an optimizer step, and they "
        "travel once in the step and not with every micro-batch: faster, for more memory.",
        affects_result=False,
    )

    @model_validator(mode="after")
    def _refuse_what_torch_cannot_do(self) -> TorchArguments:
        if isinstance(self, RunArguments) and self.train_backend == "torch" and (found := refused(self)):
            raise ValueError("\n".join(found))
        return self


class TorchRunArguments(RunArguments, TorchArguments):
    """The run's options with those of this package: a class for type checkers, of which nobody makes an instance."""


def fuses(args: TorchRunArguments, on_gpu: bool) -> bool:
    """Whether kernels are to compute what lies between matrix products, if they run there."""
    return args.fuse_layers and args.bf16 and not args.compile_layers and on_gpu


def refused(args: RunArguments) -> list[str]:
    """One sentence for every option that asks for something this backend does not do. Imports nothing heavy."""
    found = []
    for name in ("attention_dropout", "hidden_dropout"):  # of Megatron's options, if they are installed
        if share := getattr(args, name, 0):
            found.append(
                f"--{name.replace('_', '-')} is {share}: models are trained without dropout. Give 0, or leave the option out."
            )
    if args.fp8_format:
        found += [*refused_in_emulation(args), *refused_with_adapters(args)]
    if getattr(args, "compile_layers", False) and (args.fp8_format or args.lora_rank):
        other = "--fp8-format" if args.fp8_format else "--lora-rank"
        found.append(
            f"--compile-layers does not go with {other}, whose layers it has not been tried with. Leave one of them out."
        )
    return found
