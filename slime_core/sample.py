"""`Sample`: what flows from the data source through the rollout function into training.

The field names are slime's. A *group* is the list of samples of one prompt; a rollout returns a list of groups.
`check_rollout` runs at the boundary where a rollout function returns, so that everything after it can rely on the
invariants stated here.
"""

from __future__ import annotations

import copy
import logging
import math
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache, partial
from typing import Any, cast

from slime_core.errors import DataError, SampleError
from slime_core.plain import plain
from slime_core.token_arrays import column_of, num_tokens, trained
from slime_core.token_columns import COLUMNS, TokenColumn, TokenField
from slime_core.turns import append_turn, spread_over_turns

logger = logging.getLogger(__name__)

_told: set[str] = set()  # fields of slime that hooks have set, each of which is told of once

RESERVED = "slime"
"""The key of a sample's metadata that is slime's; all others are the row's and the hooks' own."""


class Status(StrEnum):
    """Where a sample is in its life."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass
class Sample:
    """One prompt with (once it has been generated, or read from a file) one response.

    Attributes:
        group_index: number of the prompt in this run, counted from 0; all samples of a group share it.
        index: number of the sample that the data source handed out, counted from 0 in this run and unique among those. What a
            generate function makes of it keeps the number.
        rollout_id: number of the trajectory: the samples that one call of a generate function returned, its *segments*, share
            one and count together as one (`slime_core.trajectories`). None means `index`.
        prompt: text, or a list of chat messages (`{"role": ..., "content": ...}`). From a data source also a list of token
            ids, with a `loss_mask` for them. Where a rollout function renders messages or is given ids, their text takes this
            place, so that hooks find what the model reads; see `asked`.
        images: the encoded images (such as PNG or JPEG) that the prompt shows, in the order of their places in it. The samples of
            a group share these bytes. Stored as base64.
        tokens: token ids of prompt and response, one flat list.
        response: text of the response.
        response_length: R, how many of the last tokens are response.
        loss_mask: R ints, 1 where the token is trained. None means that all R are.
        label: what the reward compares with.
        reward: a number, or a dict from which `--reward-key` picks one.
        rollout_log_probs: R floats, log-prob of each response token under the distribution it was sampled from.
        weight_versions: R strings or ints, the weights that produced each response token. A hook may leave one for each turn
            of the model instead; they are spread over the tokens of the turns.
        status: see `Status`.
        metadata: anything the data row or a hook attached, as plain JSON data. What slime notes stands under the reserved
            key "slime", and is read through `source`, `dataset` and `tools`.
        remove_sample: keep the sample in the batch, train none of its tokens.

    `tokens`, `loss_mask`, `rollout_log_probs` and `weight_versions` are lists to whoever reads them. Inside they are kept as arrays
    (`slime_core.token_columns`), of which reading makes a list; `slime_core.token_arrays` reads the arrays.

    Hooks may set further attributes for each other, such as a count of tool calls that the reward reads. They are plain JSON
    data too, and are stored with the sample. Fields that samples have in slime alone, such as `multimodal_inputs`, are None.
    """

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    images: list[bytes] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    reward: float | dict[str, Any] | None = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    weight_versions: list[int | str] = field(default_factory=list)
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    remove_sample: bool = False

    @property
    def name(self) -> str:
        """How messages speak of this sample: its number, and file and row where they are known."""
        return f"sample {self.index}" + (f" ({self.source})" if self.source else "")

    @property
    def source(self) -> str:
        """The row it came from, as "file:row"; "" where there is none."""
        return str(self._noted("source") or "")

    @property
    def dataset(self) -> str | None:
        """The name of its set, in an evaluation and where several sets are mixed; else None."""
        name = self._noted("dataset")
        return name if isinstance(name, str) else None

    @property
    def tools(self) -> list[Any] | None:
        """The tool definitions of its row, as chat templates expect them; None if there are none."""
        tools: list[Any] | None = self._noted("tools")
        return tools

    @property
    def asked(self) -> str | list[dict[str, Any]]:
        """What the prompt was before a chat template rendered it: messages or text; the prompt where none has."""
        return self._noted("asked") or self.prompt

    @property
    def is_rendered(self) -> bool:
        """Whether a chat template has made the text of the prompt."""
        return self._noted("asked") is not None

    def note(self, **values: Any) -> None:
        """Set `source`, `dataset`, `tools`, `asked` or `final_reward`. The metadata becomes another object: samples may share one."""
        noted = self.metadata.get(RESERVED)
        self.metadata = {**self.metadata, RESERVED: {**(noted if isinstance(noted, dict) else {}), **values}}

    def make_plain(self, handed_over: bool = False) -> None:
        """Make plain JSON data of what hooks set: numbers and arrays of numpy, tuples, dates (see `slime_core.plain`). Truth
        values among rewards and masks become numbers.

        Args:
            handed_over: nobody holds the sample's lists any more, so that they can be kept as columns.

        Raises:
            SampleError: something is no data, such as a set, or a mask or log-probs hold no numbers; names the sample and the
                place.
        """
        if handed_over:
            self.compact()
        try:
            for name in _SET_BY_HOOKS:
                before = vars(self)[name] if name in COLUMNS else getattr(self, name)
                if type(before) is TokenColumn:
                    continue
                after = _MADE_PLAIN.get(name, plain)(before, name)
                if after is not before:
                    setattr(self, name, after)
            for name, before in self.further_attributes.items():
                if before is not None and name in _OF_SLIME_ALONE and name not in _told:
                    _told.add(name)
                    logger.warning(
                        "A hook has set %r on %s. slime reads that: it is %s. Here nothing does, but other hooks.",
                        *(name, self.name, _OF_SLIME_ALONE[name]),
                    )
                setattr(self, name, plain(before, name))
        except DataError as error:
            raise SampleError(f"{self.name}: {error}.") from None
        versions = vars(self)["weight_versions"]
        if versions and len(versions) != self.response_length:
            self.weight_versions = spread_over_turns(self.weight_versions, self.loss_mask, self.response_length)
        if handed_over:
            self.compact()

    def compact(self) -> None:
        """Keep tokens, masks, log-probs and weight versions as columns from now on, where they hold what columns can. Only the
        owner of a sample may do that: a list that somebody else still holds is the sample's no longer."""
        for name, column in COLUMNS.items():
            values = vars(self)[name]
            if type(values) is list:
                with suppress(TypeError, ValueError, OverflowError):  # what is wrong, `check_rollout` says in words
                    setattr(self, name, column(values))

    def _noted(self, key: str) -> Any:
        noted = self.metadata.get(RESERVED)
        return noted.get(key) if isinstance(noted, dict) else None

    @property
    def trained_mask(self) -> list[int]:
        """R ints: the loss mask with `remove_sample` and a missing mask taken into account."""
        if self.remove_sample:
            return [0] * self.response_length
        mask: list[int] | TokenColumn[int] | None = vars(self)["loss_mask"]
        if mask is None:
            return [1] * self.response_length
        return mask.tolist() if type(mask) is TokenColumn else cast("list[int]", mask)

    @property
    def effective_response_length(self) -> int:
        """How many response tokens the loss mask leaves in training."""
        mask = column_of(self, "loss_mask")
        return self.response_length if mask is None else int(mask.array.sum())

    @property
    def further_attributes(self) -> dict[str, Any]:
        """What hooks have set on this sample besides its fields."""
        return {name: value for name, value in vars(self).items() if name not in _FIELDS}

    @property
    def reward_is_final(self) -> bool:
        """Whether the reward is trained with as it is: neither an estimator nor a post-processing normalises it."""
        return self._noted("final_reward") is True

    def get_reward_value(self, args: Any) -> float:
        """Return the number that is trained on: the reward or, of a reward that is a dict, the one of `args.reward_key`.

        Raises:
            SampleError: there is none.
        """
        return reward_of(self, args.reward_key)

    def append_response_tokens(
        self,
        args: Any = None,
        *,
        tokens: Iterable[int] | None = None,
        log_probs: Iterable[float] | None = None,
        trainable: bool = True,
        meta_info: Mapping[str, Any] | None = None,
        text: str | None = None,
        update_terminal_info: bool = True,
    ) -> None:
        """Append a turn to the response, and keep `loss_mask`, `rollout_log_probs` and `weight_versions` as long as it.

        Args:
            args: nothing is read from it; slime's hooks pass it.
            tokens: the token ids of the turn; lists, arrays and tensors will do.
            log_probs: their log-probs, needed for tokens that are trained. Others have none, and count 0.
            trainable: whether the model generated them (they are trained) or not (tool results; they are masked).
            meta_info: what SGLang's `/generate` said of the turn: `finish_reason` and `weight_version` are read.
            text: is appended to `response`; None leaves that to the caller.
            update_terminal_info: whether `status` is set to what `finish_reason` says.

        Raises:
            SampleError: tokens and log-probs do not fit together or to what is there, or `meta_info` holds something that
                training would have to replay and that nothing here keeps.
        """
        status = append_turn(self, self.name, tokens, log_probs, trainable, meta_info or {})
        if text is not None:
            self.response += text
        if update_terminal_info and status is not None:
            self.status = Status(status)

    def changed(self, **changes: Any) -> Sample:
        """Return a copy with other values in some fields. What hooks have set besides is kept, which `dataclasses.replace`
        does not do; what is not changed is shared with this sample."""
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data (what checkpoints and dumps hold), and under "attributes" what hooks have set besides."""
        own = {
            name: _listed(vars(self)[name]) if name in COLUMNS else copy.deepcopy(getattr(self, name))
            for name in _NAMES
        }
        further = self.further_attributes
        encoded = [_as_text(image) for image in own.pop("images")]
        own |= {"images": encoded} if encoded else {}
        return {**own, "status": self.status.value, **({"attributes": further} if further else {})}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sample:
        """Make a sample from what `to_dict` returned. Unknown keys are an error: they would be lost in silence."""
        values = {name: value for name, value in data.items() if name != "attributes"}
        if unknown := sorted(set(values) - _FIELDS):
            raise SampleError(f"A stored sample has fields that Sample does not know: {', '.join(unknown)}.")
        try:
            status = Status(data.get("status", "pending"))
        except ValueError:
            raise SampleError(f"A stored sample has the status {data['status']!r}, which there is not.") from None
        for name, fits in _STORED.items():
            if name in values and not fits(values[name]):
                raise SampleError(f"A stored sample has {name} that is none: {str(values[name])[:60]!r}.")
        if "images" in values:
            values["images"] = [_as_bytes(text) for text in values["images"]]
        sample = cls(**{**values, "status": status})
        for name, value in data.get("attributes", {}).items():
            if getattr(cls, name, None) is not None:  # those of slime's fields alone are None
                raise SampleError(f"A stored sample has the attribute {name!r}, which is no hook's.")
            if name not in _NAME_CODE:
                setattr(sample, name, value)
            elif value is not None:
                logger.warning(
                    "%s is stored with %s %r, which is not followed: no file says what is imported.",
                    sample.name,
                    name,
                    value,
                )
        return sample


_NAMES = tuple(f.name for f in fields(Sample))
_FIELDS = frozenset(_NAMES)
for _name in COLUMNS:
    _field = TokenField()
    _field.__set_name__(Sample, _name)
    setattr(Sample, _name, _field)


def _listed(values: Any) -> Any:
    """The values of tokens in a list of their own, or what else a hook has set."""
    return list(values) if isinstance(values, list | TokenColumn) else copy.deepcopy(values)


def _are(*kinds: type) -> Callable[[Any], bool]:
    """Whether a value is a list of such values, or a column."""
    return lambda value: type(value) is TokenColumn or (type(value) is list and set(kinds).issuperset(map(type, value)))


def _is(*kinds: type | None) -> Callable[[Any], bool]:
    """Whether a value is of one of these types, or None where that is among them."""
    return lambda value: type(value) in kinds or (value is None and None in kinds)


_STORED: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("group_index", "index", "rollout_id"), _is(int, None)),
    "prompt": _is(str, list),
    "images": _are(str),
    "tokens": _are(int),
    "response": _is(str),
    "response_length": _is(int),
    "loss_mask": lambda value: value is None or _are(int)(value),
    "rollout_log_probs": lambda value: value is None or _are(int, float)(value),
    "weight_versions": _are(int, str),
    "metadata": _is(dict),
    "remove_sample": _is(bool),
}
"""What the fields of a stored sample are; the others may be anything."""


@lru_cache(maxsize=8)
def _as_text(image: bytes) -> str:
    """Return an image as base64. A few are remembered, since the samples of a group have the same ones."""
    return b64encode(image).decode()


@lru_cache(maxsize=8)
def _as_bytes(text: str) -> bytes:
    """Return the bytes of a stored image: the very object for all samples of a group."""
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise SampleError(f"A stored sample has an image that is no base64: {text[:60]!r}.") from None


def plain_reward(reward: Any, what: str = "the reward") -> Any:
    """Return a reward, or a list of them, as plain JSON data in which truth values are numbers; the very object where nothing is
    to be changed.

    Raises:
        DataError: something in it is no data.
    """
    reward = plain(reward, what)
    if isinstance(reward, bool):
        return float(reward)
    if isinstance(reward, dict) and any(isinstance(value, bool) for value in reward.values()):
        return {key: float(value) if isinstance(value, bool) else value for key, value in reward.items()}
    if isinstance(reward, list) and any(isinstance(value, (bool, dict)) for value in reward):
        return [plain_reward(value, what) for value in reward]
    return reward


def _plain_numbers(values: Any, what: str, kind: type[int] | type[float]) -> Any:
    """Return a list of numbers as plain numbers of one kind, or None as it is."""
    values = plain(values, what)
    if values is None or (isinstance(values, list) and {kind}.issuperset(map(type, values))):
        return values
    if not isinstance(values, list):
        raise DataError(f"{what} is {type(values).__name__!r}, expected a list of numbers")
    for position, value in enumerate(values):
        if not isinstance(value, (int, float)) or (kind is int and value not in (0, 1)):
            raise DataError(f"{what}[{position}] is {value!r}, expected {'0 or 1' if kind is int else 'a number'}")
    return [kind(value) for value in values]


_MADE_PLAIN: dict[str, Callable[[Any, str], Any]] = {
    "reward": plain_reward,
    "loss_mask": partial(_plain_numbers, kind=int),
    "rollout_log_probs": partial(_plain_numbers, kind=float),
}
_SET_BY_HOOKS = (
    *(
        "rollout_id",
        "prompt",
        "tokens",
        "response_length",
        "label",
        "reward",
        "loss_mask",
        "rollout_log_probs",
        "weight_versions",
    ),
    "metadata",
)

_OF_SLIME_ALONE = {
    **dict.fromkeys(("multimodal_inputs", "multimodal_train_inputs"), "images and sound for the model"),
    **dict.fromkeys(("rollout_top_p_token_ids", "rollout_top_p_token_offsets"), "what top-p left to choose from"),
    "rollout_routed_experts": "which experts tokens were routed to",
    "teacher_log_probs": "what a teacher says of the tokens",
    "train_metadata": "what the loss is told of the sample",
    "generate_function_path": "the generate function of this sample alone",
    "custom_rm_path": "the reward of this sample alone (metadata['rm_type'] here)",
}
"""Fields of samples in slime that nothing reads here, and what they are there."""
_NAME_CODE = ("generate_function_path", "custom_rm_path")
"""Those among them that are import paths."""
for _name in (*_OF_SLIME_ALONE, "session_id"):
    setattr(Sample, _name, None)  # hooks of slime look at them

Sample.Status = Status  # type: ignore[attr-defined]  # `Sample.Status.ABORTED` reads as it does in slime

Group = list[Sample]


def stored_sample(data: Sample | dict[str, Any]) -> Sample:
    """The sample that a checkpoint has stored: as one, or as what `Sample.to_dict` made of it."""
    return data if isinstance(data, Sample) else Sample.from_dict(data)


@dataclass
class RolloutOutput:
    """What a rollout function returns.

    Attributes:
        groups: the groups to train on; with `evaluation=True` the groups whose loss is measured.
        metrics: numbers to log with this rollout, names without prefix.
        generations: with `evaluation=True`, answers that the model gave. Their rewards, where present, are averaged per
            evaluation set, and they are written to the run directory.

    In an evaluation, `dataset` of every sample names its set.
    """

    groups: list[Group]
    metrics: dict[str, float] = field(default_factory=dict)
    generations: list[Sample] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """All samples, group after group."""
        return [sample for group in self.groups for sample in group]


def number_groups(groups: Sequence[Group]) -> None:
    """Give every sample of a rollout the number of its group in `group_index`, in place.

    A group has one identity: a number that its samples have is kept, and a group without any gets the next one that is free.

    Raises:
        SampleError: the samples of one group have different numbers, or two groups have the same; names them.
    """
    numbers: dict[int, Sample] = {}
    without: list[Group] = []
    for group in groups:
        own = {sample.group_index: sample for sample in group if sample.group_index is not None}
        if len(own) > 1:
            first, second, *_ = own.values()
            raise SampleError(
                f"The rollout returned a group whose samples disagree: {first.name} has the group_index {first.group_index}, "
                f"{second.name} has {second.group_index}; all samples of a group share one."
            )
        for number, sample in own.items():
            if number in numbers:
                raise SampleError(
                    f"The rollout returned two groups with the group_index {number}, those of {numbers[number].name} and of "
                    f"{sample.name}; every group of a rollout has a number of its own."
                )
            numbers[number] = sample
            for other in group:
                other.group_index = number
        if not own:
            without.append(group)
    for number, group in enumerate(without, start=max(numbers, default=-1) + 1):
        for sample in group:
            sample.group_index = number


def check_rollout(groups: Iterable[Sequence[Sample]], need_reward: bool) -> None:
    """Raise `SampleError` naming sample and rule when a sample breaks an invariant.

    The rules: `rollout_id` is an int or None; at least one response token and fewer than all tokens; the loss mask, log-probs and weight versions,
    where present, have `response_length` entries; the mask holds 0 and 1 only; log-probs are finite and at most 0;
    a reward is present and finite unless the sample was aborted (checked when `need_reward`).
    """
    for group in groups:
        for sample in group:
            if problem := _broken_rule(sample, need_reward):
                raise SampleError(f"The rollout returned a bad {sample.name}: {problem}")


def misaligned(sample: Sample) -> str | None:
    """Return which of the rules of `check_rollout` on lengths a sample breaks, as a sentence; None where it keeps all."""
    n, r = num_tokens(sample), sample.response_length
    if isinstance(sample.rollout_id, bool) or not isinstance(sample.rollout_id, int | None):
        return f"its rollout_id is {sample.rollout_id!r}; expected an int, or None for that of its index."
    if not 0 <= r <= n:
        return f"response_length is {r}, but there are {n} tokens; it must lie between 0 and the number of tokens."
    for name in ("loss_mask", "rollout_log_probs", "weight_versions"):
        values = vars(sample)[name]
        if (values or (name == "loss_mask" and values is not None)) and len(values) != r:
            return f"{name} has {len(values)} entries, but response_length is {r}; they must be equal."
    return None


def _broken_rule(sample: Sample, need_reward: bool) -> str | None:
    if problem := misaligned(sample):
        return problem
    n, r = num_tokens(sample), sample.response_length
    if wrong := _wrong_value(sample):
        return wrong
    if r == n and n > 0 and trained(sample)[0]:
        return "its first token is trained, but nothing precedes it to predict it from; mask it or add a prompt."
    if any(type(image) is not bytes for image in sample.images):
        return "its images are not all bytes; expected encoded images, such as the content of a PNG file."
    if need_reward and sample.status is not Status.ABORTED:
        if sample.reward is None:
            return "it has no reward; the reward function must set one for every sample that was not aborted."
        if isinstance(sample.reward, (int, float)) and not math.isfinite(sample.reward):
            return f"its reward is {sample.reward}; rewards must be finite."
    return None


def _wrong_value(sample: Sample) -> str | None:
    """What a token's value is and must not be, as a sentence; None where all are right."""
    for name, expected in _EXPECTED.items():
        try:
            column = column_of(sample, name)
        except (TypeError, ValueError, OverflowError):
            return f"{name} holds {_not_taken(name, vars(sample)[name])!r}; {expected}"
        if column is None or not len(column):
            continue
        values = column.array
        if name == "loss_mask" and values.max() > 1:
            return f"{name} holds {sorted(set(values[values > 1].tolist()))[:5]}; {expected}"
        if name == "rollout_log_probs" and not (values.max() <= _MOST and values.min() > -math.inf):  # so is NaN
            return f"{name} holds {values[~((values <= _MOST) & (values > -math.inf))][0].item()}; {expected}"
    return None


_MOST = 1e-6
"""What a log-prob may be at most: 0, and a rounding error."""
_EXPECTED = {
    "tokens": "token ids are whole numbers.",
    "loss_mask": "only 0 and 1 are allowed.",
    "rollout_log_probs": "log-probabilities are finite and not above 0.",
    "weight_versions": "weight versions are ints or strings.",
}
"""What the values of tokens must be, for messages."""


def _not_taken(name: str, values: Any) -> Any:
    """The first values that no column takes; all of them where there is none."""
    found = []
    for value in values if isinstance(values, (list, tuple)) else ():
        try:
            COLUMNS[name]([value])
        except (TypeError, ValueError, OverflowError):
            found.append(value)
    return found[:5] or values


def reward_of(sample: Sample, key: str | None) -> float:
    """The number that is trained on: the reward or, of a reward that is a dict, its `key`.

    Raises:
        SampleError: there is none; says what the sample has.
    """
    reward = sample.reward
    if isinstance(reward, dict):
        if key is None or key not in reward:
            raise SampleError(
                f"The reward of {sample.name} is a dict with the keys {', '.join(map(str, reward))}; "
                f"name one of them with --reward-key (given: {key})."
            )
        reward = reward[key]
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        raise SampleError(f"The reward of {sample.name} is {reward!r}; expected a number. Choose one with --rm-type.")
    return float(reward)
