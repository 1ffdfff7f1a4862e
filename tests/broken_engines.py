"""Engines, trackers and commands that break their contracts."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import replace

from good_components import GoodTracker

from slime_core.contracts.engine import ScoredToken
from slime_core.testing import EchoEngine
from slime_core.testing.behaviour.engines import PATIENCE


class UnclosedTracker(GoodTracker):
    def close(self, error):
        pass


class OneErrorTracker(GoodTracker):
    def close(self, error):
        super().close(error)
        if error:
            raise error


class NewOnlyTracker(GoodTracker):
    def __init__(self, args, run_dir, config):
        self.file = (run_dir / "numbers").open("x")


class ClearingTracker(GoodTracker):
    def log(self, metrics, step):
        super().log(metrics, step)
        metrics.clear()


def silent_command(argv, plugins):
    return 0


def failing_command(argv, plugins):
    print("what?")
    return 2


def answering(**changes):
    """An echo whose answers have `changes`."""

    class Engine(EchoEngine):
        async def generate(self, input_ids, sampling_params, request_id=None):
            answer = await super().generate(input_ids, sampling_params, request_id)
            return replace(answer, **{name: change(answer) for name, change in changes.items()})

    return Engine


class RandomEngine(EchoEngine):
    count = 0

    async def generate(self, input_ids, sampling_params, request_id=None):
        RandomEngine.count += 1
        return await super().generate([*input_ids, RandomEngine.count], sampling_params, request_id)


def deaf_engine(option, value):
    """An echo that takes no notice of one sampling parameter."""

    class Engine(EchoEngine):
        async def generate(self, input_ids, sampling_params, request_id=None):
            return await super().generate(input_ids, {**sampling_params, option: value}, request_id)

    return Engine


class UnstoppableEngine(EchoEngine):
    async def abort(self, request_ids=None):
        pass


class AllAbortingEngine(EchoEngine):
    async def abort(self, request_ids=None):
        await super().abort(None)


class StubbornEngine(EchoEngine):
    def close(self):
        pass


class ThreadedEngine(EchoEngine):
    """Leaves a thread behind, for a while."""

    def __init__(self, args):
        super().__init__(args)
        threading.Timer(PATIENCE + 1, print).start()


class NumberedEngine(EchoEngine):
    def __init__(self, args):
        super().__init__(args)
        self.version = -1


class StaleEngine(EchoEngine):
    def update_weights(self, weights, version):
        pass


class WakefulEngine(EchoEngine):
    @contextmanager
    def hold(self):
        yield


class SkippingEngine(EchoEngine):
    async def stream(self, input_ids, sampling_params, on_token, likeliest=0, request_id=None):
        answer = await self.generate(input_ids, sampling_params, request_id)
        for token, log_prob in list(zip(answer.tokens, answer.log_probs, strict=True))[1:]:
            on_token(ScoredToken(token, log_prob, ((token, log_prob),) * likeliest))
        return answer


class SureEngine(EchoEngine):
    async def score(self, input_ids, temperature=1.0, likeliest=0):
        return [ScoredToken(token, 0.0) for token in input_ids[1:]]


class DividingEngine(EchoEngine):
    def take_metrics(self):
        return {"tokens_per_second": float("inf")}


class ForgetfulEngine(EchoEngine):
    def offload(self):
        pass

    def onload(self):
        self.version = 0


BROKEN = [
    ("tracker", OneErrorTracker, "takes metrics", "it raised ValueError: the run failed"),
    ("tracker", UnclosedTracker, "has written what it writes", "are empty; flush and close them in close"),
    ("tracker", NewOnlyTracker, "goes on in the run directory", "it raised FileExistsError"),
    ("tracker", ClearingTracker, "does not change the metrics", "it changed the metrics; work on a copy"),
    ("command", silent_command, "explains itself", "0 characters on stdout; print how to use it"),
    ("command", failing_command, "explains itself", "ended with status 2"),
    ("checkpoint_conversion", failing_command, "explains itself", "ended with status 2"),
    ("engine", answering(log_probs=lambda a: []), "answers with as many", "0 log_probs and 6 weight_versions"),
    ("engine", answering(log_probs=lambda a: [0.5] * len(a.tokens)), "answers with as many", "not above 0"),
    ("engine", answering(finish_reason=lambda a: "abort"), "answers with as many", "expected 'length' at the limit"),
    ("engine", RandomEngine, "gives the same answer again", "`seed` fixes all randomness"),
    ("engine", deaf_engine("stop_token_ids", []), "ends an answer with the first stop token", "with the stop token .* expected"),
    ("engine", deaf_engine("min_new_tokens", 0), "goes on past stop tokens", "ended after 1 tokens; expected at least 3"),
    ("engine", NumberedEngine, "answers with the weights of the checkpoint", "expected the same tokens, of version 0"),
    ("engine", UnstoppableEngine, "returns what there is with", r"end with 'length' after .* so far, with abort"),
    ("engine", AllAbortingEngine, "returns what there is with", "expected the whole answer"),
    ("engine", StubbornEngine, "fails requests that are not finished", "neither failed nor ended; let it raise"),
    ("engine", ThreadedEngine, "fails requests that are not finished", r"its threads \['Thread-.* go on; end them in"),
    ("engine", StaleEngine, "says which weights", r"its weight_versions are \[0, .*; expected 1 for every token"),
    ("engine", WakefulEngine, "generates nothing while it is held", r"answered inside hold\(\); make no step until"),
    ("engine", SkippingEngine, "hands out every token", "expected the same ones with the same log_probs"),
    ("engine", SureEngine, "finds the tokens of its answer as likely", "and scores them as .* expected the same"),
    ("engine", DividingEngine, "counts what it does", "its metric 'tokens_per_second' is inf; expected a finite"),
    ("engine", ForgetfulEngine, "answers after offload", r"weights \[0, .*; everything must be as it was", "--offload"),
]  # fmt: skip
