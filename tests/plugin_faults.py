"""Faulty plugins, how a run selects what is faulty in them, and what the person must be told."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field


@dataclass
class Fault:
    """A faulty plugin, how a run selects it, and what the person sees.

    Attributes:
        code: of the plugin module `faulty`, of the distribution faulty-pack 1.2.
        flags: what makes a run select it.
        says: parts of the message, besides the names of plugin and distribution.
        names: "faulty (faulty-pack 1.2)" unless the plugin cannot be known.
    """

    code: str
    flags: list[str]
    says: list[str]
    requires: str = "slime-core>=0.1"
    entry: str = "faulty"
    names: tuple[str, ...] = ("faulty (faulty-pack 1.2)",)
    more: dict[str, str] = field(default_factory=dict)


def loss(definition: str) -> str:
    return f"{definition}\n@hookimpl\ndef slime_losses(): return {{'it': it}}"


def rollout(body: str) -> str:
    return f"def it(args, rollout_id, data_source, evaluation=False): {body}\n@hookimpl\ndef slime_rollouts(): return {{'it': it}}"


def tracker(methods: str) -> str:
    return f"class it:\n{textwrap.indent(textwrap.dedent(methods), '    ')}\n@hookimpl\ndef slime_trackers(): return {{'it': it}}"


def provided(hook: str, definition: str) -> str:
    return f"{textwrap.dedent(definition)}\n@hookimpl\ndef {hook}(): return {{'it': it}}"


LOSS_OUTPUTS = "from slime_core.contracts.loss import LossOutputs\ndef it(args, inputs): return "
ADVANTAGE = "from slime_core.contracts.advantage import AdvantageOutputs\ndef it(args, inputs): return "
PICK_ADVANTAGE, PICK_REWARDS = ["--advantage-estimator", "it"], ["--custom-reward-post-process-path", "it"]
PICK_CONVERTER, PICK_LOG = (
    ["--custom-convert-samples-to-train-data-path", "it"],
    ["--custom-rollout-log-function-path", "it"],
)
PICK_LOSS, PICK_ROLLOUT, PICK_TRACKER = ["--loss-type", "it"], ["--rollout-function-path", "it"], ["--tracker", "it"]
GOOD_TRACKER = (
    "def __init__(self, args, run_dir, config): ...\ndef log(self, metrics, step): ...\ndef close(self, error): ..."
)

ROLLOUT = """
from dataclasses import replace
from slime_core.sample import RolloutOutput, Status

def finished(sample, **changes):
    return replace(sample, **{{
        **dict(tokens=[5, 6, 7], response_length=2, reward=0.0, status=Status.COMPLETED), **changes
    }})

def it(args, rollout_id, data_source, evaluation=False):
    groups = [[finished(s, {changes}) for s in group] for group in data_source.get_samples(args.rollout_batch_size)]
    return RolloutOutput(groups)

@hookimpl
def slime_rollouts(): return {{"it": it}}
"""
RETURNED = "returned by the rollout 'it' of faulty (faulty-pack 1.2)"
PICK_EVALUATION = ["--eval-function-path", "it", "--eval-prompt-data", "few", "{rows}"]

FAULTS = {
    "missing argument": Fault(
        loss("def it(args): ..."),
        PICK_LOSS,
        ["does not fit --loss-type: it does not take the parameter 'inputs'", "slime_core.contracts.loss.loss"],
    ),
    "extra argument": Fault(
        loss("def it(args, inputs, more): ..."), PICK_LOSS, ["it requires a parameter 'more' that nothing passes"]
    ),
    "argument that goes by its name alone": Fault(
        loss("def it(args, *, inputs): ..."),
        PICK_LOSS,
        ["does not take the parameter 'inputs' by position"],
    ),
    "arguments in another order": Fault(
        loss("def it(inputs, args): ..."), PICK_LOSS, ["parameter 'args' is number 2, expected number 1"]
    ),
    "async where sync is expected": Fault(
        loss("async def it(args, inputs): ..."), PICK_LOSS, ["it is async, expected a plain function"]
    ),
    "wrong annotation": Fault(
        loss("def it(args, inputs: str): ..."), PICK_LOSS, ["parameter 'inputs' is annotated str, expected LossInputs"]
    ),
    "wrong return annotation": Fault(
        loss("def it(args, inputs) -> float: ..."), PICK_LOSS, ["it is annotated to return float, expected LossOutputs"]
    ),
    "not callable": Fault(loss("it = 5"), PICK_LOSS, ["it is a int, expected a function loss(args"]),
    "metric that is a number": Fault(
        loss(LOSS_OUTPUTS + "LossOutputs(inputs.reduce(-inputs.log_probs), {'p': 0.5})"),
        PICK_LOSS,
        [
            "It returned 0.5 (float) as the metric 'p'; expected a tensor with one number, built with inputs.reduce or "
            "inputs.measured.\n  raised in the loss 'it' of",
        ],
    ),
    "loss that is a number": Fault(
        loss(LOSS_OUTPUTS + "LossOutputs(0.5)"),
        PICK_LOSS,
        ["It returned 0.5 (float) as the loss; expected a tensor with one number", "raised in the loss 'it' of"],
    ),
    "loss that is not averaged": Fault(
        loss(LOSS_OUTPUTS + "LossOutputs(-inputs.log_probs)"),
        PICK_LOSS,
        [
            "It returned a tensor of shape (",
            ",) as the loss; expected a tensor with one number",
            "raised in the loss 'it' of",
        ],
    ),
    "loss without its wrapper": Fault(
        loss("def it(args, inputs): return inputs.reduce(-inputs.log_probs)"),
        PICK_LOSS,
        ["(Tensor); expected a LossOutputs.\n  raised in the loss 'it' of"],
    ),
    "import error": Fault(
        "import no_such_module",
        PICK_LOSS,
        ["There is no loss named 'it'", "ModuleNotFoundError: No module named 'no_such_module'"],
    ),
    "syntax error": Fault(
        "def it(:", PICK_LOSS, ["There is no loss named 'it'", "SyntaxError: invalid syntax (faulty.py"]
    ),
    "exit at import": Fault("raise SystemExit('bye')", PICK_LOSS, ["SystemExit(bye)"]),
    "misspelt hook": Fault("@hookimpl\ndef slime_lossez(): return {}", PICK_LOSS, ["unknown hook 'slime_lossez'"]),
    "hook with arguments": Fault(
        "@hookimpl\ndef slime_losses(config): return {}",
        PICK_LOSS,
        ["Its slime_losses takes the parameter 'config', which nothing passes. It may take none"],
    ),
    "hook without decorator": Fault(
        "def slime_losses(): return {}",
        PICK_LOSS,
        ["It defines slime_losses without the decorator @slime_core.hookimpl; add it."],
    ),
    "no hook at all": Fault("x = 1", PICK_LOSS, ["It implements no hook of slime; see slime_core/hookspecs.py"]),
    "provider raises": Fault(
        "@hookimpl\ndef slime_losses(): raise ValueError('sour')", PICK_LOSS, ["ValueError: sour"]
    ),
    "provider returns a list": Fault(
        "@hookimpl\ndef slime_losses(): return ['it']", PICK_LOSS, ["Its slime_losses returned ['it']; expected a dict"]
    ),
    "core too old for it": Fault(
        loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["It needs slime-core >=99, but slime-core 0.1.0 is installed; install versions"],
        requires="slime-core>=99",
    ),
    "entry point to no module": Fault("", PICK_LOSS, ["No module named 'nowhere_at_all'"], entry="nowhere_at_all"),
    "entry point to no attribute": Fault(
        "", PICK_LOSS, ["has no 'gone'; check the name in 'faulty:gone'"], entry="faulty:gone"
    ),
    "component in no module": Fault(
        "@hookimpl\ndef slime_losses(): return {'it': Lazy('no_module:it')}",
        PICK_LOSS,
        [
            "The loss 'it' of",
            "cannot be imported: ModuleNotFoundError: No module named 'no_module'",
            "Repair or reinstall it.",
        ],
    ),
    "component is no attribute": Fault(
        "@hookimpl\ndef slime_losses(): return {'it': Lazy('faulty:gone')}",
        PICK_LOSS,
        ["cannot be imported: faulty (", "has no 'gone'; check the name in 'faulty:gone'"],
    ),
    "duplicate component": Fault(
        tracker(GOOD_TRACKER).replace("{'it': it}", "{'tensorboard': it}"),
        ["--tracker", "tensorboard"],
        [
            "Two plugins provide a tracker named 'tensorboard'",
            "trackers (slime-trackers 0.1.0)",
            "Uninstall one of the two",
        ],
    ),
    "duplicate option": Fault(
        "class G(ArgumentGroup):\n    'G'\n    lr: float = option(1.0, 'Again.')\n"
        "@hookimpl\ndef slime_argument_groups(): return [G]\n" + loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["Two distributions define the option --lr: slime-core", "and faulty-pack (G)", "rename its option."],
    ),
    "group that is none": Fault(
        "@hookimpl\ndef slime_argument_groups(): return [{'lr': 1}]\n" + loss("def it(args, inputs): ..."),
        PICK_LOSS,
        ["Its slime_argument_groups returned [{'lr': 1}]; expected a list of subclasses"],
    ),
    "class without a method": Fault(
        tracker("def __init__(self, args, run_dir, config): ...\ndef log(self, metrics, step): ..."),
        PICK_TRACKER,
        ["does not fit --tracker: it has no method close(self, error"],
    ),
    "raises in constructor": Fault(
        tracker(GOOD_TRACKER.replace("config): ...", "config): raise OSError('no server')")),
        PICK_TRACKER,
        ["OSError: no server", "raised in the tracker 'it' of", "chosen by --tracker", "faulty.py"],
    ),
    "raises at call": Fault(
        rollout("return 1 / 0"),
        PICK_ROLLOUT,
        ["ZeroDivisionError: division by zero", "chosen by --rollout-function-path"],
    ),
    "wrong return type": Fault(
        rollout("return [1]"), PICK_ROLLOUT, ["It returned [1] (list); expected a RolloutOutput."]
    ),
    "returns a coroutine": Fault(
        "async def other(): ...\n" + rollout("return other()"), PICK_ROLLOUT, ["It returned a coroutine; it is async"]
    ),
    "too few samples": Fault(
        "from slime_core.sample import RolloutOutput\n" + rollout("return RolloutOutput([])"),
        PICK_ROLLOUT,
        ["returned 0 groups (0 samples) in rollout 0; expected --rollout-batch-size 4"],
        names=("'it' of faulty (faulty-pack 1.2)",),
    ),
    "samples without tokens": Fault(
        "from slime_core.sample import RolloutOutput, Sample\n"
        + rollout("return RolloutOutput([[Sample(index=i, response_length=2)] for i in range(4)])"),
        PICK_ROLLOUT,
        ["bad sample 0: response_length is 2, but there are 0 tokens"],
    ),
    "empty mask": Fault(
        ROLLOUT.format(changes="loss_mask=[]"),
        PICK_ROLLOUT,
        ["The rollout returned a bad sample 0 (", ":1): loss_mask has 0 entries, but response_length is 2;", RETURNED],
    ),
    "empty mask of a sample that is all response": Fault(
        ROLLOUT.format(changes="loss_mask=[], response_length=3"),
        PICK_ROLLOUT,
        ["The rollout returned a bad sample 0 (", ":1): loss_mask has 0 entries, but response_length is 3;", RETURNED],
    ),
    "evaluation without sets": Fault(
        ROLLOUT.format(changes="metadata={}"),
        [*PICK_EVALUATION, "--num-rollout", "0"],
        [
            "The evaluation returned sample 0, which does not say which set it belongs to; ",
            RETURNED,
        ],
    ),
    "answers without sets": Fault(
        ROLLOUT.format(changes="").replace("RolloutOutput(groups)", "RolloutOutput([], generations=groups[0])"),
        [*PICK_EVALUATION, "--num-rollout", "0"],
        [
            "The evaluation returned sample 0 (",
            "), which does not say which set it belongs to; ",
            RETURNED,
        ],
    ),
    "advantages of another shape": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.rewards)"),
        PICK_ADVANTAGE,
        [
            "It returned a tensor of shape (4,) as advantages; expected a tensor of shape (",
            "chosen by --advantage-estimator",
        ],
    ),
    "advantages that are NaN": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.loss_mask * float('nan'))"),
        PICK_ADVANTAGE,
        ["It returned advantages that are NaN or Inf, at samples [0, 1, 2, 3] of the rollout"],
    ),
    "returns of another shape": Fault(
        provided("slime_advantages", ADVANTAGE + "AdvantageOutputs(inputs.loss_mask, inputs.rewards)"),
        PICK_ADVANTAGE,
        ["It returned a tensor of shape (4,) as returns; expected a tensor of shape ("],
    ),
    "advantages without their wrapper": Fault(
        provided("slime_advantages", ADVANTAGE + "inputs.loss_mask.tolist()[:2]"),
        PICK_ADVANTAGE,
        ["It returned [", "(list); expected an AdvantageOutputs."],
    ),
    "estimator with a missing argument": Fault(
        provided("slime_advantages", "def it(inputs): ..."),
        PICK_ADVANTAGE,
        [
            "does not fit --advantage-estimator: it does not take the parameter 'args'",
            "slime_core.contracts.advantage.advantages",
        ],
    ),
    "rewards that got lost": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [s.reward for s in samples], [1.0]"),
        PICK_REWARDS,
        ["It returned 1 rewards to train with for 4 samples; expected one for each, in their order."],
    ),
    "rewards that are NaN": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [0.0] * 4, [float('nan')] * 4"),
        PICK_REWARDS,
        ["It returned nan (float) among the rewards to train with; expected finite numbers."],
    ),
    "rewards without the raw ones": Fault(
        provided("slime_reward_post_processes", "def it(args, samples): return [0.0] * 4"),
        PICK_REWARDS,
        ["expected a pair of lists: raw rewards, and rewards to train with"],
    ),
    "training data for fewer samples": Fault(
        provided("slime_sample_converters", "def it(args, samples): return {'loss_masks': [[1]]}"),
        PICK_CONVERTER,
        ["It returned [[1]] (list) as 'loss_masks'; expected a list with one entry for each of 4 samples."],
    ),
    "training data that is too short": Fault(
        provided("slime_sample_converters", "def it(args, samples): return {'loss_masks': [[1]] * 4}"),
        PICK_CONVERTER,
        ["It returned 1 loss_masks for sample 0; expected ", "as its response_length is "],
    ),
    "training data that is none": Fault(
        provided("slime_sample_converters", "def it(args, samples): return samples"),
        PICK_CONVERTER,
        ["(list); expected a dict of lists."],
    ),
    "log that answers with a text": Fault(
        provided(
            "slime_rollout_logs",
            "def it(rollout_id, args, samples, rollout_extra_metrics, rollout_time): return 'logged'",
        ),
        PICK_LOG,
        ["It returned 'logged' (str); expected True (it has logged all itself) or False."],
    ),
    "log with the arguments of the evaluation's": Fault(
        provided("slime_rollout_logs", "def it(rollout_id, args, data, extra_metrics): ..."),
        PICK_LOG,
        ["does not fit --custom-rollout-log-function-path: it does not take the parameter 'rollout_time'"],
    ),
    "correction with a further argument": Fault(
        provided("slime_importance_weights", "def it(args, inputs, bound): ..."),
        ["--custom-tis-function-path", "it"],
        ["does not fit --custom-tis-function-path: it requires a parameter 'bound' that nothing passes"],
    ),
    "engine that cannot be aborted": Fault(
        provided(
            "slime_engines",
            """
            class it:
                def __init__(self, args): ...
                async def generate(self, input_ids, sampling_params, request_id=None): ...
                def update_weights(self, weights, version): ...
                def close(self): ...
            """,
        ),
        ["--rollout-engine", "it"],
        ["does not fit --rollout-engine: it has no method abort(self, request_ids"],
    ),
    "engine that takes weights by a coroutine": Fault(
        provided(
            "slime_engines",
            """
            class it:
                def __init__(self, args): ...
                async def generate(self, input_ids, sampling_params, request_id=None): ...
                async def abort(self, request_ids=None): ...
                async def update_weights(self, weights, version): ...
                def close(self): ...
            """,
        ),
        ["--rollout-engine", "it"],
        ["does not fit --rollout-engine: update_weights: it is async, expected a plain function"],
    ),
    "buffer that gives too much": Fault(
        "def it(args, rollout_id, buffer, num_samples): return [[1], [2]]\n@hookimpl\ndef slime_buffer_pops(): return {'it': it}",
        ["--buffer-filter-path", "it", "--data-source-path", "faulty.Source"],
        ["It returned 2 groups; expected at most 1", "chosen by --buffer-filter-path"],
        more={
            "source": """
            from slime_core.data import GlobalDataSource
            class Source(GlobalDataSource):
                def get_samples(self, num_samples):
                    self._buffer_pop(self.args, 0, [[1], [2]], 1)
            """
        },
    ),
}
