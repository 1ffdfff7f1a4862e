"""What a component says of a run before it starts: `slime check` prints it, and a run begins with it.

    def check(args, checking):
        if not args.my_url:
            checking.error("The reward 'mine' needs --my-url.")

    Lazy("my_package.reward:mine", "…", check="my_package.checks:check")     # in slime_rewards()

    @checked_by(check)                                                       # or at the object itself
    def mine(args, sample): ...

A check opens what the component will open, and takes no longer than a second or two: no model is loaded, nothing is written,
and no service is asked that counts or costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from slime_core.another_machine import is_for_another_machine
from slime_core.errors import SlimeError
from slime_core.output import path_in_the_way
from slime_core.sample import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.arguments import RunArguments
    from slime_core.plugins import Plugins, Selected
    from slime_core.run.components import Components

Weight = Literal["error", "remark", "not seen"]
Component = TypeVar("Component")


@dataclass(frozen=True)
class Finding:
    """Something that was seen in a run before it started.

    Attributes:
        weight: "error": the run would fail; "remark": it would do something that a person may not expect; "not seen": it could
            not be looked at here.
        text: whole sentences.
        error: the exception that says so, where there was one.
    """

    weight: Weight
    text: str
    error: SlimeError | None = None


@contextmanager
def noting(found: list[Finding]) -> Iterator[None]:
    """Take note of a `SlimeError` that the block raises, or of a path that cannot be looked at, as an error, and go on behind the block."""
    try:
        yield
    except SlimeError as error:
        found.append(Finding("error", str(error), error))
    except OSError as error:
        if (told := path_in_the_way(error)) is None:
            raise
        found.append(Finding("error", str(told), told))


@dataclass
class Checking:
    """What a check is given, and where it says what it found.

    Attributes:
        args: the options of the run. One that is wrong has its default here, and is named in `set_aside`.
        plugins: the process's `Plugins`.
        components: everything that the run chooses (`slime_core.run.components.Components`).
        tokenizer: of `--hf-checkpoint`; None where it cannot be loaded, which is told already.
        samples: the first sample of every file that is trained on, as the data source reads it.
        set_aside: names of options that are not looked at any further, since they are wrong.
        card: a folder with the configuration of a model that is called like `--hf-checkpoint`, where that itself is elsewhere.
        found: what was said so far.
    """

    args: RunArguments
    plugins: Plugins
    components: Components
    tokenizer: PreTrainedTokenizerBase | None = None
    samples: Sequence[Sample] = ()
    set_aside: frozenset[str] = frozenset()
    card: str | None = None
    found: list[Finding] = field(default_factory=list)

    def error(self, text: str) -> None:
        """The run would fail."""
        self.found.append(Finding("error", text))

    def remark(self, text: str) -> None:
        """The run would do something that a person may not expect."""
        self.found.append(Finding("remark", text))

    def not_seen(self, text: str) -> None:
        """Something cannot be looked at on this machine."""
        self.found.append(Finding("not seen", text))

    def is_elsewhere(self, folder: str) -> bool:
        """Whether a folder that is not here may be on the machines that the run is for (`--ray-address`, `--elsewhere`)."""
        return is_for_another_machine(self.args) and not _is_here(folder)

    def configuration_folder(self) -> str | None:
        """The folder that has the configuration of the model: `--hf-checkpoint`, or where that is elsewhere what an installed
        distribution knows of a model of this name (`slime_core.arguments.recipe_names`); None where there is none."""
        if not self.is_elsewhere(self.args.hf_checkpoint):
            return self.args.hf_checkpoint
        return self.card

    def noting(self) -> AbstractContextManager[None]:
        """Take note of a `SlimeError` that the block raises, or of a path that cannot be looked at, as an error, and go on behind the block."""
        return noting(self.found)

    def ask(self, component: Selected[Any], samples: Sequence[Sample] | None = None) -> None:
        """Let a component check the run. One that has no check says nothing.

        Args:
            samples: those that it will be given, where they are others than `samples`.
        """
        inner = replace(self, samples=self.samples if samples is None else samples)
        with self.noting():
            component.check(inner)


def _is_here(folder: str) -> bool:
    try:
        return Path(folder).exists()
    except OSError:  # another person's folder
        return False


Check = Callable[[Any, Checking], None]
"""`check(args, checking)`. A `SlimeError` that it raises is an error of the run too."""


def checked_by(check: Check) -> Callable[[Component], Component]:
    """Decorator of components that no `Lazy` with a check stands for: what checks a run that has chosen them."""

    def mark(component: Component) -> Component:
        component.slime_check = check  # type: ignore[attr-defined]
        return component

    return mark
