"""What `slime check` says that a step will keep for the backward pass is what the forward pass keeps, and what it says of a whole step is what
lives at once."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.contracts.memory import MemoryUse
from slime_core.plugins import Plugins
from slime_core.run.memory import ProcessMemory
from slime_core.sample import Sample
from slime_core.tensors.fused.rounded import RoundedWeights
from slime_core.tensors.model_shape import shape_of
from slime_core.training.batches import make_train_batch
from slime_losses.sft import sft_loss
from slime_torch.backend import TorchBackend
from slime_torch.experts import group_experts
from slime_torch.fused_layers import fuse_layers

TOKENS = 192
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def arguments(tokens, flags):
    """The options of a run whose micro-batches have so many tokens."""
    words = ["--hf-checkpoint", "none", "--prompt-data", "none", "--num-rollout", "1", "--rollout-batch-size", "1"]
    words += ["--use-dynamic-batch-size", "--max-tokens-per-gpu", str(tokens)]
    return resolve(Namespace(Plugins()), [*words, *flags], env={}).args


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about its own name for recomputation
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@pytest.mark.parametrize("flags", [[], ["--bf16"], ["--gradient-checkpointing"], ["--lora-rank", "4"]], ids=str)
def test_a_step_keeps_what_the_estimate_says(model_type, flags):
    args = arguments(TOKENS, flags)
    config = AutoConfig.for_model(model_type, **SHAPE)
    holding = TorchBackend.memory(args, shape_of(config), MemoryUse(on_gpu=False))
    names = ("activations", "weights in bfloat16")
    expected = sum(part.size for part in holding.parts if part.name in names)
    if "--gradient-checkpointing" in flags:  # one layer is computed again in the backward pass, which is still to come
        expected -= TOKENS * 4 * (2 * 64 + 3 * 64 + 2 * 32 + 2 * 160 + 4 + (96 if model_type == "qwen3" else 0))
    kept = kept_by_a_forward_pass(args, AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    assert expected == pytest.approx(kept, rel=0.08)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("flags", [[], ["--bf16"]], ids=str)
def test_experts_keep_what_the_estimate_says(on_gpu, flags):
    """Those of transformers, and those that a GPU computes all at once."""
    args = arguments(TOKENS, [*flags, "--no-fuse-layers"])
    experts = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 96}
    config = AutoConfig.for_model("qwen3_moe", **SHAPE, **experts)
    # One rank alone would keep the weights that it rounds for the step, and not for autograd.
    holding = TorchBackend.memory(args, shape_of(config), MemoryUse(on_gpu=on_gpu, ranks=2 if on_gpu else 1))
    expected = sum(part.size for part in holding.parts if part.name in ("activations", "weights in bfloat16"))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    assert not on_gpu or group_experts(model, torch.device("cpu")) == 3
    assert expected == pytest.approx(kept_by_a_forward_pass(args, model), rel=0.04)


@pytest.mark.parametrize("experts", [False, True])
def test_weights_that_are_not_kept_for_a_step_are_rounded_again_in_the_backward_pass(experts):
    """As over several ranks, each of which has a layer's weights whole only while it computes the layer."""
    args = arguments(TOKENS, ["--bf16"])
    more = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 96} if experts else {}
    config = AutoConfig.for_model("qwen3_moe" if experts else "qwen3", **SHAPE, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    held, gradients = [], []
    for keep in (True, False):
        backend = TorchBackend(args)
        backend.attach(copy.deepcopy(model), sft_loss, 1)
        backend._rounded = RoundedWeights(torch.bfloat16, keep)
        assert group_experts(backend.model, torch.device("cpu"), backend._rounded) == 3 * experts
        assert fuse_layers(backend.model, backend._rounded, autocast=False) == 3
        with backend._unchanged(), Live([*backend.model.parameters(), *backend.model.buffers()]) as live:
            outputs = backend._forward(one_sample(), [0])
            held.append(live.now)
            del outputs
        gradients.append(dict(backend.gradients(one_sample())))
    rounded = [
        w for name, w in model.named_parameters() if w.ndim > 1 and "layers." in name and "mlp.gate." not in name
    ]
    assert held[0] - held[1] == 2 * sum(weight.numel() for weight in rounded)
    for name, gradient in gradients[0].items():
        assert gradients[1][name].equal(gradient), name


@pytest.mark.parametrize(
    ("model_type", "flags", "kept"),
    [
        ("qwen3", [], 0),
        ("qwen3", ["--no-fuse-layers"], 1),
        ("qwen3", ["--lora-rank", "4"], 1),
        ("gemma2", [], 1),
        ("qwen3_moe", [], 0),
    ],
    ids=str,
)
def test_over_several_gpus_the_estimate_counts_copies_of_weights_where_autocast_makes_them(model_type, flags, kept):
    args = arguments(TOKENS, ["--bf16", *flags])
    shape = shape_of(AutoConfig.for_model(model_type, **SHAPE))
    for ranks, expected in ((1, 1), (2, kept)):
        holding = TorchBackend.memory(args, shape, MemoryUse(ranks=ranks))
        assert sum(part.name == "weights in bfloat16" for part in holding.parts) == expected


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "flags", [[], ["--bf16"], ["--bf16", "--gradient-checkpointing"], ["--gradient-checkpointing"]], ids=str
)
def test_no_moment_of_a_step_takes_more_than_the_estimate_says(flags):
    """Everything that lives at once, also what nobody saved: weights that autocast rounds and holds on to, for example."""
    model = {**SHAPE, "hidden_size": 128, "intermediate_size": 486, "num_hidden_layers": 10, "vocab_size": 500}
    args = arguments(96, flags)
    config = AutoConfig.for_model("qwen3", **model)
    holding = TorchBackend.memory(args, shape_of(config), MemoryUse(on_gpu=False))
    backend = TorchBackend(args)
    backend.attach(AutoModelForCausalLM.from_config(config, dtype=torch.float32), sft_loss, 2)
    samples = [Sample(index=k, tokens=[n % 400 for n in range(96)], response_length=95) for k in range(2)]
    batch = make_train_batch(samples, mean="token", max_tokens=96)
    backend.train_step(batch)
    state = [value for values in backend.optimizer.state.values() for value in values.values()]
    held = [*backend.model.parameters(), *backend.model.buffers(), *state]
    backend.optimizer.zero_grad()
    with Live(held) as live:
        backend.train_step(batch)
    peak = sum(tensor.nbytes for tensor in held) + live.peak
    _, expected = ProcessMemory("", 1, tuple(holding.parts)).peak()
    assert 0.94 * expected <= peak <= 1.01 * expected


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once.

    Args:
        known: those that are there already, and are not counted.
    """

    def __init__(self, known):
        super().__init__()
        self.now = self.peak = 0
        self._counted = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if not isinstance(tensor, torch.Tensor) or tensor.is_sparse:  # whose parts are counted
                continue
            if (storage := tensor.untyped_storage())._cdata not in self._counted:
                self._counted.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return found

    def _gone(self, key, size):
        self._counted.remove(key)
        self.now -= size


def one_sample():
    """A batch of one micro-batch with TOKENS tokens."""
    sample = Sample(index=0, tokens=[n % 120 for n in range(TOKENS)], response_length=TOKENS - 1)
    return make_train_batch([sample], mean="token", micro_batch_size=1)


def kept_by_a_forward_pass(args, model) -> int:
    """Bytes of all tensors that autograd saves, but for weights."""
    backend = TorchBackend(args)
    backend.attach(model, sft_loss, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in backend.model.parameters()}
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    backend.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = backend._forward(one_sample(), [0])
    del outputs
    return sum(found.values())
