"""`Sample`: what flows from the data source through the rollout function into training.

The field names are slime's. A *group* is the list of samples of one prompt; a rollout returns a list of groups.
`check_rollout` (`slime_core.sample_rules`) runs at the boundary where a rollout function returns, so that everything after it can
rely on the invariants stated there.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, cast

from slime_core.errors import DataError, SampleError
from slime_core.plain import plain
from slime_core.plain_fields import SET_BY_HOOKS, plain_field, plain_reward
from slime_core.sample_rules import check_rollout, misaligned, number_groups, reward_of
from slime_core.stored_fields import STORED, as_bytes, as_text, listed
from slime_core.token_arrays import column_of
from slime_core.token_columns import COLUMNS, TokenColumn, TokenField
from slime_core.turns import append_turn, spread_over_turns

__all__ = [
    "RESERVED",
    "Group",
    "RolloutOutput",
    "Sample",
    "Status",
    "check_rollout",
    "misaligned",
    "notes_of",
    "number_groups",
    "plain_reward",
    "reward_of",
    "stored_sample",
]

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
        """Set `source`, `dataset`, `tools`, `asked`, `final_reward` or `worth`. The metadata becomes another object: samples may share one.

        Raises:
            SampleError: a hook has left metadata that are no object.
        """
        if not isinstance(self.metadata, dict):
            raise SampleError(f"{self.name}: metadata is {str(self.metadata)[:60]}, expected an object.")
        self.metadata = {**self.metadata, RESERVED: {**notes_of(self), **values}}

    def make_plain(self, handed_over: bool = False) -> None:
        """Make plain JSON data of what hooks set: numbers and arrays of numpy, tuples, dates (see `slime_core.plain`). Truth
        values among rewards and masks become numbers, and the name of a status the status.

        Args:
            handed_over: nobody holds the sample's lists any more, so that they can be kept as columns.

        Raises:
            SampleError: something is no data, such as a set, or is not what its field is, such as a mask that holds no numbers;
                names the sample and the place.
        """
        if handed_over:
            self.compact()
        try:
            for name in SET_BY_HOOKS:
                before = vars(self)[name] if name in COLUMNS else getattr(self, name)
                if type(before) is TokenColumn:
                    continue
                after = plain_field(before, name)
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
            self._require_status()
        except DataError as error:
            raise SampleError(f"{self.name}: {error}.") from None
        versions = vars(self)["weight_versions"]
        if versions and len(versions) != self.response_length:
            self.weight_versions = spread_over_turns(self.weight_versions, self.loss_mask, self.response_length)
        if handed_over:
            self.compact()

    def _require_status(self) -> None:
        if type(self.status) is not Status:
            if self.status not in tuple(Status):
                raise DataError(
                    f"status is {self.status!r}, expected one of Sample.Status, such as Sample.Status.COMPLETED"
                )
            self.status = Status(self.status)

    def compact(self) -> None:
        """Keep tokens, masks, log-probs and weight versions as columns from now on, where they hold what columns can. Only the
        owner of a sample may do that: a list that somebody else still holds is the sample's no longer."""
        for name, column in COLUMNS.items():
            values = vars(self)[name]
            if type(values) is list:
                with suppress(TypeError, ValueError, OverflowError):  # what is wrong, `check_rollout` says in words
                    setattr(self, name, column(values))

    def _noted(self, key: str) -> Any:
        return notes_of(self).get(key)

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
    def final_reward(self) -> float | None:
        """What a post-processing or a converter of samples made of the reward, which no estimator normalises; None: there was none."""
        noted: float | None = self._noted("final_reward")
        return reward_of(self, None) if noted is True else noted

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
            meta_info: what SGLang's `/generate` said of the turn, of which are read: `finish_reason`, {"type": "stop"}, "length" or
                "abort"; `weight_version` of all its tokens, or `weight_versions`, one for each of them.
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
            name: listed(vars(self)[name]) if name in COLUMNS else copy.deepcopy(getattr(self, name)) for name in _NAMES
        }
        further = self.further_attributes
        encoded = [as_text(image) for image in own.pop("images")]
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
        for name, form in STORED.items():
            if name in values and not form.fits(values[name]):
                raise SampleError(
                    f"A stored sample has {name} that is none: {str(values[name])[:60]!r}; expected {form.words}."
                )
        if "images" in values:
            values["images"] = [as_bytes(text) for text in values["images"]]
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


def notes_of(sample: Sample) -> dict[str, Any]:
    """What slime has noted in the metadata of a sample, such as its source; {} where that is nothing."""
    noted = sample.metadata.get(RESERVED) if isinstance(sample.metadata, dict) else None  # a hook may have set anything
    return noted if isinstance(noted, dict) else {}


def stored_sample(data: Sample | dict[str, Any]) -> Sample:
    """The sample that a checkpoint has stored: as one, or as what `Sample.to_dict` made of it."""
    return data if isinstance(data, Sample) else Sample.from_dict(data)


@dataclass
class RolloutOutput:
    """What a rollout function returns.

    Attributes:
        groups: the groups to train on; with `evaluation=True` the groups whose loss is measured.
        metrics: numbers to log with this rollout, names without prefix; texts are left out, with a warning.
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
