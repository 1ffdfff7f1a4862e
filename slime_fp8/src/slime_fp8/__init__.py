"""Precision recipes for slime: FP8 quantisers, FP8 products, FP8 checkpoints.

plugin.py          what this distribution gives to slime
arguments.py       options of delayed scaling, and combinations that are refused
recipe.py          what all recipes share
recipes/           the recipes, one file each
modules.py         which modules are quantised
hardware.py        which GPU computes which recipe
scales.py          from the largest magnitude of a block to its scale
quantise.py        the reference quantiser
delayed.py         scales from earlier steps
operands.py        what becomes of the factors of the three products of a linear layer
linear.py          the three products of a linear layer, and their emulation
scaled_mm.py       products by the arithmetic of a GPU
fused.py           quantising for them in one pass
kernels.py         its kernels
weight_formats.py  how quantised weights lie in checkpoints
checkpoint_format.py   how an existing FP8 checkpoint stores weights, for updates of engines
commands.py        `slime convert hf-to-fp8` and `fp8-to-hf`
convert.py         checkpoints into FP8 and back
checkpoint_folder.py   a checkpoint on disk, read and written tensor by tensor
safetensors_stream.py  its files
"""

__version__ = "0.1.0"
