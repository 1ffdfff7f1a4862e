"""The Megatron train backend of slime: trains models that are cut over many ranks, with megatron-core.

plugin.py            what this distribution gives to slime
arguments.py         the options of layout and computation
model_flags.py       the options that describe a model, compared with the checkpoint
refusals.py          options that are refused, or have no effect
backend.py           the train backend: what the loop calls
device.py            megatron-core without CUDA
layout.py            how a model is cut over ranks, and which cuts are refused
families/            families of models, one file each
spec.py              what a family makes of a configuration
names.py             what weights are called in files and in megatron-core, and how they are cut
heads.py             fills up heads that tensor-parallel ranks do not divide
model.py             builds this rank's part of a model
modules.py           norms and attention in place of megatron-core's own
rows.py              packed rows as one rank computes them
pipeline.py          runs micro-batches through the stages of a model
predictor.py         log-probs, entropies and values, on the last stage
routing_replay.py    the experts of a token, the same in all steps of a rollout
optimizer.py         the reduction of gradients, and the optimizer
gradients.py         gradients, complete on every rank
weights.py           weights between files and this rank's parts
checkpoint_files.py  Hugging Face checkpoints on disk
state.py             the training state on disk
"""

__version__ = "0.1.0"
