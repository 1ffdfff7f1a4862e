"""Takes a model's own dropout out of it: models are trained without, whatever their config.json says. The backend calls `turn_off`
before adapters, which have a dropout of their own.

Models of transformers have the shares that are dropped as modules, as numbers of modules, and as numbers of their configuration, which
some read in every forward pass. All of these are named after it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

Share = tuple[Any, str, float]
"""A module or a configuration, the name that a share has there, and the share."""

_log = logging.getLogger(__name__)


def turn_off(model: nn.Module) -> list[Share]:
    """Set all shares of dropout in `model` and its configuration to 0, and return those of the configuration as they were."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, *_configurations(module))}
    shares = [share for owner in owners.values() for share in _shares(owner)]
    for owner, name, _ in shares:
        setattr(owner, name, 0.0)
    configured = [share for share in shares if not isinstance(share[0], nn.Module)]
    if configured:
        told = ", ".join(sorted({f"{name} {share}" for _, name, share in configured}))
        _log.info("%s is trained without the dropout of its configuration (%s).", type(model).__name__, told)
    return configured


@contextmanager
def as_configured(shares: Sequence[Share]) -> Iterator[None]:
    """Let the configuration say what it said before `turn_off`, inside of this context."""
    for owner, name, share in shares:
        setattr(owner, name, share)
    try:
        yield
    finally:
        for owner, name, _ in shares:
            setattr(owner, name, 0.0)


def _configurations(module: nn.Module) -> list[Any]:
    """That of a module, and those inside of it."""
    from transformers import PreTrainedConfig

    found = [config for config in [getattr(module, "config", None)] if isinstance(config, PreTrainedConfig)]
    for config in found:
        found += [inner for inner in vars(config).values() if isinstance(inner, PreTrainedConfig)]
    return found


def _shares(owner: Any) -> Iterator[Share]:
    of_dropout = "drop" in type(owner).__name__.lower()  # torch's modules call theirs p
    for name, value in vars(owner).items():
        if isinstance(value, float) and value and ("drop" in name.lower() or (of_dropout and name == "p")):
            yield owner, name, value
