"""What can be seen of the checkpoints that a run starts from without loading a model. Called by the checks of train backends
that read Hugging Face checkpoints (`slime_core.contracts.checking`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slime_core.contracts.checking import Checking
from slime_core.data.checkpoint_folders import recognise, require_folder, require_hugging_face
from slime_core.data.quantised_checkpoints import weight_files_if_any
from slime_core.errors import ArgumentError
from slime_core.remote_code import load_configuration
from slime_core.training.initial_weights import foreign_weights


def read_configuration(folder: str, option: str) -> Any:
    """Return the configuration of a Hugging Face checkpoint.

    Raises:
        ArgumentError: there is none, or none that transformers can read.
    """
    require_folder(folder, option)
    try:
        return load_configuration(folder)
    except ArgumentError as error:
        raise ArgumentError(f"{option} {error}") from error
    except Exception as error:  # transformers raises whatever its parsers raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise ArgumentError(f"{option} {folder} holds no model configuration that can be loaded: {text}") from error


def check_checkpoints(checking: Checking, read: Callable[[str, str], Any] = read_configuration) -> Any:
    """Look at `--hf-checkpoint` and whatever else the run starts from: configuration, the beginning of every file of weights,
    and the embedding. Says what is wrong, and returns the configuration; None if it cannot be read.

    Args:
        read: what reads the configuration in a folder; `slime_core.training.model_facts.configuration_of` for a backend that asks no
            more of it than those facts.
    """
    args, config = checking.args, None
    if checking.is_elsewhere(args.hf_checkpoint):  # told by the look at the tokenizer
        with checking.noting():
            return read(checking.card, "--hf-checkpoint") if checking.card else None
    with checking.noting():
        require_hugging_face(args.hf_checkpoint, "--hf-checkpoint")
        config = read(args.hf_checkpoint, "--hf-checkpoint")
    if args.debug_rollout_only:
        return config
    foreign = None
    with checking.noting():
        foreign = foreign_weights(args)
    given = {"--load": args.load if foreign else None, "--ref-load": args.ref_load}
    if args.critic_load is not None:
        with checking.noting():
            require_weights(args.critic_load, "--critic-load")
    option = next((name for name in ("--load", "--ref-load") if given[name]), "--hf-checkpoint")
    trained = given.get(option) or args.hf_checkpoint
    if config is not None:
        with checking.noting():
            require_weights(trained, option)
            _look_at_embedding(checking, config, trained, option)
    return config


def require_weights(folder: str, option: str) -> None:
    """Check that a folder has weights; of a Hugging Face checkpoint, that all of its files are there and have their beginning.

    Raises:
        ArgumentError: they are not.
    """
    path, found = Path(folder), recognise(Path(folder))
    if found is None:
        what = "does not exist" if not path.exists() else "holds no weights"
        raise ArgumentError(f"{option} {folder} {what}. Give a folder with a checkpoint, or leave the option out.")
    if found.format != "huggingface":
        return
    for index in path.glob("*.index.json"):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            raise ArgumentError(
                f"{option} {folder}: {index.name} is no index of weights. Get a complete checkpoint."
            ) from None
        if missing := sorted(name for name in named if not (path / name).is_file()):
            raise ArgumentError(
                f"{option} {folder} lacks {len(missing)} of the {len(named)} files that {index.name} names: "
                f"{', '.join(missing[:3])}. Get a complete checkpoint."
            )
    if not any(file for pattern in ("*.safetensors", "*.bin", "*.pth", "*.pt") for file in path.glob(pattern)):
        raise ArgumentError(f"{option} {folder} holds no weights, only a configuration. Get a complete checkpoint.")
    for file in sorted(path.glob("*.safetensors")):
        _require_header(file, f"{option} {folder}")


def stored_linear(folder: str) -> set[str]:
    """Return the last parts of the names of all linear layers in the blocks of a Hugging Face checkpoint, as its
    safetensors files say; empty where they do not."""
    from safetensors import safe_open

    found = set()
    for file in weight_files_if_any(Path(folder)):
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                path = name.split(".")
                in_a_block = path[-1] == "weight" and any(part.isdigit() for part in path[:-2])
                if in_a_block and len(stored.get_slice(name).get_shape()) == 2:
                    found.add(path[-2])
    return found


def _look_at_embedding(checking: Checking, config: Any, folder: str, option: str) -> None:
    from slime_core.tensors.embedding import require_rows, require_tied, stored_rows

    rows = None
    if config is None or not any(Path(folder).glob("*.safetensors")):
        return
    with checking.noting():
        require_tied(folder, bool(getattr(config.get_text_config(), "tie_word_embeddings", False)), option)
        rows = stored_rows(folder)
    if rows is not None and checking.tokenizer is not None:
        with checking.noting():
            require_rows(checking.tokenizer, rows, option)


def _require_header(file: Path, where: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ArgumentError(
            f"{where}: {file.name} cannot be read ({error}). It may not have been copied whole."
        ) from None
