"""On a GPU the host only queues work: nothing is read from the device within a micro-batch, and what is sent to it waits in
pinned memory. Seen on the meta device, whose tensors have no values to be read."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch_cases import GROUPED, make_backend, make_groups, make_model

from slime_core.tensors.packed_rows import Segments
from slime_core.tensors.sequences import Sequences, with_stems
from slime_core.training.batches import make_train_batch
from slime_losses.arguments import AdvantageArguments, OffPolicyArguments, PolicyArguments
from slime_losses.policy import policy_loss
from slime_losses.sft import sft_loss
from slime_torch import attention
from slime_torch.attention import packed_attention

COLUMNS = ("advantages", "old_log_probs", "rollout_log_probs", "ref_log_probs")


class Sent(TorchDispatchMode):
    """Fails on every copy to the device that the host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0].device.type, torch.device(kwargs.get("device", args[0].device)).type
            if (source, target) == ("cpu", "meta"):
                assert kwargs.get("non_blocking"), "the host waits for a copy to the device"
                self.copies += 1
        return func(*args, **kwargs)


LOSSES: dict[str, dict[str, Any]] = {
    "sft": {},
    "grpo": {"advantage_estimator": "grpo", "use_kl_loss": True, "kl_loss_coef": 0.1, "entropy_coef": 0.1},
    "gspo with sequence masks": {"advantage_estimator": "gspo", "use_opsm": True},
    "off-policy": {"advantage_estimator": "grpo", "use_tis": True},
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_read_from_the_device_within_a_micro_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # not for meta
    loss: Any = policy_loss if name != "sft" else sft_loss
    groups = (PolicyArguments, AdvantageArguments, OffPolicyArguments)
    defaults = {f: i.get_default(call_default_factory=True) for group in groups for f, i in group.model_fields.items()}
    with torch.device("meta"):
        model = make_model("qwen3", torch.float32)
    backend = make_backend(model, loss, **{**defaults, **LOSSES[name]})
    samples = make_groups(GROUPED)
    columns = {} if name == "sft" else {c: [[0.5] * s.response_length for s in samples] for c in COLUMNS}
    batch = make_train_batch(samples, micro_batch_size=6, share_prompts=True, columns=columns)
    with Sent() as sent:
        outputs = [backend._forward_backward(batch, micro_batch) for micro_batch in batch.micro_batches]
    assert len(outputs) > 1
    assert sent.copies >= 8 * len(outputs)
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def test_many_responses_to_a_prompt_take_no_more_operations_than_two() -> None:
    def operations(shapes: list[tuple[int, ...]]) -> int:
        stems = Sequences.of(Segments.of(shapes), torch.device("cpu")).stems
        assert stems is not None
        k, v = (torch.randn(sum(map(sum, shapes)), 2, 8, requires_grad=True) for _ in range(2))
        with Counted() as counted:
            torch.autograd.backward(with_stems(k, v, stems), [torch.ones(len(stems.tokens), 2, 8)] * 2)
        assert k.grad is not None
        assert k.grad[:, 0, 0].tolist() == stems.tokens.bincount().tolist()
        return counted.operations

    assert operations([(5, *[3] * 16)] * 4) == operations([(5, 3, 3)]) < 16


def of_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """What torch documents of `varlen_attn`: in every sequence the last query sees the last key."""
    outputs = []
    left, right = window_size
    assert right == 0
    groups = q.shape[1] // k.shape[1]
    assert enable_gqa == (groups > 1)
    bounds = (list(zip(b.tolist(), b.tolist()[1:], strict=False)) for b in (query_bounds, key_bounds))
    for (q0, q1), (k0, k1) in zip(*bounds, strict=True):
        assert q1 - q0 <= longest_q
        assert k1 - k0 <= longest_k
        past = (k1 - k0) - (q1 - q0)
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(past)
        seen = seen if left < 0 else seen.triu(past - left)
        keys, values = (t[k0:k1].repeat_interleave(groups, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[q0:q1], keys) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("shapes", [[(5,), (1,), (9,)], [(3, 2, 4, 1), (6,), (1, 1, 5)]])
def test_one_call_of_the_kernel_computes_what_every_segment_alone_does(
    shapes: list[tuple[int, ...]], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention import varlen

    torch.manual_seed(0)
    segments = Segments.of(shapes)
    n = sum(segments.lengths)
    q, k, v = (torch.randn(1, heads, n, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))

    def attend() -> tuple[Tensor, ...]:
        found, _ = packed_attention(nn.Module(), q, k, v, None, scaling=0.7, sliding_window=window, segments=segments)
        return found, *torch.autograd.grad(found, (q, k, v), torch.ones_like(found).cumsum(1))

    expected = attend()
    monkeypatch.setattr(varlen, "varlen_attn", of_torch)
    monkeypatch.setattr(attention, "_varlen_kernel_fits", lambda *args: True)
    for found, wanted in zip(attend(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
