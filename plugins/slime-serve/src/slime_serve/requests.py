"""What requests for chat and for completions may say, under OpenAI's names, and a few of vLLM's and SGLang's. A parameter that is
not supported is refused with the reason; only where its value changes nothing it may stand there.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from slime_core.errors import did_you_mean
from slime_serve.refusals import wrong

MOST_ANSWERS = 128
"""How many answers one request may ask for, over all its prompts."""
MOST_LIKELIEST = 20

LONGEST_STOP = 256
"""Characters of a stop string: for every token the engine looks at as many tokens as it may have."""

_Text = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]

_NO_PENALTY = "the engine changes no log-probs, so that they are those of the model"
_NO_STORE = "this server keeps nothing of a request"
_NO_GRAMMAR = "answers are not bound to a grammar; say in the prompt what form they shall have"

NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "the model answers in text"),
    "best_of": ((1,), "all answers are returned; ask for n"),
    "continue_final_message": ((False,), "an answer begins anew; put the beginning into /v1/completions"),
    "add_generation_prompt": ((True,), "the model answers what it was asked"),
    "frequency_penalty": ((0,), _NO_PENALTY),
    "presence_penalty": ((0,), _NO_PENALTY),
    "repetition_penalty": ((1,), _NO_PENALTY),
    "logit_bias": (({},), _NO_PENALTY),
    "min_p": ((0,), "give top_p or top_k"),
    "min_tokens": ((0,), "give ignore_eos with max_tokens for answers of a fixed length"),
    "function_call": (("none",), "give tools and tool_choice"),
    "functions": (([],), "give tools"),
    "guided_json": ((), _NO_GRAMMAR),
    "guided_regex": ((), _NO_GRAMMAR),
    "metadata": (({},), _NO_STORE),
    "modalities": ((["text"],), "the model answers in text"),
    "parallel_tool_calls": ((True,), "the model writes what it writes"),
    "prediction": ((), "every token is computed by the model"),
    "prompt_cache_key": ((), "what requests have in common is shared while they run, whoever asks"),
    "prompt_logprobs": ((), "ask /v1/completions with echo and logprobs"),
    "reasoning_effort": ((), "give chat_template_kwargs if the chat template knows of such a thing"),
    "response_format": (({"type": "text"},), _NO_GRAMMAR),
    "safety_identifier": ((), _NO_STORE),
    "service_tier": (("auto", "default"), "there is one tier"),
    "store": ((False,), _NO_STORE),
    "suffix": (("",), "the model writes what follows the prompt, not what stands before something"),
    "user": ((), _NO_STORE),
    "verbosity": ((), "say it in a message"),
    "web_search_options": ((), "nothing is looked up"),
}
"""{parameter: (values that change nothing, why others are refused)}; null changes nothing either."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False

    @model_validator(mode="after")
    def _plain(self) -> StreamOptions:
        if self.include_obfuscation:
            raise ValueError("include_obfuscation is not supported: pieces are sent as they are")
        return self


class SamplingRequest(_Body):
    """What both kinds of requests may say.

    Attributes:
        return_token_ids: name the token ids of prompt and answers, as vLLM does.
    """

    model: str
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    max_tokens: int | None = Field(None, ge=0, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=1000)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    @model_validator(mode="after")
    def _agree(self) -> SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream: true")
        if self.top_k == 0:
            raise ValueError("top_k is 0; expected -1 (all tokens) or a number of at least 1")
        return self

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(SamplingRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    tools: list[Any] | None = None
    tool_choice: Any = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _agree_on_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.max_tokens == 0:
            raise ValueError("max_tokens is 0; expected at least 1")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one")
        if self.tool_choice not in (None, "auto", "none"):
            raise ValueError("tool_choice is supported as 'auto' and 'none': the model decides whether it calls a tool")
        return self


class CompletionRequest(SamplingRequest):
    """The body of `/v1/completions`.

    Attributes:
        prompt: a text or token ids, or a list of these.
        add_special_tokens: put the tokenizer's special tokens around texts.
    """

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    echo: bool | None = None
    add_special_tokens: bool | None = None

    @field_validator("prompt", mode="plain")
    @classmethod
    def _prompts(cls, given: Any) -> Any:
        every = given if isinstance(given, list) else []
        if isinstance(given, str) or (
            _all(str, every) or _all(int, every) or (_all(list, every) and all(_all(int, ids) for ids in every))
        ):
            return given
        raise ValueError(
            "expected a text or a list of token ids, or a list of texts or of lists of token ids, none of them empty"
        )

    @model_validator(mode="after")
    def _agree_on_completion(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0; expected at least 1, or echo: true for the prompt alone")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, as they were given."""
        given: Any = self.prompt
        return list(given) if isinstance(given, list) and not _all(int, given) else [given]


def _all(kind: type, values: list[Any]) -> bool:
    return bool(values) and all(type(value) is kind for value in values)


Request = TypeVar("Request", bound=SamplingRequest)


def read_request(body: Any, kind: type[Request]) -> Request:
    """Read the body of a request.

    Raises:
        Refusal: says which parameter is wrong, what was given and what was expected.
    """
    if not isinstance(body, dict):
        raise wrong("The body is no JSON object.")
    given = {name: value for name, value in body.items() if not (name in NEUTRAL and _changes_nothing(name, value))}
    for name in given:
        if name in NEUTRAL:
            raise wrong(f"{name} is not supported: {NEUTRAL[name][1]}.", name, "unsupported_parameter")
        if name not in kind.model_fields:
            hint = did_you_mean(name, kind.model_fields)
            raise wrong(f"There is no parameter {name!r:.80}.{hint}", name[:80], "unknown_parameter")
    try:
        return kind.model_validate(given)
    except ValidationError as invalid:
        error = max(invalid.errors(), key=lambda each: len(each["loc"]))  # of alternatives, the one that fits best
        place = _place(error["loc"])
        message = error["msg"].removeprefix("Value error, ")
        if not place:
            named = message.partition(" ")[0]  # such messages begin with the parameter
            raise wrong(f"{message}.", named if named in kind.model_fields else None) from None
        shown = "" if error["type"] == "missing" else f" is {error['input']!r:.80}:"
        expected = {"missing": "it is required"}.get(error["type"], message[0].lower() + message[1:])
        raise wrong(f"{place}{shown or ':'} {expected}.", place) from None


def _changes_nothing(name: str, value: Any) -> bool:
    return value is None or any(
        (value == same and type(value) is not bool) or value is same for same in NEUTRAL[name][0]
    )


def _place(location: tuple[int | str, ...]) -> str:
    """Where in the body something is wrong, such as "stop[2]"; names of alternatives, which pydantic adds, are left out."""
    first, *rest = location or ("",)
    return str(first) + "".join(f"[{part}]" for part in rest if isinstance(part, int))
