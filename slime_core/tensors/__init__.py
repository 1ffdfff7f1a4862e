"""What train backends and engines share. Everything here may import torch, and nothing here knows a particular backend.

packed_rows.py           the samples of a micro-batch as one packed row
sequences.py             the sequences of a packed row, for attention kernels of variable length
sent_rows.py             a packed row on the device that computes it
transfer.py              small tensors on their way to a device, for which nobody waits
micro_batches.py         what a loss is given for a micro-batch, and how results of all micro-batches come together
kept_weights.py  copies of a model's weights in host memory
linear_cross_entropy.py  log-probs and entropies from hidden states, without the full logits
truth.py                 what transformers computes with a checkpoint
parity.py                how far a train backend is from that, in words
explanations.py          known mistakes that would give a backend's wrong numbers
not_finite.py            the errors for a loss or gradient that is NaN or Inf
embedding.py             the embedding has a row for every token, and is tied only where the weights are
rotary.py                rotary embeddings that depend on the length of what is read
windows.py               sliding windows of which the attention is not told
model_shape.py           the shape of a model without its weights
norm.py                  the norm of a gradient
ranks.py                 the training ranks, and their small exchanges
leaving.py               how a process leaves the groups of its ranks
meeting.py               how the ranks find each other, and what they say where they do not
interfaces.py            the network interface that reaches another machine
determinism.py           the same bits every time, on a GPU too
random_states.py         the states of all random number generators
bounded_pickle.py        pickles are read in time and memory that their bytes bound
stored.py                what torch.save wrote is read as data alone, within the bytes that it has
dcp_metadata.py          checkpoints of torch.distributed.checkpoint are read without executing anything in them
adapter_files.py         LoRA adapters on disk
low_precision.py         linear layers of a torch model compute by a precision recipe
low_precision_experts.py   its experts do
low_precision_products.py  products of layers that stand for several weights
quantised_weights.py     weights into the format of a quantised checkpoint, and back
stored_weights.py        the files of a checkpoint, read and rewritten
experts.py               weights of single experts and of all experts of a layer, either way
weight_buckets.py        weights in pieces of limited size, on their way to an engine
matrix_products.py       products by the library that is fastest on this processor, on the CPU
made_again.py            what the backward pass makes again in place of keeping it
rms_norm.py              a norm in fewer passes over memory, on the CPU
swiglu.py                the gated activation with less to keep for the backward pass, on the CPU
freed_memory.py          what one step frees is kept for the next, on the CPU
fused/                   what lies between matrix products in fewer passes over memory, on a GPU
fused_proof.py           the kernels of this device are compared with torch's operations
host_memory.py           pinned memory, taken fast and kept
offload.py               what lies on a device waits in host memory meanwhile
"""
