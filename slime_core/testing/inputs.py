"""Small realistic inputs for components: samples, groups, rows, and the tensors that a loss is given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from slime_core.contracts.loss import LossInputs, Reduce, Responses
from slime_core.sample import Group, Sample, Status

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, Any]

CHAT_ROWS: list[Row] = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} + {n + 1}?"},
            {"role": "assistant", "content": f"{n} + {n + 1} = {2 * n + 1}"},
        ],
        "label": str(2 * n + 1),
    }
    for n in range(3, 9)
]
"""Six rows as `--prompt-data` holds them."""

FOREIGN_ROWS: list[Row] = [
    {"conversations": [{"from": "human", "value": "What is 3 + 4?"}, {"from": "gpt", "value": "7"}]},
    {"instruction": "Add the numbers.", "input": "3 and 4", "output": "7"},
    {"question": "What is 3 + 4?", "answer": "3 + 4 is 7.\n#### 7"},
    {"question": "What is 3 + 4?", "answer": "What comes after 6? ** It is 7.\n#### 7"},
    {"prompt": [{"role": "user", "content": "What is 3 + 4?"}], "response": "7"},
    {"messages": [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "7"}]},
]
"""Rows in formats that are common elsewhere."""

CONVERSATIONS: list[list[Row]] = [
    [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "It is 7."}],
    [
        {"role": "system", "content": "You are brief. 你好 🙂"},
        {"role": "user", "content": "What is 3 + 4?"},
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "And one more?"},
        {"role": "assistant", "content": "8"},
    ],
]

TOOLS: list[Row] = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
]


def sample(**changes: Any) -> Sample:
    """Return a finished, scored sample: "What is 3 + 4?", answered rightly; `changes` are fields that shall differ."""
    fields: dict[str, Any] = {
        "group_index": 0,
        "index": 0,
        "prompt": "user: What is 3 + 4?\nassistant: ",
        "tokens": [11, 12, 13, 14, 21, 22, 23],
        "response": "3 + 4 = 7",
        "response_length": 3,
        "loss_mask": [1, 1, 1],
        "label": "7",
        "reward": 1.0,
        "rollout_log_probs": [-0.1, -0.5, -0.2],
        "weight_versions": [0, 0, 0],
        "status": Status.COMPLETED,
        "metadata": {"slime": {"source": "rows.jsonl:1", "asked": [{"role": "user", "content": "What is 3 + 4?"}]}},
    }
    return Sample(**copy.deepcopy({**fields, **changes}))


def group(rewards: Sequence[float] = (1.0, 0.0, 0.0, 0.0), group_index: int = 0) -> Group:
    """Return the samples of one prompt, one for each reward: answered rightly, wrongly, cut off, not at all, and so on
    from the start."""
    empty = {"tokens": [11, 12, 13, 14, 2], "response_length": 1, "loss_mask": [1], "weight_versions": [0]}
    answers: list[dict[str, Any]] = [
        {"response": "3 + 4 = 7"},
        {"response": "3 + 4 = 8"},
        {"response": "Let me think: 3 + 4", "status": Status.TRUNCATED},
        {"response": "", "rollout_log_probs": [-0.3], **empty},
    ]
    first = group_index * len(rewards)
    return [
        sample(group_index=group_index, index=first + i, reward=reward, **answers[i % len(answers)])
        for i, reward in enumerate(rewards)
    ]


def groups(count: int) -> list[Group]:
    """Return groups of four samples, whose rewards differ, are all 1, are all 0, and so on from the start."""
    rewards = [(1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0)]
    return [group(rewards[n % 3], n) for n in range(count)]


def loss_inputs(
    micro_batches: Sequence[Sequence[int]] = ((0, 1, 2, 3),), *, per_token: bool = False, padding: int = 2
) -> list[LossInputs]:
    """Return one global batch of four samples with 3, 5, 1 and 4 trained tokens, cut into micro-batches.

    The numbers are the same in every call, so that the sums over different cuts can be compared. Floats are float64,
    and every optional tensor is there. It needs torch.

    Args:
        micro_batches: the numbers of the samples that each holds; an empty one holds no token.
        per_token: weigh tokens for the mean over all tokens, and not for the mean over trajectories, of which each sample is one; see
            `slime_core.training.batches.token_weights`.
        padding: how many tokens with mask 0 follow the tokens of each sample.

    Returns:
        one `LossInputs` for each micro-batch; its `log_probs` is a leaf that requires gradients.
    """
    import torch

    lengths = [3, 5, 1, 4]
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([s for s, length in enumerate(lengths) for _ in range(length + padding)])
    mask = torch.tensor([float(i < n) for n in lengths for i in range(n + padding)], dtype=torch.float64)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(len(owner), generator=generator, dtype=torch.float64)

    log_probs = -normal(1.0).abs() - 0.05
    advantages = torch.tensor([1.0, -0.5, 0.25, -1.5], dtype=torch.float64)[owner]
    shares = torch.tensor([1 / sum(lengths) if per_token else 1 / (len(lengths) * n) for n in lengths])
    columns = {
        "loss_mask": mask,
        "entropy": normal(1.0).abs(),
        "old_log_probs": (log_probs + normal(0.05)).clamp(max=0.0),
        "ref_log_probs": (log_probs + normal(0.3)).clamp(max=0.0),
        "rollout_log_probs": (log_probs + normal(0.05)).clamp(max=0.0),
        "advantages": advantages,
        "returns": advantages + normal(0.1),
        "values": normal(0.5),
        "old_values": normal(0.5),
    }
    columns["trainer_log_probs"] = columns["old_log_probs"].clone()
    whole = [
        Sample(tokens=[0] * (n + padding + 1), response_length=n + padding, loss_mask=[1] * n + [0] * padding)
        for n in lengths
    ]
    weights = shares.to(torch.float64)[owner] * mask
    made = []
    for samples in micro_batches:
        chosen = torch.tensor([int(s) in samples for s in owner], dtype=torch.bool)
        number = torch.tensor([list(samples).index(int(s)) for s in owner[chosen]], dtype=torch.int64)
        of_tokens: dict[str, Any] = {name: column[chosen].clone() for name, column in columns.items()}
        made.append(
            LossInputs(
                log_probs=log_probs[chosen].clone().requires_grad_(),
                sample_index=number,
                reduce=Reduce(weights[chosen]),
                measured=Reduce(weights[chosen]),
                responses=Responses([whole[s] for s in samples], sum(lengths) if per_token else len(lengths)),
                **of_tokens,
            )
        )
    return made
