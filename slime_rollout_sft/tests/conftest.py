"""Tokenizers of the template families that loss masks are tested with."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slime_core.plugins import Plugins
from slime_core.rollout.components import RolloutComponents

_SPECIAL = re.compile(
    r"<\|[^|<>\s'\"]+\|>|<｜[^｜]+｜>|</?s>|<(?:start|end)_of_\w+>|<\|turn>|<turn\|>|<tool_call\|>"
    r"|\[/?INST\]|\[gMASK\]|<sop>"
)


class Family(NamedTuple):
    """A chat template with a tokenizer. Where `template` is None, it is the tokenizer's own."""

    tokenizer: str
    template: str | None = None


# Llama, Gemma, GLM and the rest have no tokenizer in a package: their templates run on another fast tokenizer, to
# which the special tokens of the template are added.
FAMILIES = {
    "smollm2": Family("smollm2"),
    "qwen2.5": Family("qwen2.5"),
    "qwen3": Family("qwen3"),
    "deepseek-v3": Family("deepseek", "deepseekv3"),
    "deepseek-r1-distill": Family("deepseek", "deepseek_r1_distill"),
    "llama-3": Family("smollm2", "llama3"),
    "llama-3.1": Family("smollm2", "llama3_1"),
    "gemma": Family("smollm2", "gemma"),
    "gemma-3": Family("qwen2.5", "gemma3"),
    "glm-4": Family("qwen2.5", "glm4moe"),
    "phi-3": Family("smollm2", "phi3"),
    "gpt-oss": Family("smollm2", "gptoss"),
    "cohere-2": Family("smollm2", "cohere2"),
    "smolvlm": Family("smollm2", "smolvlm"),
}


def add_special_tokens(tokenizer: Any, templates: str) -> None:
    """Give `tokenizer` the special tokens that occur in the text of templates, and a beginning and an end."""
    from tokenizers import AddedToken

    found = sorted(set(_SPECIAL.findall(templates)) | {"<BOS>", "<EOS>"})
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in found], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<BOS>", "<EOS>"


@pytest.fixture(scope="session")
def load_tokenizer(assets: Callable[[str], Path]) -> Callable[[str], Any]:
    """`load_tokenizer("qwen3")`: one of the tokenizers of `scripts/assets.py`, loaded once."""
    from transformers import AutoTokenizer

    folder = assets("tokenizers")
    return cache(lambda name: AutoTokenizer.from_pretrained(folder / name))


@pytest.fixture(scope="session")
def template_text(assets: Callable[[str], Path]) -> Callable[[str], str]:
    """`template_text("glm4moe")`: a chat template of the assets."""
    folder = assets("templates")
    return lambda name: (folder / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def family(load_tokenizer: Callable[[str], Any], template_text: Callable[[str], str]) -> Callable[[str], Any]:
    """`family("llama-3")`: the tokenizer of one of `FAMILIES`, with its template."""

    def load(name: str) -> Any:
        chosen = FAMILIES[name]
        tokenizer = load_tokenizer(chosen.tokenizer)
        if chosen.template is None:
            return tokenizer
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template_text(chosen.template)
        if chosen.tokenizer != "deepseek":
            add_special_tokens(tokenizer, tokenizer.chat_template)
        return tokenizer

    return cache(load)


@pytest.fixture(scope="session")
def any_template(load_tokenizer: Callable[[str], Any], assets: Callable[[str], Path]) -> Callable[[str], Any]:
    """`any_template("phi3_training")`: one tokenizer that has the special tokens of all templates, with that one."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted(assets("templates").glob("*.jinja"))}
    tokenizer = copy.deepcopy(load_tokenizer("qwen3"))  # which knows <think>
    add_special_tokens(tokenizer, "\n".join(files.values()))

    def use(name: str) -> Any:
        tokenizer.chat_template = files[name]
        return tokenizer

    return use


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return Plugins()


@pytest.fixture(scope="session")
def components(plugins: Plugins) -> Callable[[Any], RolloutComponents]:
    """`components(args)`: what an SFT run with these arguments is given."""

    def choose(args: Any) -> RolloutComponents:
        rollout = plugins.select("rollout", "sft")
        return RolloutComponents(
            rollout,
            rollout,
            data_source=plugins.select("data_source", args.data_source_path),
            buffer_pop=plugins.select("buffer_pop", args.buffer_filter_path),
            further={"loss_mask": plugins.select("loss_mask", args.loss_mask_type)},
        )

    return choose
