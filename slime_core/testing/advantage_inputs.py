"""`advantage_inputs`: a small rollout as advantage estimators are given it. It needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core.contracts.advantage import AdvantageInputs

REWARDS = ((1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.25, -1.5))
LENGTHS = ((3, 5, 1, 4), (2, 1, 6), (3, 2))


def advantage_inputs(
    rewards: Sequence[Sequence[float]] = REWARDS,
    lengths: Sequence[Sequence[int]] | None = None,
    *,
    masked: Sequence[int] = (),
    rewards_are_final: bool = False,
) -> AdvantageInputs:
    """Return the signals of a rollout, every optional one included, with the same numbers in every call.

    Args:
        rewards: one for each sample of each group.
        lengths: how many response tokens each sample has, which may be none; by default between 1 and 6.
        masked: numbers of samples, counted over the rollout, none of whose tokens is trained.
    """
    import torch

    if lengths is None:
        lengths = LENGTHS if rewards is REWARDS else [[3 + i % 3 for i, _ in enumerate(group)] for group in rewards]
    counts = torch.tensor([n for group in lengths for n in group], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    mask = torch.tensor([float(int(s) not in masked) for s in owner], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, len(owner), generator=generator, dtype=torch.float64)
    log_probs = (-noise[0].abs() - 0.05) * mask
    return AdvantageInputs(
        rewards=torch.tensor([r for group in rewards for r in group], dtype=torch.float64),
        group_index=torch.tensor([g for g, group in enumerate(rewards) for _ in group], dtype=torch.int64),
        lengths=counts,
        loss_mask=mask,
        sample_index=owner,
        trajectory_index=torch.arange(len(counts)),
        rewards_are_final=rewards_are_final,
        log_probs=log_probs,
        ref_log_probs=(log_probs + 0.3 * noise[1]).clamp(max=0.0) * mask,
        values=0.5 * noise[2] * mask,
    )
