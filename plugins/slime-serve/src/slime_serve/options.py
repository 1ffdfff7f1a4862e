"""The options of `slime chat` and `slime serve`, and how they are read: the model first, then own options and those of the chosen
engine. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import SecretStr, create_model, field_validator

from slime_core.arguments import RunArguments
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.of_a_command import read_words_and_options
from slime_core.arguments.readers import options_read
from slime_core.arguments.resolve import remember_secrets
from slime_core.contracts.options import ArgumentGroup, from_json, option
from slime_core.errors import ArgumentError, did_you_mean
from slime_core.plugins import Plugins
from slime_core.remote_code import trust_remote_code
from slime_core.secrets import secret_from

LONGEST_ANSWER = 1024


class ModelOptions(ArgumentGroup):
    """The model"""

    rollout_engine: str = option("local", "The inference engine: a component name or import path.")
    trust_remote_code: bool = option(
        False,
        "Execute Python code that a model folder brings (auto_map in its configuration). Without this, such a model is refused.",
    )
    apply_chat_template_kwargs: dict[str, Any] = option(
        {}, "JSON object of variables for the chat template, such as '{\"enable_thinking\": false}'."
    )
    rollout_max_response_len: int = option(
        LONGEST_ANSWER, "Longest answer in tokens; with slime serve, of chat requests that do not say it.", ge=1
    )

    _json_object = field_validator("apply_chat_template_kwargs", mode="before")(from_json)


class ChatOptions(ModelOptions):
    """The conversation"""

    system: str | None = option(None, "A system message, which stands before the conversation.")
    image: list[str] | None = option(
        None,
        "Image files that the first question shows, in front of its text; /image adds one to a later question.",
        repeatable=True,
    )
    rollout_temperature: float | None = option(
        None,
        "Sampling temperature; 0 takes the likeliest token. Default: what the model's generation_config.json says, or else 0.7.",
        ge=0,
    )
    rollout_top_p: float | None = option(
        None,
        "Sample from the likeliest tokens that together have this probability. Default: generation_config.json's, or else 1.",
        gt=0,
        le=1,
    )
    rollout_top_k: int | None = option(
        None,
        "Sample from so many likeliest tokens; -1 is all of them. Default: generation_config.json's, or else -1.",
        ge=-1,
    )
    rollout_stop: list[str] | None = option(None, "Texts that end an answer.")
    rollout_seed: int | None = option(
        None, "Seed of sampling: the same questions get the same answers. Default: another one every time.", ge=0
    )

    @field_validator("rollout_top_k")
    @classmethod
    def _top_k_is_not_zero(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("expected -1 (all tokens) or a number of at least 1")
        return value


class ServeOptions(ModelOptions):
    """The server"""

    host: str = option(
        "127.0.0.1", "The address to listen on; one that other machines reach needs --api-key.", min_length=1
    )
    port: int = option(8000, "The port to listen on; 0 takes a free one, which is printed.", ge=0, le=65535)
    api_key: SecretStr | None = option(
        None,
        "Answer only requests with `Authorization: Bearer KEY`. env:NAME takes the key from an environment variable, which other "
        "users of the machine do not see in the list of processes. Default: the variable SLIME_API_KEY.",
        env="SLIME_API_KEY",
        secret=True,
    )
    served_model_name: str | None = option(
        None, "What requests call the model. Default: MODEL, as it was given.", min_length=1
    )
    max_waiting: int = option(
        256,
        "Take so many answers at a time, running and waiting ones; further requests are told to come back later (429).",
        ge=1,
    )
    fetch_images: bool = option(
        False,
        "Fetch images that messages name by an address (http, https); else they are refused. Whoever may ask can then have this machine "
        "fetch any address that it reaches.",
    )
    shutdown_timeout: int = option(
        30, "Seconds that running answers have to be finished in after Ctrl-C or SIGTERM; then they are cut off.", ge=0
    )


Options = TypeVar("Options", bound=ModelOptions)


@dataclass(frozen=True)
class Read(Generic[Options]):
    """A command line that was read.

    Attributes:
        given: MODEL as it was written.
        words: what stands there besides MODEL and the options.
        own: the options of the command.
        args: defaults, and the options of the engine.
    """

    given: str
    words: list[str]
    own: Options
    args: RunArguments

    def args_for(self, folder: Path) -> RunArguments:
        """What the engine is made with for the model in a folder."""
        return self.args.model_copy(update={"hf_checkpoint": str(folder)})


def read_command_line(
    argv: Sequence[str], prog: str, description: str, options: type[Options], plugins: Plugins
) -> Read[Options]:
    """Read MODEL, further words, and options. Prints the help and exits when asked to.

    Args:
        prog: the command with the names of its words.

    Raises:
        ArgumentError: MODEL is missing, there is no such engine, or an option is unknown or wrong.
    """
    namespace = Namespace(plugins)
    name = _engine_named(argv, options.model_fields["rollout_engine"].default)
    flags = [word for word in takewhile(lambda word: word != "--", argv) if word.startswith("--")]
    namespace.admit(flag.removeprefix("--").partition("=")[0].replace("-", "_") for flag in flags)
    engine = _options_of_engine(namespace, plugins, name) - set(options.model_fields)
    groups = [
        g for g in dict.fromkeys(namespace.options[n].group for n in namespace.options) if set(g.model_fields) & engine
    ]
    sections: Any = [_part(group, engine) for group in groups]
    both: type[ArgumentGroup] = create_model("Both", __base__=(options, *sections), __doc__=options.__doc__)
    _require_own(flags, both, namespace, name)
    found: Any = read_words_and_options(argv, prog, description, both, [ModelOptions, *sections])
    words, read = found
    if not words:
        raise ArgumentError(f"Which model? {prog}: the folder of a Hugging Face checkpoint or of a run.")
    trust_remote_code(read.trust_remote_code)
    given = {n: getattr(read, n) for n in read.model_fields_set & engine}
    for n in [n for n in given if namespace.options[n].is_secret]:
        given[n] = secret_from(given[n], namespace.options[n].flag)
    shared = {"trust_remote_code": read.trust_remote_code, "rollout_engine": read.rollout_engine}
    # An engine reads none of the options that every run must have.
    args = namespace.model(hf_checkpoint=words[0], prompt_data=["none"], rollout_batch_size=1, **shared, **given)
    remember_secrets(args)
    own = options(**{n: getattr(read, n) for n in read.model_fields_set & set(options.model_fields)})
    return Read(words[0], words[1:], own, args)


def _engine_named(flags: Sequence[str], default: str) -> str:
    """The value of `--rollout-engine`, which decides what other options there are."""
    name = default
    for n, flag in enumerate(flags):
        if flag == "--rollout-engine" and n + 1 < len(flags):
            name = flags[n + 1]
        elif flag.startswith("--rollout-engine="):
            name = flag.partition("=")[2]
    return name


def _options_of_engine(namespace: Namespace, plugins: Plugins, name: str) -> set[str]:
    """The options that an engine declares to read; those of all engines if it declares nothing."""
    found = plugins.components("engine")
    if name not in found and "." not in name:
        hint = plugins.where_to_get("engine", name) or did_you_mean(name, found)
        raise ArgumentError(f"--rollout-engine {name}: there is no engine of this name.{hint}")
    chosen = [found[name]] if name in found and found[name].reads_options is not None else list(found.values())
    every = [n for component in chosen for n in options_read(component.reads_options or (), namespace.model)]
    return {n for n in every if not namespace.options[n].read_by_core}


def _part(group: type[ArgumentGroup], names: set[str]) -> type[ArgumentGroup]:
    """A group as a base of the options of a command."""
    return group if set(group.model_fields) <= names else _only(group, names)


def _only(group: type[ArgumentGroup], names: set[str]) -> type[ArgumentGroup]:
    fields: Any = {n: (field.annotation, field) for n, field in group.model_fields.items() if n in names}
    return create_model(group.__name__, __base__=ArgumentGroup, __doc__=group.__doc__, **fields)


def _require_own(flags: Sequence[str], options: type[ArgumentGroup], namespace: Namespace, engine: str) -> None:
    """Refuse options of a run that have no effect here, which `read_options` would call unknown."""
    for word in flags:
        name = word.removeprefix("--").partition("=")[0].removeprefix("no-").replace("-", "_")
        if name in namespace.options and name not in options.model_fields:
            raise ArgumentError(
                f"{namespace.options[name].flag} is an option of a run, which neither this command nor the engine {engine!r} reads."
            )
