"""Fills up attention's heads with heads of zeros where tensor-parallel ranks do not divide them, as the vocabulary is filled up
with rows of zeros.

A group is a head of keys and values with the heads of queries that look at it; with latent attention it is one head. Whole
groups are added behind the others. Their queries, keys and values are 0, and so is what attention makes of them; since their
columns of the output projection are 0 too, no gradient gets to them, and the columns' own gradient is a product with the zeros
that attention gave. So they stay exactly 0, and neither the gradient's norm nor any other number knows of them.
"""

from __future__ import annotations

from dataclasses import replace

from slime_core.errors import ArgumentError
from slime_megatron.names import Attention, Heads
from slime_megatron.spec import ModelSpec


def fill_up_heads(spec: ModelSpec, ranks: int) -> None:
    """Let so many tensor-parallel ranks have equally many groups of heads each. Changes fields and rules of `spec`, and adds a
    remark with what it costs, unless the ranks divide the groups anyway.

    Raises:
        ArgumentError: it is a family of somebody's own whose rules do not say where heads are; or the norms of single heads
            divide by 0, because their epsilon is 0.
    """
    heads: int = spec.config["num_attention_heads"]
    groups: int = (not spec.latent and spec.config.get("num_query_groups")) or heads
    filled = -(-groups // ranks) * ranks
    if filled == groups:
        return
    what = f"{heads} heads" if groups == heads else f"{heads} heads in {groups} groups with one key and value each"
    problem = f"The model has {what}, which --tensor-model-parallel-size {ranks} does not divide"
    rules = [
        replace(rule, layout=replace(rule.layout, filled=filled))
        if isinstance(rule.layout, Attention | Heads)
        else rule
        for rule in spec.rules
    ]
    if not any(isinstance(rule.layout, Heads) for rule in rules):
        raise ArgumentError(
            f"{problem}. They can be filled up where the family's rules have the layouts Attention and Heads "
            "(slime_megatron.names); those of --custom-model-provider-path do not."
        )
    if spec.config.get("qk_layernorm") and not spec.latent and not spec.config["layernorm_epsilon"]:
        raise ArgumentError(
            f"{problem}, and it cannot be filled up with heads of zeros: its rms_norm_eps is 0, so norms of heads would divide "
            "by 0. Choose a size that divides."
        )
    added = heads // groups * (filled - groups)
    spec.rules, spec.zero_heads = rules, added
    spec.config["num_attention_heads"] = heads + added
    if not spec.latent:
        spec.config["num_query_groups"] = filled
    spec.remarks.append(
        f"{problem}: {added} heads of zeros are added to each layer. They stay zero and are never exported; attention takes "
        f"{added / heads:.0%} more time and memory."
    )
