"""From a conversation, or a row of token ids, to a sample that can be trained.

Called by the SFT rollout, for training data and evaluation sets alike, and by the mask preview.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

from slime_core.contracts.data import ImageTexts, MaskedTokens
from slime_core.data import is_tokenised, require_known, vocabulary_of
from slime_core.data.chat_template import Template
from slime_core.data.conversation import REASONING_KEYS
from slime_core.data.ends import known_ends, trained_end
from slime_core.data.flags import STEP
from slime_core.data.image_processor import image_places
from slime_core.data.notices import Notices
from slime_core.data.prompts import tell_of_tools
from slime_core.data.tokenizer import load_tokenizer
from slime_core.data.tools import tool_definitions
from slime_core.data.vision import FAMILIES, load_processor
from slime_core.errors import ArgumentError, DataError, SampleError
from slime_core.sample import Sample, Status
from slime_rollout_sft.masks.ready import ready_mask_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slime_core.plugins import Selected
    from slime_rollout_sft.arguments import SftRunArguments

_READ_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "id", STEP, *REASONING_KEYS})


@dataclass(frozen=True)
class Policy:
    """The options that decide what becomes of a conversation, apart from the run's others so that two can be compared.

    Attributes:
        hf_checkpoint: the checkpoint whose tokenizer is used.
        input_key: the column of the conversation, for messages.
        rollout_max_context_len: the longest conversation in tokens; None: any.
        malformed_row, over_long_sample, no_trainable_token, dropped_text: what to do with a conversation that cannot be used.
        image_min_pixels, image_max_pixels: the sizes that images are brought to; None: as the checkpoint says.
        text_only: no conversation may have images.
    """

    hf_checkpoint: str
    input_key: str
    rollout_max_context_len: int | None = None
    malformed_row: Literal["error", "skip"] = "error"
    over_long_sample: Literal["error", "skip", "truncate"] = "error"
    no_trainable_token: Literal["error", "skip"] = "error"
    dropped_text: Literal["error", "skip", "train"] = "error"
    image_min_pixels: int | None = None
    image_max_pixels: int | None = None
    text_only: bool = False

    @classmethod
    def of(cls, args: SftRunArguments) -> Policy:
        """The policy of a run."""
        return cls(
            hf_checkpoint=args.hf_checkpoint,
            input_key=args.input_key,
            rollout_max_context_len=args.rollout_max_context_len,
            malformed_row=args.malformed_row,
            over_long_sample=args.over_long_sample,
            no_trainable_token=args.no_trainable_token,
            dropped_text=args.dropped_text,
            image_min_pixels=args.image_min_pixels,
            image_max_pixels=args.image_max_pixels,
            text_only=args.text_only,
        )


class Unusable(Exception):
    """A conversation cannot be trained.

    Attributes:
        kind: the metric that counts it if it is skipped.
        skip: whether the policy says to skip it.
    """

    def __init__(self, kind: str, skip: bool, message: str) -> None:
        super().__init__(message)
        self.kind, self.skip = kind, skip


def respond(sample: Sample, masked: MaskedTokens, policy: Policy) -> Sample:
    """Return `sample` with the tokens of its rendered conversation, cut and split into prompt and response, and with the images
    that are left. Pure.

    The first token is never trained, since nothing precedes it to predict it from.

    Raises:
        Unusable: it is over-long, or no token (that is left) is trained.
    """
    tokens, mask = masked.token_ids, [0, *masked.loss_mask[1:]]
    limit = policy.rollout_max_context_len
    is_over_long = limit is not None and len(tokens) > limit
    if is_over_long and policy.over_long_sample != "truncate":
        raise Unusable(
            "skipped_over_long",
            policy.over_long_sample == "skip",
            f"the conversation has {len(tokens)} tokens, more than --rollout-max-context-len {limit}. Raise the "
            "limit, shorten the row, or choose --over-long-sample skip or truncate.",
        )
    images = sample.images
    if limit is not None and is_over_long:
        limit = next((start for start, end in masked.images if start < limit < end), limit)  # never inside of an image
        tokens, mask = tokens[:limit], mask[:limit]
        images = images[: sum(end <= limit for _, end in masked.images)]
    if 1 not in mask:
        remedy = (
            "one behind the first that 'loss_mask' or 'labels' trains; repair the row"
            if is_tokenised(sample.prompt)
            else "an assistant message that is not masked out; add one"
        )
        raise Unusable(
            "skipped_no_trainable_token",
            policy.no_trainable_token == "skip",
            f"no token of the conversation is trained{f' within its first {limit} tokens' if is_over_long else ''}. "
            f"It needs {remedy}, or choose --no-trainable-token skip.",
        )
    first = mask.index(1)
    return replace(
        sample,
        images=images,
        tokens=tokens,
        response_length=len(tokens) - first,
        loss_mask=mask[first:],
        reward=0.0,
        status=Status.TRUNCATED if is_over_long else Status.COMPLETED,
    )


class Conversations:
    """Completes samples one by one, and counts those that the policy left out or cut.

    Args:
        notices: are told what people should know of the data; by default those of the run.

    Attributes:
        policy: what becomes of a conversation that cannot be used as it is.
        counts: numbers of conversations, under the names of the metrics that `generate_rollout` documents.
    """

    def __init__(self, policy: Policy, loss_mask: Selected[MaskedTokens], notices: Notices | None = None) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self._tokenizer = load_tokenizer(policy.hf_checkpoint)
        self._processor = load_processor(policy.hf_checkpoint, policy.image_min_pixels, policy.image_max_pixels)
        self._loss_mask = loss_mask
        self._notices = notices or _notices(policy)

    def complete(self, sample: Sample) -> Sample | None:
        """Return the sample with tokens, mask and response; None when the policy says to skip it.

        Raises:
            DataError: it cannot be used, and the policy is to stop. Names file and row.
        """
        try:
            masked = self.render(sample)
            done = self.respond(sample, masked)
        except Unusable as problem:
            if not problem.skip:
                raise DataError(f"{sample.source or sample.name}: {problem}") from problem.__cause__
            self.counts[problem.kind] += 1
            return None
        self.counts["truncated"] += done.status is Status.TRUNCATED
        self.counts["with_mask_warnings"] += bool(masked.warnings)
        self.counts.update(masked.counts)
        done.response = self._text(done.tokens[-done.response_length :])
        if is_tokenised(sample.prompt):
            done.prompt = self._text(done.tokens[: -done.response_length])
        return done

    def take(self, counts: Counter[str], notices: Iterable[tuple[str, str, Any]]) -> None:
        """Count and tell what another process has counted and would have told of a conversation.

        Args:
            notices: (method of `Notices`, its arguments).
        """
        self.counts.update(counts)
        for method, *arguments in notices:
            getattr(self._notices, method)(*arguments)

    def metrics(self) -> dict[str, float]:
        """The counts that are not 0."""
        return {kind: float(number) for kind, number in self.counts.items() if number}

    def left_out(self) -> str:
        """The counts that are not 0, as text for messages."""
        return ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in self.counts.items() if number)

    def render(self, sample: Sample) -> MaskedTokens:
        """Return the tokens of a sample and which of them are trained.

        Raises:
            Unusable: the row is malformed.
        """
        skip = self.policy.malformed_row == "skip"
        if isinstance(sample.prompt, str):
            raise Unusable(
                "skipped_malformed",
                skip,
                f"{self.policy.input_key!r} is text, but fine-tuning needs messages, which say what is trained. "
                "Name the column of messages with --input-key, or make one with `slime data convert`.",
            )
        try:
            loss_mask, counts = self._loss_mask, list[int]()
            if sample.images:
                loss_mask, counts = self._with_images(sample)
            masked = masked_tokens(sample, self._tokenizer, loss_mask, self._notices)
            if sample.tools and not is_tokenised(sample.prompt):
                self._tell_of_tools(sample)
            return self._with_places(masked, counts)
        except DataError as error:
            raise Unusable("skipped_malformed", skip, str(error)) from error

    def _with_images(self, sample: Sample) -> tuple[Selected[MaskedTokens], list[int]]:
        """Return the loss-mask generator with what stands for the images of a sample, and how many tokens each of them takes."""
        policy, processor = self.policy, self._processor
        if policy.text_only:
            raise DataError("the row has images, and --text-only trains text alone; leave the option or the row out")
        if processor is None:
            raise DataError(
                f"the row has images, and the checkpoint {policy.hf_checkpoint} reads none; checkpoints of the types "
                f"{', '.join(FAMILIES)} do"
            )
        counts = processor.counts(sample.images)
        texts = ImageTexts(processor.placeholder, tuple(map(processor.text, counts)))
        bound = self._loss_mask.bind(images=texts)
        if "images" not in bound.bound:
            raise ArgumentError(
                f"The data has images, and the {self._loss_mask.label} cannot mask conversations with images (it has no parameter "
                "images). Choose another with --loss-mask-type."
            )
        return bound, counts

    def _with_places(self, masked: MaskedTokens, counts: list[int]) -> MaskedTokens:
        """Return the tokens with the places of images.

        Raises:
            DataError: there are more or fewer image tokens than features, or one is trained.
        """
        if (processor := self._processor) is None:
            return masked
        try:
            places = image_places("the row", masked.token_ids, processor.token, counts)
        except SampleError as error:
            raise DataError(str(error)) from None
        if any(on and token == processor.token for on, token in zip(masked.loss_mask, masked.token_ids, strict=True)):
            raise DataError("a token of an image is trained, which no model can generate; repair the loss mask")
        return replace(masked, images=places)

    def respond(self, sample: Sample, masked: MaskedTokens) -> Sample:
        """Return what `respond` makes of a rendered conversation, all of whose text is there.

        Raises:
            Unusable: it cannot be trained as it is.
        """
        require_all_text(masked, self.policy)
        done = respond(sample, masked, self.policy)
        self._tell_of_ends(done)
        return done

    def _tell_of_ends(self, done: Sample) -> None:
        token, known = trained_end(done, self._tokenizer), known_ends(self.policy.hf_checkpoint, self._tokenizer)
        if token is not None and token not in known:
            name = self._text([token])
            self._notices.once(
                f"end {token}",
                f"Turns that are trained end with {name!r}, at which the checkpoint {self.policy.hf_checkpoint} is not known to "
                f"stop: its end tokens are {self._text(sorted(known))!r}. The trained model is exported with {name!r} among its end "
                f"tokens. Who generates with the settings of {self.policy.hf_checkpoint} itself must name it too, for example by "
                f"--rollout-stop-token-ids {token}.",
            )

    def _tell_of_tools(self, sample: Sample) -> None:
        if getattr(self._tokenizer, "chat_template", None):  # not all loss masks need one
            variables = self._loss_mask.bound.get("template_kwargs")
            tell_of_tools(Template(self._tokenizer, sample.tools, variables), sample, self._notices)

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self._tokenizer.decode(tokens))  # a list of texts is for a batch only


@lru_cache(maxsize=4)
def _notices(policy: Policy) -> Notices:
    """Return the notices of a run, which has one policy: every rollout makes its `Conversations` anew."""
    return Notices()


def require_all_text(masked: MaskedTokens, policy: Policy) -> None:
    """Check that the rendering has all that was to be trained.

    Raises:
        Unusable: it has not, and the policy does not allow it.
    """
    if masked.lost and policy.dropped_text != "train":
        raise Unusable(
            "skipped_dropped_text",
            policy.dropped_text == "skip",
            f"{masked.lost[0]}, so that it would not be trained as the row says. Use a template that shows it, keep the "
            'message from being trained with "step_loss_mask": 0, or choose --dropped-text skip or train.',
        )


def masked_tokens(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, loss_mask: Selected[MaskedTokens], notices: Notices
) -> MaskedTokens:
    """Return the tokens of a row and which of them are trained; the one way that the rollout and the preview go.

    Tools that stand in the metadata of a row without a column of them are the conversation's, as in slime.

    Args:
        notices: is told of keys of messages that neither slime nor the template reads.

    Raises:
        DataError: the row cannot be used; without file and row.
    """
    if isinstance(sample.prompt, str):
        raise DataError(
            "the prompt is text, but fine-tuning needs messages, which say what is trained. Name the column of messages with "
            "--input-key, or make one with `slime data convert`."
        )
    if is_tokenised(sample.prompt):
        return tokenised(sample, tokenizer)
    if sample.tools is None and (tools := _tools_in_metadata(sample)):
        sample.note(tools=tools)
    masked = loss_mask(tokenizer, sample.prompt, sample.tools)
    further = {key for message in sample.prompt for key in message} - _READ_KEYS
    if further and (unread := _not_in_template(tokenizer, sample.tools, further)):
        notices.message_keys(sample.source, unread)
    return masked


def _tools_in_metadata(sample: Sample) -> list[dict[str, Any]] | None:
    try:
        return tool_definitions(sample.metadata.get("tools"))
    except DataError as error:
        raise DataError(f'in its metadata, where fine-tuning looks for "tools", {error}') from None


def with_variables(loss_mask: Selected[MaskedTokens], variables: dict[str, Any]) -> Selected[MaskedTokens]:
    """Return the loss-mask generator with the variables of the chat template.

    Raises:
        ArgumentError: options set some, and the generator does not take any.
    """
    bound = loss_mask.bind(template_kwargs=variables)
    if variables and "template_kwargs" not in bound.bound:
        raise ArgumentError(
            f"--apply-chat-template-kwargs: the {loss_mask.label} does not take them (it has no parameter template_kwargs). "
            "Choose another with --loss-mask-type, or leave them out."
        )
    return bound


def tokenised(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> MaskedTokens:
    """Return the token ids of a row with its mask; without one, all are trained.

    Raises:
        DataError: the tokenizer does not know an id; without file and row.
    """
    ids: Any = sample.prompt
    require_known(ids, vocabulary_of(tokenizer))
    mask = sample.loss_mask or [1] * len(ids)
    return MaskedTokens(ids, mask, warnings=ready_mask_warnings(tokenizer, ids, mask))


def _not_in_template(tokenizer: PreTrainedTokenizerBase, tools: Any, keys: set[str]) -> set[str]:
    source = tokenizer.get_chat_template(None, tools) if getattr(tokenizer, "chat_template", None) else ""
    return {key for key in keys if not re.search(rf"\b{re.escape(key)}\b", source)}
