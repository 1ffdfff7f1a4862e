"""`SmallRun`: what the kit calls components and observers with: the arguments of a small run, and a folder for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from slime_core.plugins import Plugins
from slime_core.testing.inputs import CHAT_ROWS

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.arguments.namespace import Namespace
    from slime_core.arguments.resolve import Resolved


class NotChecked(Exception):
    """A check could not be made because a package that it needs is not installed."""


class Closable(Protocol):
    """Something that is closed when it is not needed any more."""

    def close(self) -> None:
        """Give back what it holds."""


Opened = TypeVar("Opened", bound=Closable)


class SmallRun:
    """The arguments of a small run, and a folder of its own.

    Args:
        plugins: what is installed.
        options: command-line words that change the run's arguments, such as `["--wandb-mode", "offline"]`.

    Attributes:
        folder: exists until `close`.
        read: names of the options of plugins that were read from `args` so far.
    """

    def __init__(self, plugins: Plugins, options: Sequence[str] = ()) -> None:
        self.plugins, self.options = plugins, list(options)
        self.read: set[str] = set()
        self._temporary = tempfile.TemporaryDirectory(prefix="slime-check-")
        self.folder = Path(self._temporary.name)
        self._opened = ExitStack()

    def close(self) -> None:
        """Remove its folder."""
        self._temporary.cleanup()

    @cached_property
    def namespace(self) -> Namespace:
        """All options that there are."""
        from slime_core.arguments.namespace import Namespace

        return Namespace(self.plugins)

    @cached_property
    def resolved(self) -> Resolved:
        """The run before any component reads its arguments: 2 prompts per rollout, 2 samples each, six conversations.

        Raises:
            ArgumentError: `options` cannot be used.
        """
        from slime_core.arguments.resolve import resolve

        data, checkpoint = self.folder / "rows.jsonl", self.folder / "checkpoint"
        data.write_text("".join(json.dumps(row) + "\n" for row in CHAT_ROWS), encoding="utf-8")
        checkpoint.mkdir(exist_ok=True)
        words = ["--hf-checkpoint", checkpoint, "--run-dir", self.folder / "run", "--prompt-data", data]
        words += ["--input-key", "messages", "--label-key", "label", "--num-rollout", "1", "--rollout-batch-size", "2"]
        words += ["--n-samples-per-prompt", "2", "--eval-prompt-data", "heldout", data, "--eval-interval", "1"]
        return resolve(self.namespace, [*map(str, words), *self.options], env={})

    @cached_property
    def args(self) -> RunArguments:
        """The frozen arguments of the run, which note in `read` what is read from them."""
        of_plugins = {o.name for o in self.namespace.options.values() if o.distribution != "slime-core"}
        return _noting(self.resolved.args, of_plugins, self.read)

    def need_checkpoint(self, weights: bool) -> None:
        """Fill the folder of `args.hf_checkpoint`, unless `options` chose another checkpoint.

        Raises:
            NotChecked: transformers is not installed, or with `weights` torch.
        """
        for package in ("transformers", "torch") if weights else ("transformers",):
            self.need(package)
        folder = Path(self.args.hf_checkpoint)
        written = folder / ("model.safetensors" if weights else "tokenizer_config.json")
        if folder == self.folder / "checkpoint" and not written.exists():
            from slime_core.testing.checkpoint import tiny_checkpoint

            tiny_checkpoint(folder, weights)

    def need(self, package: str) -> None:
        """Raise `NotChecked` unless `package` is installed."""
        if find_spec(package) is None:
            raise NotChecked(f"needs {package}, which is not installed; pip install {package}")

    def closing(self, opened: Opened) -> Opened:
        """Return `opened`, which is closed after the check.

        What its `close` raises then counts for nothing: a check of its own tells how a component closes.
        """

        def close() -> None:
            with suppress(Exception):
                opened.close()

        self._opened.callback(close)
        return opened

    def close_opened(self) -> None:
        """Close what was given to `closing`."""
        self._opened.close()


def _noting(args: RunArguments, names: set[str], read: set[str]) -> RunArguments:
    """Return a copy of `args` that adds to `read` each of `names` that is read from it."""
    original = type(args)

    def get(self: RunArguments, name: str) -> object:
        if name in names:
            read.add(name)
        return original.__getattribute__(self, name)

    members = {"__getattribute__": get, "__module__": original.__module__}
    noting = cast("type[RunArguments]", type(original.__name__, (original,), members))
    return noting.model_construct(_fields_set=args.model_fields_set, **vars(args))
