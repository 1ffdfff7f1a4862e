"""`boxed_NAME`: any reward, given what the last box of a response holds."""

from __future__ import annotations

import asyncio

from slime_core.arguments.namespace import Namespace
from slime_core.arguments.resolve import resolve
from slime_core.cli import main
from slime_core.plugins import Plugins
from slime_core.rollout.rewards import Rewards, reward_caller, score
from slime_core.sample import Sample

BOXED_REWARDS = """
def length(args, sample): return float(len(sample.response))
async def lengths(args, samples): return [float(len(sample.response)) for sample in samples]
def boxed_length(args, sample): return -1.0

@hookimpl
def slime_rewards(): return {"length": length, "lengths": lengths, "whole": length, "boxed_whole": boxed_length}
"""
ANSWER = "It is \\boxed{1234}."


def scored(name: str, rm_type: str | None = None) -> float:
    """The reward of `ANSWER` by `--rm-type`, or by a row that names another."""
    plugins, words = Plugins(), ["--hf-checkpoint", "m", "--prompt-data", "d", "--rollout-batch-size", "1"]
    args = resolve(Namespace(plugins), [*words, "--num-rollout", "1", "--rm-type", name], env={}).args
    sample = Sample(index=0, response=ANSWER, metadata={"rm_type": rm_type} if rm_type else {})
    chosen = plugins.select("reward", name)
    assert asyncio.run(Rewards(args, plugins, chosen, None).score([sample]))
    if rm_type is None:
        assert asyncio.run(score(reward_caller(args, chosen), args, [sample])) == [sample.reward]
    return sample.reward


def test_every_reward_can_be_asked_about_the_last_box_alone(install_plugin):
    install_plugin(BOXED_REWARDS)
    whole = float(len(ANSWER))
    assert (scored("length"), scored("boxed_length")) == (whole, 4.0)
    assert (scored("lengths"), scored("boxed_lengths")) == (whole, 4.0)
    assert scored("boxed_whole") == -1.0, "a reward that is called so"
    assert (scored("open_pack.length"), scored("boxed_open_pack.length")) == (whole, 4.0)
    assert scored("boxed_open_pack:length") == 4.0


def test_a_module_that_is_called_so_is_no_box(install_plugin):
    install_plugin(BOXED_REWARDS, "boxed_pack")
    assert scored("boxed_pack.length") == float(len(ANSWER))
    assert scored("boxed_boxed_pack.length") == 4.0


def test_a_row_may_ask_for_the_box_too(install_plugin):
    install_plugin(BOXED_REWARDS)
    assert scored("length", rm_type="boxed_length") == 4.0
    assert scored("boxed_length", rm_type="length") == float(len(ANSWER))


def test_a_boxed_reward_that_does_not_exist_is_named(sft, capsys):
    words = [
        "--rollout-function-path",
        "rl",
        "--rollout-engine",
        "local",
        "--rm-type",
        "boxed_exact_mach",
        "--apply-chat-template",
    ]
    assert main(["check", *sft, *words]) == 1
    message = capsys.readouterr().err
    assert "There is no reward named 'exact_mach' for --rm-type. Did you mean 'exact_match'?" in message
