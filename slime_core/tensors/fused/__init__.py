"""What lies between the matrix products of a decoder layer in one pass over memory each, forwards and backwards, with sums in float32.
For GPUs: train backends that compute in bfloat16 use it.

Each function has two forms that compute the same: Triton kernels on a GPU, and torch's operations anywhere else, which tests and
`slime_core.tensors.fused_proof` compare the kernels with. Triton is imported when a kernel is first run.

launch.py               which form computes, and the shapes of blocks
norm.py                 a residual is added to, and normed
norm_kernels.py         its kernels
heads.py                queries and keys of all heads are normed and turned to their positions
heads_kernels.py        its kernels
gated.py                silu(gate) · up
gated_kernels.py        its kernels
log_probs.py            log-probs and entropies from hidden states
log_probs_kernels.py    its kernels
products.py             products in bfloat16 whose gradients by weights are float32
rounded.py              the weights of products, rounded once for all micro-batches of a step
"""
