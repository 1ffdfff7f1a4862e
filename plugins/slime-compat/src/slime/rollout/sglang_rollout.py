"""What generate functions call of slime's rollout; `--rollout-function-path slime.rollout.sglang_rollout.generate_rollout`
is slime-rollout-sglang's `rl`.
"""

from slime_compat.elsewhere import attributes_of
from slime_compat.functions import load_function
from slime_compat.generating import generate, generate_and_rm, generate_and_rm_group, get_model_url
from slime_compat.posting import get, post
from slime_compat.scoring import async_rm, batched_async_rm
from slime_compat.state import GenerateState
from slime_core.sample import Sample

__all__ = [
    "GenerateState",
    "Sample",
    "async_rm",
    "batched_async_rm",
    "generate",
    "generate_and_rm",
    "generate_and_rm_group",
    "get",
    "get_model_url",
    "load_function",
    "post",
]

__getattr__ = attributes_of(__name__)
