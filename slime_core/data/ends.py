"""The tokens that end trained turns, and those at which a checkpoint is known to stop.

A base model whose end token is `<|endoftext|>` may be trained with a template whose turns end in `<|im_end|>`. It learns to
write that, but whatever generates from it goes on behind it, unless somebody says where to stop. So what trains notes the
ends (`TrainedEnds`), checkpoints keep them, and every export names them in its generation_config.json, which transformers,
SGLang and the embedded engine read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.data.begun_from import begun_from
from slime_core.data.checkpoint_folders import recognise
from slime_core.data.tokenizer import load_tokenizer
from slime_core.sample import Sample, Status
from slime_core.token_arrays import kept, trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments import RunArguments

_FILE = "trained_ends.json"
_GENERATION = "generation_config.json"
_ALWAYS = ("<|eom_id|>", "<|content_model_end_sampling|>", "<|ifm|im_end|>")
"""Tokens at which SGLang stops whenever a tokenizer has added them."""
_LANGUAGE_MODELS = ("thinker_config", "llm_config", "language_config", "text_config")
"""Where the configuration of a model of several parts has that of its language model."""


def trained_end(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the last trained part of a completed sample ends, white space behind it left out;
    None if it ends otherwise.

    Earlier turns say less: gpt-oss ends them with a token that means no end where it is generated.
    """
    mask = trained(sample)
    if not mask.any():
        return None
    ids = kept(sample, "tokens")
    special, end = _special(tokenizer), len(ids) - int(mask[::-1].argmax())
    first = len(ids) - len(mask)
    for place in range(end - 1, max(first, end - 3) - 1, -1):
        if not mask[place - first]:
            return None
        token: int = ids[place]
        if token in special:
            return token
        if str(tokenizer.decode([token])).strip():
            return None
    return None


@lru_cache(maxsize=4)
def known_ends(folder: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the end tokens of a checkpoint, those of SGLang: the tokenizer's, and those of generation_config.json and config.json."""
    added = tokenizer.get_added_vocab()
    of_tokenizer = {*_of(tokenizer.eos_token_id), *(added[text] for text in _ALWAYS if text in added)}
    return frozenset({*_stored_ends(Path(folder), (_GENERATION, "config.json")), *of_tokenizer})


def ends_of_weights(args: RunArguments) -> list[int]:
    """Return the end tokens of the model that a run starts from where that is not `--hf-checkpoint`, but a Hugging Face
    checkpoint that `--load` or `--ref-load` names, or that the run began with which `--load` goes on with: what was trained may stop where
    the base model does not. Sorted."""
    if (begun := begun_from(args.load)) is not None:
        return begun.ends
    for folder in (args.load, args.ref_load):
        found = recognise(Path(folder)) if folder else None
        if found is not None and found.format == "huggingface":
            return sorted(set(_stored_ends(found.path, (_GENERATION, "config.json"))))
    return []


class TrainedEnds:
    """The special tokens with which the samples end that were trained in a run and those that it continues.

    Args:
        checkpoint: the Hugging Face folder with the tokenizer, which is loaded with the first samples.
    """

    def __init__(self, checkpoint: str) -> None:
        self._checkpoint = checkpoint
        self._ends: set[int] = set()

    def note(self, samples: Iterable[Sample]) -> None:
        """Note the ends of samples that are trained. One that was cut off has none."""
        if not any((Path(self._checkpoint) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return
        tokenizer = load_tokenizer(self._checkpoint)
        for sample in samples:
            if sample.status is not Status.TRUNCATED and (end := trained_end(sample, tokenizer)) is not None:
                self._ends.add(end)

    def save(self, folder: Path) -> None:
        """Write them into the folder of a checkpoint."""
        (folder / _FILE).write_text(json.dumps(sorted(self._ends)), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Add those of a checkpoint."""
        self._ends |= set(stored_trained_ends(folder))

    def write(self, export: Path) -> list[str]:
        """Name them in the generation_config.json of an exported model, and return those that it did not know, as text."""
        added = add_ends(export, sorted(self._ends))
        tokenizer = load_tokenizer(self._checkpoint) if added else None
        return [str(tokenizer.decode([token])) for token in added] if tokenizer else []


def stored_trained_ends(folder: Path) -> list[int]:
    """Return the ends that a checkpoint of a run keeps in this folder; [] where it keeps none."""
    try:
        return _of(json.loads((folder / _FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []


def add_ends(export: Path, ends: Sequence[int]) -> list[int]:
    """Let generation stop at further tokens, in the generation_config.json of a Hugging Face checkpoint, and return those
    that were not there yet. Without that file, what config.json says is kept: whoever finds the file reads no other."""
    known = _stored_ends(export, (_GENERATION,)) or _stored_ends(export, ("config.json",))
    added = [token for token in ends if token not in known]
    if not added:
        return []
    file = export / _GENERATION
    if file.is_file():
        settings = _read(file)
    else:
        config = _read(export / "config.json")
        settings = {name: config[name] for name in ("bos_token_id", "pad_token_id") if config.get(name) is not None}
    settings["eos_token_id"] = [*known, *added]
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return added


def _stored_ends(folder: Path, files: Sequence[str]) -> list[int]:
    return list(dict.fromkeys(token for name in files for token in configured_ends(_read(folder / name))))


def configured_ends(config: Mapping[str, Any]) -> list[int]:
    """Return the end tokens that a configuration names, or its language model's where it has no entry for them itself."""
    if "eos_token_id" in config:
        return _of(config["eos_token_id"])
    parts = (config[name] for name in _LANGUAGE_MODELS if isinstance(config.get(name), Mapping))
    return configured_ends(next(parts, {"eos_token_id": None}))


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _of(value: Any) -> list[int]:
    return [token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)]


@lru_cache(maxsize=4)
def _special(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
