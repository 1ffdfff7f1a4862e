"""`rollout`, a scripted engine, and the hooks that the tests of this distribution name by import path."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from slime_core.arguments import RunArguments
from slime_core.contracts.data import DataSource
from slime_core.contracts.engine import Generation
from slime_core.data import GlobalDataSource
from slime_core.plugins import Plugins
from slime_core.rollout.components import choose_rollout_components
from slime_core.rollout.surroundings import current
from slime_core.sample import RolloutOutput, Sample, Status, check_rollout
from slime_rollout_sglang.rollout import generate_rollout

END = 3  # the token <end>
Script = Callable[[list[int], dict[str, Any]], Sequence[int]]


def random_words(prompt: list[int], params: dict[str, Any]) -> list[int]:
    """Two to nine words and an end, from the request's seed."""
    source = random.Random(params["seed"])
    return [source.randrange(10, 40) for _ in range(source.randrange(2, 10))] + [END]


class ScriptedEngine:
    """One token per turn of the event loop for every request, as a script says. What a request was given, and how many
    tokens were handed out in all, can be looked up."""

    def __init__(self, script: Script = random_words, version: int = 1) -> None:
        self.script, self.version = script, version
        self.requests: list[tuple[list[int], dict[str, Any], str | None]] = []
        self.handed_out = 0
        self.running: set[str | None] = set()
        self.most_running = 0
        self.aborts = 0
        self.requests_after_abort = 0
        self._aborted: set[str | None] = set()

    async def generate(
        self, input_ids: Sequence[int], sampling_params: dict[str, Any], request_id: str | None = None
    ) -> Generation:
        self.requests.append((list(input_ids), dict(sampling_params), request_id))
        self.requests_after_abort += self.aborts > 0
        assert request_id is None or request_id not in self.running, "two requests share a name"
        limit = sampling_params["max_new_tokens"]
        plan = self.script(list(input_ids), sampling_params)
        tokens: list[int] = []
        versions: list[int] = []
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))
        try:
            while len(tokens) < min(limit, len(plan)) and request_id not in self._aborted:
                await self.step(request_id)
                if request_id not in self._aborted:
                    tokens.append(plan[len(tokens)])
                    versions.append(self.version)
        finally:
            self.running.discard(request_id)
        self.handed_out += len(tokens)
        is_whole = len(tokens) == len(plan)
        reason = "abort" if request_id in self._aborted and not is_whole else "stop" if is_whole else "length"
        text = " ".join(f"w{token}" for token in tokens if token != END)
        return Generation(tokens, [-0.5] * len(tokens), reason, versions, text)

    async def step(self, request_id: str | None) -> None:
        """Let others run before the next token of a request."""
        await asyncio.sleep(0)

    async def abort(self, request_ids: Sequence[str] | None = None) -> None:
        self.aborts += 1
        self._aborted |= set(self.running if request_ids is None else request_ids)
        while self.running & self._aborted:
            await asyncio.sleep(0)

    def update_weights(self, weights: Any, version: int) -> None:
        self.version = version

    def close(self) -> None:
        pass


class HoldingEngine(ScriptedEngine):
    """One that can wait, and counts how often it did."""

    def __init__(self, script: Script = random_words) -> None:
        super().__init__(script)
        self.holds = 0
        self.is_held = False

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.holds, self.is_held = self.holds + 1, True
        yield
        self.is_held = False

    async def step(self, request_id: str | None) -> None:
        await super().step(request_id)
        while self.is_held and request_id not in self._aborted:
            await super().step(request_id)

    def take_metrics(self) -> dict[str, float]:
        holds, self.holds = self.holds, 0
        return {"engine/holds": float(holds)}


def rollout(
    args: RunArguments,
    plugins: Plugins,
    engine: Any = None,
    source: DataSource | None = None,
    rollout_id: int = 0,
    evaluation: bool = False,
) -> RolloutOutput:
    """What `rl` returns, checked as the rollout worker checks it. By default with a new data source and scripted engine."""
    output = generate_rollout(
        args,
        rollout_id,
        GlobalDataSource(args) if source is None else source,
        evaluation,
        components=choose_rollout_components(args, plugins),
        plugins=plugins,
        engine=ScriptedEngine() if engine is None else engine,
    )
    check_rollout([*output.groups, output.generations], need_reward=True)
    assert len(output.groups) == (0 if evaluation else args.rollout_batch_size)
    return output


# ------------------------------------------------------------------------------------------------------------ rewards

calls: Counter[str] = Counter()
state = SimpleNamespace(answers={}, delays={}, turn_limit=3, judgement=4)


def reset() -> None:
    """Forget what earlier tests left here."""
    calls.clear()
    state.answers, state.delays, state.turn_limit, state.judgement = {}, {}, 3, 4


async def length_reward(args: Any, sample: Sample) -> float:
    """The number of response tokens."""
    calls["reward"] += 1
    return float(sample.response_length)


async def by_group(args: Any, sample: Sample) -> Any:
    """What `state.answers` says for the sample's group (a list: for each sample; an exception is raised; a number of
    seconds in `state.delays` is waited for). Without an entry: 1 for even samples, 0 for odd ones."""
    calls["reward"] += 1
    await asyncio.sleep(state.delays.get(sample.group_index, 0))
    answer = state.answers.get(sample.group_index, [1.0, 0.0])
    if isinstance(answer, list):
        answer = answer[sample.index % len(answer)]
    if isinstance(answer, Exception):
        raise answer
    return answer


async def judged_by_the_engine(args: Any, sample: Sample) -> Any:
    """The same, after the engine of the run was asked for `state.judgement` tokens."""
    surroundings = current()
    assert surroundings is not None
    params = {"max_new_tokens": state.judgement, "seed": surroundings.seed}
    judged = await surroundings.engine.generate(sample.tokens[:3], params)
    assert len(judged.tokens) == state.judgement, "the judgement was cut off"
    return await by_group(args, sample)


async def ranks(args: Any, samples: list[Sample]) -> list[float]:
    """Scores a group at once: by length, longest first."""
    calls["group reward"] += 1
    order = sorted(samples, key=lambda sample: (-sample.response_length, sample.index))
    return [float(order.index(sample)) for sample in samples]


async def too_few(args: Any, samples: list[Sample]) -> list[float]:
    """One reward less than there are samples."""
    return [0.0] * (len(samples) - 1)


def echo(args: Any, sample: Sample) -> float:
    """1 when the response is the label; a plain function."""
    return float(sample.response == sample.label)


def reads_on(args: Any, sample: Sample) -> float:
    """1 when prompt and response, put together as text, are the tokens of the sample."""
    from slime_core.data.tokenizer import load_tokenizer

    tokens = load_tokenizer(args.hf_checkpoint)(sample.prompt + sample.response, add_special_tokens=False)["input_ids"]
    return float(tokens == sample.tokens[: len(tokens)] and sample.tokens[len(tokens) :] in ([], [END]))


async def two_numbers(args: Any, sample: Sample) -> dict[str, float]:
    return {"score": float(sample.response_length), "format": float(sample.index % 2)}


# --------------------------------------------------------------------------------------------------------- generators


async def two_turns(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """A call of the engine, a tool's answer of two tokens, another call."""
    tokens, mask, log_probs, versions = list(sample.tokens), [], [], []
    for turn in range(2):
        generation = await engine.generate(tokens, {**sampling_params, "max_new_tokens": state.turn_limit})
        tool = [30, 31] if turn == 0 else []
        tokens += [*generation.tokens, *tool]
        mask += [1] * len(generation.tokens) + [0] * len(tool)
        log_probs += [*generation.log_probs, *(0.0 for _ in tool)]
        versions += [*generation.weight_versions, *(1 for _ in tool)]
    sample.tokens, sample.response_length, sample.loss_mask = tokens, len(mask), mask
    sample.rollout_log_probs, sample.weight_versions = log_probs, versions
    sample.status = Status.ABORTED if generation.finish_reason == "abort" else Status.COMPLETED
    sample.response = "two turns"
    return sample


async def own_text(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """Takes the engine's text as it is."""
    generation = await engine.generate(sample.tokens, sampling_params)
    calls["own text"] += 1
    sample.tokens, sample.response_length = [*sample.tokens, *generation.tokens], len(generation.tokens)
    sample.rollout_log_probs, sample.response, sample.status = generation.log_probs, generation.text, Status.COMPLETED
    return sample


async def own_metadata(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """Makes a sample of its own, which has the metadata of an environment."""
    made = await own_text(args, sample, sampling_params, engine)
    return Sample(
        **{
            name: getattr(made, name)
            for name in ("tokens", "response_length", "response", "rollout_log_probs", "status")
        },
        metadata={"mine": 1},
    )


def metadata_of_its_own(args: Any, sample: Sample) -> None:
    """A sample hook that does so in place."""
    sample.metadata = {"mine": 1}


async def twins(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> list[Sample]:
    """Two samples for each."""
    from slime_rollout_sglang.generate import generate

    return [await generate(args, sample, sampling_params, engine) for _ in range(2)]


async def sometimes(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """Raises for what `state.answers` holds under the sample's index, or comes back with that status; a single turn
    otherwise."""
    from slime_rollout_sglang.generate import generate

    sample = await generate(args, sample, sampling_params, engine)
    answer = state.answers.get(f"generate {sample.index}")
    if isinstance(answer, Exception):
        raise answer
    sample.status = answer or sample.status
    return sample


async def told(
    args: Any, sample: Sample, sampling_params: dict[str, Any], evaluation: bool = False, engine: Any = None
) -> Sample:
    """Writes down whether it answers an evaluation; a single turn."""
    from slime_rollout_sglang.generate import generate

    calls[f"evaluation={evaluation}"] += 1
    return await generate(args, sample, sampling_params, engine)


async def silent(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Every other sample has no response. Needs no engine."""
    sample.response_length = sample.index % 2
    sample.tokens = [*sample.tokens, *([20] * sample.response_length)]
    sample.status = Status.COMPLETED
    return sample


async def of_slimes_shape(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Names no engine, and takes what has been generated already off the length of a response itself, as slime's own does."""
    surroundings = current()
    assert surroundings is not None
    left = sampling_params["max_new_tokens"] - sample.response_length
    generation = await surroundings.engine.generate(sample.tokens, {**sampling_params, "max_new_tokens": left})
    sample.tokens = [*sample.tokens, *generation.tokens]
    sample.response_length += len(generation.tokens)
    sample.rollout_log_probs = [*(sample.rollout_log_probs or []), *generation.log_probs]
    sample.weight_versions = [*sample.weight_versions, *generation.weight_versions]
    ends = {"abort": Status.ABORTED, "length": Status.TRUNCATED, "stop": Status.COMPLETED}
    sample.status = ends[generation.finish_reason]
    return sample


async def self_scored(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """Sets its own reward."""
    from slime_rollout_sglang.generate import generate

    sample = await generate(args, sample, sampling_params, engine)
    sample.reward = 0.25
    return sample


# ------------------------------------------------------------------------------------------------------------- filters


def slime_style(args: Any, samples: list[Sample], **kwargs: Any) -> Any:
    """As slime's example does it: a tensor."""
    import torch

    return torch.tensor([sample.reward for sample in samples], dtype=torch.float).std() > 0.0


def as_object(args: Any, samples: list[Sample], **kwargs: Any) -> Any:
    return SimpleNamespace(keep=len({sample.reward for sample in samples}) > 1, reason="object")


def nothing_passes(args: Any, samples: list[Sample], **kwargs: Any) -> bool:
    return False


def remove_odd(args: Any, groups: list[list[Sample]]) -> None:
    for group in groups:
        for sample in group:
            sample.remove_sample = sample.index % 2 == 1


def watch(args: Any, all_samples: list[list[Sample]], data_source: Any) -> None:
    state.seen = [[sample.index for sample in group] for group in all_samples]


def crash_after_one(rollout_id: int, args: Any, samples: Any, rollout_extra_metrics: Any, rollout_time: float) -> bool:
    """A project's own logging that raises in the second rollout."""
    if rollout_id == 1:
        raise OSError("the disk is full")
    return False


async def with_tool(args: Any, sample: Sample, sampling_params: dict[str, Any], engine: Any) -> Sample:
    """One response, once a tool has answered, which takes `state.delays["tool GROUP"]` seconds. Sets the reward that
    `state.answers["reward of INDEX"]` says."""
    await asyncio.sleep(state.delays.get(f"tool {sample.group_index}", 0))
    generation = await engine.generate(sample.tokens, sampling_params)
    sample.tokens = [*sample.tokens, *generation.tokens]
    sample.response, sample.response_length = generation.text, len(generation.tokens)
    sample.rollout_log_probs, sample.weight_versions = generation.log_probs, generation.weight_versions
    sample.status = Status.ABORTED if generation.finish_reason == "abort" else Status.COMPLETED
    sample.reward = state.answers.get(f"reward of {sample.index}")
    return sample
