"""Families of models, one file each: how a Hugging Face configuration becomes megatron-core's, and what the weights are called.

shared.py            what families have in common
llama.py             Llama 2 and 3, and models of its shape
qwen2.py             Qwen2 and Qwen2.5
qwen3.py             Qwen3
qwen3_moe.py         Qwen3 with experts
glm4.py              GLM-4 (0414)
glm4_moe.py          GLM-4.5
glm4_moe_lite.py     GLM-4.7-Flash
deepseek_v3.py       DeepSeek-V3
gemma2.py            Gemma-2

A family is a function that keeps the contract `slime_megatron.spec.Family`. One of somebody's own is named by its import path
(`--custom-model-provider-path`).
"""

from __future__ import annotations

from slime_megatron.families.deepseek_v3 import deepseek_v3
from slime_megatron.families.gemma2 import gemma2
from slime_megatron.families.glm4 import glm4
from slime_megatron.families.glm4_moe import glm4_moe
from slime_megatron.families.glm4_moe_lite import glm4_moe_lite
from slime_megatron.families.llama import llama
from slime_megatron.families.qwen2 import qwen2
from slime_megatron.families.qwen3 import qwen3
from slime_megatron.families.qwen3_moe import qwen3_moe
from slime_megatron.spec import Family

FAMILIES: dict[str, Family] = {
    "deepseek_v3": deepseek_v3,
    "gemma2": gemma2,
    "glm4": glm4,
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
}
"""By the `model_type` of the configuration."""
