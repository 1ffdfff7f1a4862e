"""What a component of each kind looks like. The functions and classes here are never called or subclassed: a
component's signature is compared with them when it is selected, and people read them to write their own.

A component function must accept these parameters by these names. It may leave out a parameter marked *optional* below
and may add parameters that have defaults.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from slime_core.backend import TrainBackend

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from slime_core.advantage import AdvantageInputs, AdvantageOutputs
    from slime_core.loss import LossInputs, LossOutputs
    from slime_core.plugins import Plugins
    from slime_core.sample import Group, RolloutOutput, Sample

__all__ = [
    "DataSource",
    "InferenceEngine",
    "Tracker",
    "TrainBackend",
    "advantages",
    "all_samples_process",
    "buffer_pop",
    "command",
    "convert",
    "convert_samples",
    "dynamic_filter",
    "eval_rollout_log",
    "generate",
    "generate_rollout",
    "group_reward",
    "importance_weight",
    "loss",
    "loss_mask",
    "reward",
    "reward_post_process",
    "rollout_log",
    "sample_filter",
]


def command(argv: list[str], plugins: Plugins) -> int:
    """Run `slime NAME argv…` and return the exit status. A `SlimeError` is printed without traceback."""
    raise NotImplementedError


def convert(row: dict[str, Any]) -> dict[str, Any]:
    """Turn one row of a foreign format into a chat row: `{"messages": [{"role", "content", …}, …], …}`.

    The result may carry `tools`, `label` and `metadata`. Raise `DataError` with the reason when the row does not fit;
    the caller adds file and row number.
    """
    raise NotImplementedError


class DataSource(Protocol):
    """Hands out groups of samples and takes unfinished ones back. Made once per run as `DataSource(args)`."""

    def __init__(self, args: Any) -> None: ...

    def get_samples(self, num_samples: int) -> list[Group]:
        """The next `num_samples` groups (prompts), buffered ones first. Each group has `--n-samples-per-prompt`
        samples. Starts the next epoch, newly shuffled, where one ends."""
        raise NotImplementedError

    def add_samples(self, groups: list[Group]) -> None:
        """Put unfinished groups into the buffer."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, buffer included; plain JSON data."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Prompts in one epoch; `slime_core.data.UNKNOWN_LENGTH` where nobody can know, which makes `--num-rollout`
        necessary."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, str]:
        """{file: digest of its content}. A resumed run compares it with the checkpoint's."""
        raise NotImplementedError


def buffer_pop(args: Any, rollout_id: int | None, buffer: list[Group], num_samples: int) -> list[Group]:
    """Remove at most `num_samples` groups from `buffer` (in place) and return them."""
    raise NotImplementedError


def loss_mask(tokenizer: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> Any:
    """Render a whole conversation once and say which tokens are trained.

    Returns:
        `slime_core.masks.MaskedTokens`: the ids of the full chat-template rendering and as many 0/1 entries.

    Raises:
        DataError: the conversation cannot be rendered or masked; the caller adds file and row.
    """
    raise NotImplementedError


def generate_rollout(args: Any, rollout_id: int, data_source: DataSource, evaluation: bool = False) -> RolloutOutput:
    """Produce the samples of one rollout, or with `evaluation=True` the samples of all evaluation sets.

    A function that generates with a model names one more parameter, `engine`, and is given the run's
    `InferenceEngine`. One that goes on working between its calls names `background` and is given a
    `slime_core.background.Background` to keep that work in.
    """
    raise NotImplementedError


class InferenceEngine(Protocol):
    """Generates tokens with the newest weights it was given. Made once per run as `InferenceEngine(args)`, in the process
    of the rollout worker.

    These members are optional:

        weight_sender() -> WeightSender | None: how the trainer hands it weights itself; see `slime_core.weight_sender`.
        hold(): a context manager in which no step is made, so that what is decided meanwhile does not depend on the clock.
        take_metrics() -> dict[str, float]: what happened since the last time; logged with the rollout.
        offload(), onload(): give back the device's memory, and take it again (`--offload`).
        devices_per_server(args) -> int, needs_ray: on the class, for servers on a cluster; see `slime_core.cluster.layout`.
    """

    def __init__(self, args: Any) -> None: ...

    async def generate(
        self, input_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str | None = None
    ) -> Any:
        """One response, a `slime_core.engine.Generation`.

        Args:
            input_ids: the prompt, and after it what an aborted call has generated already, if it is to go on.
            sampling_params: `max_new_tokens`, `min_new_tokens`, `temperature` (0 is greedy), `top_p`, `top_k` (-1: all),
                `seed`, `stop_token_ids`, `stop` (strings), `ignore_eos`; SGLang's names and meaning.
            request_id: names the request for `abort`.
        """
        raise NotImplementedError

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        """End these requests (None: all) now: their `generate` calls return what there is with the finish reason
        "abort", possibly no token at all. Requests that are unknown or finished are no error. Returns when no aborted
        request is running any more."""
        raise NotImplementedError

    def update_weights(self, weights: AsyncIterator[tuple[str, Tensor]] | Any, version: int) -> None:
        """Take over all weights, given as (Hugging Face name, tensor) pairs. Returns when they are in use. An engine
        that is asked to generate before any were handed over loads those of `args.hf_checkpoint`, as version 0."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back threads, processes and memory. Requests that are not finished fail."""
        raise NotImplementedError


async def generate(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample | list[Sample]:
    """Complete one sample, with as many calls of the engine as it takes. May return several samples.

    Args:
        sample: `prompt` is text or messages, `tokens` its token ids as the model will read them, followed by what an
            aborted call has generated already (`response_length` of them). The function appends to `tokens`, `response`,
            `response_length`, `rollout_log_probs`, `weight_versions` and, for tokens that the model did not produce (tool
            results), a `loss_mask` of 0; and sets `status`: completed, truncated or, when the engine was aborted, aborted.
        sampling_params: for the engine, its `seed` and `max_new_tokens` included.

    A function that calls the engine names one more parameter, `engine`.
    """
    raise NotImplementedError


def dynamic_filter(args: Any, samples: list[Sample], **kwargs: Any) -> bool | tuple[bool, str]:
    """Keep this finished group for training? A reason may come with the answer; reasons are counted."""
    raise NotImplementedError


def sample_filter(args: Any, groups: list[Group]) -> None:
    """Set `remove_sample` on those samples of a finished rollout that shall not be trained."""
    raise NotImplementedError


async def reward(args: Any, sample: Sample) -> float | dict[str, Any]:
    """Score one finished sample. May also be a plain function."""
    raise NotImplementedError


async def group_reward(args: Any, samples: list[Sample]) -> list[float]:
    """Score all samples of a group at once: one reward for each, in their order. May also be a plain function."""
    raise NotImplementedError


def all_samples_process(args: Any, all_samples: list[Group], data_source: DataSource) -> None:
    """Look at (or give back to the data source) all finished groups of a rollout, those that a filter dropped included."""
    raise NotImplementedError


def reward_post_process(args: Any, samples: list[Sample]) -> tuple[list[float], list[float]]:
    """(raw rewards, rewards to train with), one of each for every sample of a rollout, in their order. Takes the place of
    the estimator's own normalisation of rewards."""
    raise NotImplementedError


def rollout_log(
    rollout_id: int, args: Any, samples: list[Sample], rollout_extra_metrics: dict[str, float], rollout_time: float
) -> bool:
    """Log a rollout oneself. True: slime shall not log its own metrics of it."""
    raise NotImplementedError


def eval_rollout_log(
    rollout_id: int, args: Any, data: dict[str, dict[str, Any]], extra_metrics: dict[str, float]
) -> bool:
    """Log an evaluation oneself: per set {"rewards": [...], "truncated": [...], "samples": [...]}. True: slime shall not
    log its own metrics of it."""
    raise NotImplementedError


def convert_samples(args: Any, samples: list[Sample]) -> dict[str, list[Any]]:
    """The training data of a rollout, one entry per sample in every list: "tokens", "response_lengths", "rewards",
    "loss_masks", and optionally "rollout_log_probs". What it leaves out stays as the samples have it."""
    raise NotImplementedError


def advantages(args: Any, inputs: AdvantageInputs) -> AdvantageOutputs:
    """See `slime_core.advantage`."""
    raise NotImplementedError


def importance_weight(args: Any, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Correction for tokens sampled by an engine that differs from the trainer: (T,) weights, detached, that multiply the
    policy loss of each token, and metrics built with `inputs.measured`. Reads `old_log_probs` and `rollout_log_probs`."""
    raise NotImplementedError


def loss(args: Any, inputs: LossInputs) -> LossOutputs:
    """See `slime_core.loss`. A loss that names one more parameter, `importance_weight`, is given the function that
    `--custom-tis-function-path` chooses, or None."""
    raise NotImplementedError


class Tracker(Protocol):
    """Receives metrics. Made once per run as `Tracker(args, run_dir, config)`."""

    def __init__(self, args: Any, run_dir: Path, config: dict[str, Any]) -> None:
        """`config` is the resolved run: "arguments", their "provenance", the chosen "components", the "plugins" with
        their versions, and "resume_after", the last rollout that a resumed run has behind it, or None."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Metrics with their full names (`train/loss`), `step` being the rollout id."""
        raise NotImplementedError

    def close(self, error: BaseException | None) -> None:
        """The run ended. Must flush."""
        raise NotImplementedError
