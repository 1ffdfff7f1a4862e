"""Model folders may bring Python code that transformers executes. Here it is executed only where somebody asked for it with
`--trust-remote-code`, and nobody is asked on the terminal. Whatever loads something of such a folder calls `from_pretrained`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from slime_core.errors import ArgumentError

OPTION = "--trust-remote-code"
_trusted = False


def trust_remote_code(trusted: bool) -> None:
    """Set what `--trust-remote-code` says, for this process. Called where the arguments of a run are read."""
    global _trusted
    _trusted = trusted


def is_trusted() -> bool:
    """Whether code of model folders may be executed in this process."""
    return _trusted


def from_pretrained(kind: Any, folder: Any, **settings: Any) -> Any:
    """Return `kind.from_pretrained(folder, …)` of one of transformers' Auto classes.

    Raises:
        ArgumentError: it would need code of the folder, which nobody trusts.
        Exception: what transformers raises.
    """
    return _without_code(folder, lambda: kind.from_pretrained(folder, trust_remote_code=_trusted, **settings))


def load_configuration(folder: Any) -> Any:
    """Return the configuration of a Hugging Face checkpoint, as transformers completes it. Raises like `from_pretrained`."""
    from transformers import AutoConfig  # with which it imports the classes of models, two seconds

    return from_pretrained(AutoConfig, folder)


def from_config(kind: Any, config: Any, **settings: Any) -> Any:
    """Return `kind.from_config(config, …)`, which a model's code is found through, too. Its weights have no values yet: whoever asks wants
    names and shapes, or fills them. Raises like `from_pretrained`."""
    from transformers.initialization import no_init_weights  # without it, two thirds of a second on the meta device

    folder = getattr(config, "_name_or_path", "") or "the model"
    with no_init_weights():
        return _without_code(folder, lambda: kind.from_config(config, trust_remote_code=_trusted, **settings))


def copy_code(source: str, export: Path) -> None:
    """Copy the Python code of a model folder into an export of it whose configuration or tokenizer names some, where transformers has
    not: it does so only for what it has executed itself."""
    if any(b'"auto_map"' in file.read_bytes() for file in export.glob("*config.json")):
        for file in Path(source).glob("*.py"):
            if not (export / file.name).exists():
                shutil.copyfile(file, export / file.name)


def _without_code(folder: Any, load: Any) -> Any:
    try:
        return load()
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ArgumentError(
            f"{folder} brings Python code of its own (auto_map in its configuration), without which it cannot be loaded, and which is "
            f"not executed: read it and, if you trust it, add {OPTION}."
        ) from None
