"""The torch train backend of slime: trains any Hugging Face causal language model on packed rows.

plugin.py     what this distribution gives to slime
arguments.py  the options of this backend alone
checks.py     what is seen of a run before it starts
memory.py     what a rank will hold
backend.py    the train backend: what the loop calls
predictor.py  log-probs, entropies and values of a packed row
model.py      loads a model and proves that its packed computation is its own
attention.py  attention in which every token sees its own sample alone
flash.py      attention of sequences by torch's operators themselves, on a GPU
dropout.py    takes a model's own dropout out of it
gated_layers.py   gives a model the gated layers that keep less, on the CPU
experts.py    gives a model products of all experts at once, on a GPU
rms_norm.py   gives a model faster norms
fused_layers.py   fuses what lies between the matrix products by kernels, on a GPU
compiled.py   the same by torch.compile
lora.py       adapters
low_precision.py  linear layers that compute in FP8
optimizer.py  the optimizer, and the gradient that it is given
sharding.py   a model spread over the training ranks
gloo.py       the exchanges of such a model between CPUs
shared_memory.py  the same on one machine, without the network
offload.py    what waits in host memory while the GPU is needed for something else
state.py      the training state on disk
export.py     writes Hugging Face checkpoints
stored_export.py  the same of a training state on disk, without a run
vision.py     positions and images of rows, for vision-language models
"""

__version__ = "0.1.0"
