"""`Subject`: one component under test, and what the checks of `behaviour/` need to try it."""

from __future__ import annotations

import asyncio
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slime_core.errors import ArgumentError, SlimeError
from slime_core.plugins import Plugins, Selected
from slime_core.testing.inputs import CHAT_ROWS


class ContractError(SlimeError):
    """A component does not keep its contract. The message says in what, and what to do."""


class NotChecked(Exception):
    """A check could not be made because a package that it needs is not installed."""


class Subject:
    """A component, the arguments it is given, and a folder of its own.

    Args:
        kind, name, target: the component, `target` being the object itself.
        plugins: what is installed.
        examples: inputs that it takes, if it cannot use the kit's own.
        options: command-line words that change the run's arguments, such as `["--wandb-mode", "offline"]`.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        target: Callable[..., Any],
        plugins: Plugins,
        examples: Sequence[Any] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.kind, self.name, self.target, self.plugins = kind, name, target, plugins
        self.examples, self.options = list(examples), list(options)
        self._temporary = tempfile.TemporaryDirectory(prefix="slime-check-")
        self.folder = Path(self._temporary.name)

    def close(self) -> None:
        """Remove its folder."""
        self._temporary.cleanup()

    @cached_property
    def args(self) -> Any:
        """The frozen arguments of a small run: 2 prompts per rollout, 2 samples each, six rows of conversations."""
        from slime_core.arguments.namespace import Namespace
        from slime_core.arguments.resolve import resolve

        data, checkpoint = self.folder / "rows.jsonl", self.folder / "checkpoint"
        data.write_text("".join(json.dumps(row) + "\n" for row in CHAT_ROWS), encoding="utf-8")
        checkpoint.mkdir(exist_ok=True)
        words = ["--hf-checkpoint", checkpoint, "--run-dir", self.folder / "run", "--prompt-data", data]
        words += ["--input-key", "messages", "--label-key", "label", "--num-rollout", "1", "--rollout-batch-size", "2"]
        words += ["--n-samples-per-prompt", "2", "--eval-prompt-data", "heldout", data, "--eval-interval", "1"]
        return resolve(Namespace(self.plugins), [*map(str, words), *self.options], env={}).args

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

    def call(self, *args: Any, extras: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Call the component as a run does, its result checked, coroutines awaited.

        Args:
            extras: parameters that it may ask for by naming them, such as `engine`.
        """
        selected = Selected(self.kind, self.name, self.target, "the package under test", "the kit").bind(
            **(extras or {})
        )
        result = selected(*args, **kwargs)
        return wait_for(result) if inspect.isawaitable(result) else result

    def expect(self, kept: bool, problem: str) -> None:
        """Raise `ContractError` with `problem` unless `kept`."""
        if not kept:
            raise ContractError(problem)

    @contextmanager
    def unchanged(self, what: str, value: Callable[[], Any]) -> Iterator[None]:
        """The block must leave `value()` as it is."""
        before = value()
        yield
        self.expect(
            value() == before, f"it changed {what}; work on a copy: whoever called it goes on using what it passed."
        )

    @contextmanager
    def lacking(self, unread: list[str]) -> Iterator[None]:
        """The block gives it inputs in which `unread` are None, as it does not declare that it reads them."""
        try:
            yield
        except (TypeError, AttributeError) as error:
            if not unread or "NoneType" not in str(error):
                raise
            raise ContractError(
                f"it raised {type(error).__name__}: {error}. It was given None for {', '.join(unread)}, as it does not "
                "say that it reads them; say so: @slime_core.contracts.loss.reads(lambda args: {…})."
            ) from error

    @contextmanager
    def takes(self, inputs: str) -> Iterator[None]:
        """The block gives the component its examples or, as there are none, the kit's own `inputs`."""
        self.args  # noqa: B018 - wrong arguments are no refusal
        try:
            yield
        except SlimeError as error:
            if (
                isinstance(error, (ContractError, ArgumentError))
                or self.examples
                or str(error).startswith("It returned")
            ):
                raise
            raise ContractError(
                f"it refused the kit's own {inputs}: {error} If it is right to, give inputs that it takes: "
                f"EXAMPLES = {{{self.name!r}: […]}} in {self.target.__module__}, or examples=[…] in check_component."
            ) from error


def wait_for(awaitable: Any) -> Any:
    """The result of a coroutine, from plain code."""

    async def await_it() -> Any:
        return await awaitable

    return asyncio.run(await_it())


Check = Callable[[Subject], None]
"""Returns when the promise in the first line of its docstring is kept; raises otherwise."""
