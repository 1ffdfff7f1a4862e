"""Where samples come from, and which of their tokens are trained."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from slime_core.contracts.kind import Kind
from slime_core.contracts.results import is_a, shown
from slime_core.errors import PluginError
from slime_core.sample import Group, Sample
from slime_core.trajectories import in_trajectories, number_of

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments
    from slime_core.errors import DataError

UNKNOWN_LENGTH = sys.maxsize
"""The `len` of a data source that nobody has counted, such as a stream that was not read to its end yet. Python allows
nothing greater."""

BufferPop = Callable[..., "list[Group]"]
"""The type of functions that keep the contract `buffer_pop`."""


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """Turn one row of a foreign format into a chat row: `{"messages": [{"role", "content", …}, …], …}`.

    The result may carry `tools`, `label` and `metadata`. Raise `DataError` with the reason when the row does not fit;
    the caller adds file and row number.
    """
    raise NotImplementedError


class DataSource(Protocol):
    """Hands out groups of samples and takes unfinished ones back. Made once per run as `DataSource(args)`.

    One that names the parameter `buffer_pop` is given the function that `--buffer-filter-path` chooses. Its further
    abilities are `HasMetrics`, `CountsMalformedRows`, `FollowsRollouts`, `ShowsFirstRows` and `Closes`.
    """

    def __init__(self, args: RunArguments) -> None: ...

    def get_samples(self, num_samples: int) -> list[Group]:
        """The next `num_samples` groups (prompts), buffered ones first. Each group has `--n-samples-per-prompt`
        samples, or a run ends with an error that says so. Starts the next epoch, newly shuffled, where one ends."""
        raise NotImplementedError

    def add_samples(self, groups: list[Group]) -> None:
        """Put unfinished groups into the buffer."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on from here, the buffer included, as plain JSON data.

        One that names the parameter `with_samples` is given True by a run, and may leave samples in it as they are: checkpoints
        store them in columns, which is many times faster than JSON. They must be copies (`slime_core.data.sample_columns.snapshot`).
        """
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned. Samples come back as they were left in it: as samples or as `Sample.to_dict` made them."""
        raise NotImplementedError

    def __len__(self) -> int:
        """The number of prompts in one epoch; `slime_core.data.UNKNOWN_LENGTH` where nobody can know, which makes `--num-rollout`
        necessary."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str]:
        """{file: digest of its content}. A resumed run compares it with the checkpoint's."""
        raise NotImplementedError


@runtime_checkable
class HasMetrics(Protocol):
    """A data source that says something about its data sets."""

    def metrics(self) -> dict[str, float]:
        """Numbers about the data sets so far; they are logged with every rollout as `rollout/NAME`."""
        raise NotImplementedError


@runtime_checkable
class CountsMalformedRows(Protocol):
    """A data source that leaves malformed rows out and counts them.

    Attributes:
        counts: what was left out so far, by reason; "malformed_rows" is reported by the rollout functions.
    """

    counts: dict[str, int]


@runtime_checkable
class FollowsRollouts(Protocol):
    """A data source that wants to know which rollout its groups are for, such as for its buffer filter."""

    def rollout_started(self, rollout_id: int) -> None:
        """A rollout is asked for; the groups that are taken from now on are for it, or for later ones."""
        raise NotImplementedError


@runtime_checkable
class ShowsFirstRows(Protocol):
    """A data source that can be looked into before a run."""

    def first_samples(self) -> Iterator[Sample | DataError]:
        """The first sample of every file, or what is wrong with it, without moving on."""
        raise NotImplementedError


@runtime_checkable
class Closes(Protocol):
    """A data source that holds something to give back."""

    def close(self) -> None:
        """The run is over, or was only checked: give back files, threads and connections. Called once, however it ends."""


def is_group(value: Any) -> bool:
    """Whether a value is a group: a list of at least one sample."""
    return isinstance(value, list) and bool(value) and all(isinstance(sample, Sample) for sample in value)


def next_groups(source: DataSource, count: int, size: int) -> list[Group]:
    """Take the next groups of a data source, `count` unless it has fewer at hand.

    Args:
        size: of a group, `--n-samples-per-prompt`. Segments of one trajectory, which a buffered group may have, count as one.

    Raises:
        PluginError: what it returned are no groups, or more than `count`, or none, or they have another size.
    """
    groups: Any = source.get_samples(count)
    if problem := _problem_of_groups(groups, count, size):
        raise PluginError(f"get_samples({count}) of the data source {type(source).__name__} returned {problem}.")
    return groups  # type: ignore[no-any-return]  # has just been checked


def _problem_of_groups(groups: Any, count: int, size: int) -> str | None:
    if not isinstance(groups, list):
        return f"{shown(groups)}; expected a list of groups"
    if not 0 < len(groups) <= count:
        return f"{len(groups)} groups; expected {count}, or fewer, but one at least"
    for group in groups:
        if not is_group(group):
            return f"{shown(group)} where a group belongs; expected a list of at least one Sample, those of one prompt"
    for group in groups:
        if (found := len(in_trajectories(group))) != size:
            numbers = [number_of(sample) for sample in group]
            return (
                f"a group of {found} where --n-samples-per-prompt is {size}. The numbers of its samples are {shown(numbers)}; those with "
                "the same one count as one. Return so many samples of each prompt, each with an `index` of its own, or give the option the "
                "size of the groups"
            )
    return None


def state_of(source: DataSource) -> dict[str, Any]:
    """The state of a data source for a checkpoint: plain JSON data, in which samples may stand."""
    own: Callable[..., dict[str, Any]] = source.state_dict
    return own(with_samples=True) if "with_samples" in inspect.signature(own).parameters else own()


def malformed_rows(source: DataSource) -> int:
    """How many rows a data source has left out so far; 0 of one that does not count."""
    return source.counts.get("malformed_rows", 0) if isinstance(source, CountsMalformedRows) else 0


def buffer_pop(args: RunArguments, rollout_id: int | None, buffer: list[Group], num_samples: int) -> list[Group]:
    """Remove at most `num_samples` groups from `buffer` (in place) and return them.

    Args:
        rollout_id: the rollout that they are for; of a group that was begun in an earlier one, the samples' metadata has the
            number of that as `start_rollout_id`. None where a data source is used outside of a run.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class ImageTexts:
    """What stands for the images of a conversation in its text.

    Attributes:
        placeholder: what the chat template writes for an image.
        texts: what takes its place for each image, in the order of the conversation.
    """

    placeholder: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class MaskedTokens:
    """A rendered conversation with its mask.

    Attributes:
        token_ids: N ids of the whole chat-template rendering.
        loss_mask: N ints, 1 where the token is trained.
        text: the rendering as text.
        offsets: N (start, end) character positions in `text`, for previews.
        warnings: things a person should look at, such as text that the template dropped.
        lost: what was to be trained and is not in the rendering, a sentence each; `--dropped-text` says what becomes of such
            a conversation.
        counts: numbers for the metrics of a rollout, added up over its conversations.
        messages: the messages in the form in which they were rendered, for previews; [] where that is the row's own.
        images: of every image its first token and the one behind its last.
    """

    token_ids: list[int]
    loss_mask: list[int]
    text: str = ""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    images: list[tuple[int, int]] = field(default_factory=list)


def loss_mask(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> MaskedTokens:
    """Render a whole conversation once and say which tokens are trained.

    One that names the parameter `template_kwargs` is given the variables of the chat template, which
    `--apply-chat-template-kwargs` sets. One that names the parameter `images` is given an `ImageTexts` for a conversation with images,
    whose messages have parts `{"type": "image"}`, and puts their texts into the rendering before it is tokenised; others cannot mask
    such conversations.

    Returns:
        The ids of the full chat-template rendering and as many 0/1 entries.

    Raises:
        DataError: the conversation cannot be rendered or masked; the caller adds file and row.
    """
    raise NotImplementedError


def _check_popped(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, list) or not all(isinstance(group, list) for group in result):
        return f"{shown(result)}; expected a list of groups"
    if len(result) > args[3]:
        return f"{len(result)} groups; expected at most {args[3]}"
    if len({id(group) for group in (*result, *args[2])}) < len(result) + len(args[2]):
        return "a group twice, or one that it left in the buffer: remove from `buffer`, in place, what you return"
    return None


KINDS = (
    Kind("converter", "slime_converters", convert, ("--from",), check=is_a(dict)),
    Kind(
        "data_source",
        "slime_data_sources",
        DataSource,
        ("--data-source-path",),
        extras=("buffer_pop",),
        abilities=(HasMetrics, CountsMalformedRows, FollowsRollouts, ShowsFirstRows, Closes),
    ),
    Kind("buffer_pop", "slime_buffer_pops", buffer_pop, ("--buffer-filter-path",), check=_check_popped),
    Kind(
        "loss_mask",
        "slime_loss_masks",
        loss_mask,
        ("--loss-mask-type",),
        extras=("template_kwargs", "images"),
        check=is_a(MaskedTokens),
    ),
)
