"""The Megatron train backend of slime: trains models that are cut over many ranks, with megatron-core.

plugin.py            what this distribution gives to slime
arguments.py         the options of layout and computation
model_flags.py       the options that describe a model, compared with the checkpoint
refusals.py          options that are refused, or have no effect
checks.py            what is seen of a run before it starts
memory.py            what a rank will hold
backend.py           the train backend: what the loop calls
device.py            megatron-core without CUDA
versions.py          what differs between versions of megatron-core
layout.py            how a model is cut over ranks, and which cuts are refused
families/            families of models, one file each
spec.py              what a family makes of a configuration
names.py             what weights are called in files and in megatron-core, and how they are cut
heads.py             fills up heads that tensor-parallel ranks do not divide
configuration.py     from a configuration to what megatron-core must be told
model.py             builds this rank's part of a model
modules.py           norms and attention in place of megatron-core's own
te_probe.py          whether Transformer Engine can be used here
te_layers.py         Transformer Engine's layers, where they are asked for
rows.py              packed rows as one rank computes them
computation.py       what one rank computes of a global batch
pipeline.py          runs micro-batches through the stages of a model
predictor.py         log-probs, entropies and values, on the last stage
routing_replay.py    the experts of a token, the same in all steps of a rollout
optimizer.py         the reduction of gradients, and the optimizer
gradients.py         gradients, complete on every rank
low_precision.py     linear layers that compute in FP8, emulated
low_precision_experts.py  which tokens of an expert are quantised together
rank_parts.py        parts of tensor-parallel ranks, put together and taken apart
adapter_names.py     what LoRA adapters are called and how they are cut
adapter.py           LoRA adapters of a layer that is cut over ranks
lora.py              which layers get one, merged weights, adapters on disk
frozen.py            parameters that are not trained
inventory.py         all weights of a whole model, by their names
offload.py           memory that is given back while the engine generates
weights.py           weights between files and this rank's parts
checkpoint_files.py  Hugging Face checkpoints on disk
torch_dist.py        torch_dist folders on disk, read tensor by tensor
torch_dist_names.py  what weights are called in torch_dist folders
weight_files.py      weights by their Hugging Face names, from either
convert_hf.py        `slime convert hf-to-torch-dist`
convert_torch_dist.py  `slime convert torch-dist-to-hf`
state.py             the training state on disk
saving.py            writes it, at once or in the background
stored_export.py     a Hugging Face checkpoint of it, without a run
"""

__version__ = "0.1.0"
