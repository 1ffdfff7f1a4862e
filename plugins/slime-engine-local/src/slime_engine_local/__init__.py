"""The embedded inference engine: continuous batching on any Hugging Face causal language model, in the training
process.

engine.py        `LocalEngine`, the engine that rollout functions call
scheduler.py     the thread that decodes all running requests together
request.py       one prompt and its response so far
sampling.py      sampling parameters; choosing the next token
scoring.py       log-probs of given tokens
storage.py       where keys and values are, for how many there is room, and what joins in a step
prefixes.py      which requests begin with the same tokens, and what they can share
cache.py         the keys and values of tokens
vision.py        images in prompts
forward_pass.py  what the attention layers must know about one forward pass
attention.py     attention over one packed row of tokens, which keeps requests apart
model.py         the engine's copy of the model
weights.py       what must be written where when a weight of the model changes
threads.py       how many threads compute on a busy machine
decoder.py       a faster form of Llama-like decoders
layer_operations.py  what such a decoder computes between its products
triton_operations.py  the same, attention over pages and the choice of tokens, in a Triton kernel each
triton_experts.py  experts of a few tokens, in Triton kernels
triton_kernels.py  these kernels
fused_proof.py   whether such a decoder computes what the model does
pages.py         keys and values in pages, and attention that reads them
static_decoding.py  decoding with fixed shapes, which a GPU replays as a CUDA graph
static_sampling.py  choosing the next token on the device
static_proof.py  whether a model computes the same with fixed shapes
packed.py        linear layers whose weight is stored as the processor's matrix product reads it
arguments.py     the options
checks.py        what is seen of a run before it starts
memory.py        what the engine will hold
errors.py        `EngineError`
plugin.py        what slime finds
"""

__version__ = "0.1.0"
