"""Planted mistakes that a type checker must find in code that uses slime, with the types that the packages bring."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parent.parent

MISTAKES = {
    "option": (
        """
        from slime_core.arguments import RunArguments

        def wants_logprobs(args: RunArguments) -> bool:
            return args.use_rollout_logprobz
        """,
        'has no attribute "use_rollout_logprobz"',
    ),
    "option_of_a_plugin": (
        """
        from slime_core.arguments import RunArguments
        from slime_losses.arguments import PolicyArguments

        class MyArguments(RunArguments, PolicyArguments):
            "The run's options with those of slime-losses."

        def clip(args: MyArguments) -> float:
            return args.eps_clip + args.eps_clib
        """,
        'has no attribute "eps_clib"',
    ),
    "worker_method": (
        """
        from slime_core.rollout.worker import RolloutWorker
        from slime_core.runtime.handles import LocalHandle

        def generate(handle: LocalHandle[RolloutWorker]) -> None:
            handle.call(RolloutWorker.generat, 1)
        """,
        'has no attribute "generat"',
    ),
    "worker_keyword": (
        """
        from slime_core.rollout.worker import RolloutWorker
        from slime_core.runtime.handles import LocalHandle

        def generate(handle: LocalHandle[RolloutWorker]) -> None:
            handle.call(RolloutWorker.generate, rolout_id=1)
        """,
        'Unexpected keyword argument "rolout_id"',
    ),
    "keyword": (
        """
        from slime_core.sample import Sample

        sample = Sample(tokens=[1, 2], respons_length=1)
        """,
        'Unexpected keyword argument "respons_length"',
    ),
    "attribute_of_a_sample": (
        """
        from slime_core.arguments import RunArguments
        from slime_core.sample import Sample

        def my_filter(args: RunArguments, samples: list[Sample]) -> bool:
            return any(sample.rewrad for sample in samples)
        """,
        'has no attribute "rewrad"',
    ),
    "field_of_loss_inputs": (
        """
        from slime_core.arguments import RunArguments
        from slime_core.contracts.loss import LossInputs, LossOutputs

        def my_loss(args: RunArguments, inputs: LossInputs) -> LossOutputs:
            return LossOutputs(inputs.reduce(-inputs.log_prob))
        """,
        'has no attribute "log_prob"',
    ),
}
"""What somebody wrote, and what mypy must say about it. A piece without the mistake is below."""

RIGHT = """
from slime_core import Lazy, hookimpl
from slime_core.arguments import RunArguments
from slime_core.contracts.loss import LossInputs, LossOutputs
from slime_core.contracts.options import ArgumentGroup, option
from slime_core.rollout.worker import RolloutWorker
from slime_core.runtime.handles import LocalHandle
from slime_core.sample import Sample

class ScaleArguments(ArgumentGroup):
    "Options of my loss."
    my_scale: float = option(1.0, "Multiplies the loss.", gt=0)

class ScaledRunArguments(RunArguments, ScaleArguments):
    "The run's options with those of my loss."

@hookimpl
def slime_argument_groups() -> list[type[ArgumentGroup]]:
    return [ScaleArguments]

@hookimpl
def slime_losses() -> dict[str, Lazy]:
    return {"scaled": Lazy("my_package:scaled", reads_options=("my_scale",))}

def scaled(args: ScaledRunArguments, inputs: LossInputs) -> LossOutputs:
    return LossOutputs(args.my_scale * inputs.reduce(-inputs.log_probs))

def my_reward(args: RunArguments, sample: Sample) -> float:
    return float(sample.response_length <= args.rollout_max_response_len)

def generate(handle: LocalHandle[RolloutWorker]) -> None:
    handle.call(RolloutWorker.generate, 1)
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What mypy says about all pieces, checked with the project's own code: what it found there before, it does not find again."""
    folder = tmp_path_factory.mktemp("pieces")
    pieces = {f"piece_{name}": code for name, (code, _) in MISTAKES.items()} | {"piece_right": RIGHT}
    for name, code in pieces.items():
        (folder / f"{name}.py").write_text(dedent(code))
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"]
    named = [word for name in packages for word in ("-p", name)] + [word for name in pieces for word in ("-m", name)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *named],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_found(report: str, name: str) -> None:
    about = [line for line in report.splitlines() if re.search(rf"\bpiece_{name}\.py:", line)]
    assert any(MISTAKES[name][1] in line for line in about), report


def test_what_is_right_passes(report: str) -> None:
    assert "piece_right.py" not in report
