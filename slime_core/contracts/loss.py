"""Losses: what is minimised. `LossInputs` in, `LossOutputs` out, whichever train backend calls.

A loss is a pure function on flat per-token tensors of one micro-batch. It knows nothing of logits, packing,
parallelism or backends. It averages over tokens only with `inputs.reduce`, which knows the normaliser of the *global*
batch: the sum of what `reduce` returns over all micro-batches and ranks is the mean over the global batch.

Importing this module does not import torch; the tensors bring it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar

from slime_core.contracts.kind import Kind
from slime_core.contracts.results import shape_of, shown
from slime_core.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from slime_core.arguments import RunArguments
    from slime_core.sample import Sample


@dataclass(frozen=True)
class Reduce:
    """The global mean over trained tokens, one micro-batch's share of it.

    `weights` (T floats) already hold mask and normaliser; see `slime_core.training.batches.token_weights` for the three means.
    """

    weights: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """T values → a scalar; keeps gradients."""
        return (values * self.weights).sum()

    def over(self, kept: Tensor) -> Reduce:
        """The same share with what is not kept, 0 in (T,), left out of the sum; what the mean divides by stays."""
        return replace(self, weights=self.weights * kept)


class MeanOfNothing(Reduce):
    """The mean over no token of the global batch: NaN, which is left out of the metrics of the step."""

    def __call__(self, values: Tensor) -> Tensor:
        """Any values → NaN."""
        return values.new_full((), float("nan"))


@dataclass(frozen=True)
class Responses:
    """The responses that the tokens of a micro-batch lie in, with their untrained tokens; for what averages in a way of its own.

    Attributes:
        samples: of the micro-batch, S of them, those without a trained token too.
        divisor: what makes a mean of a sum over the samples of the global batch: the number of their trajectories, or under
            `--calculate-per-token-loss` that of their trained tokens.
    """

    samples: Sequence[Sample]
    divisor: float


@dataclass(frozen=True)
class LossInputs:
    """Per-token tensors of one micro-batch, T tokens, in the order of its samples. All trained tokens of a sample are in
    one micro-batch. The tokens are the response positions that are trained; there are none where a rank has less to do than others, or
    all samples were skipped. Everything is in the dtype of `log_probs` unless said.

    Attributes:
        log_probs: (T,) log-prob of each token under the weights in training; carries gradients.
        loss_mask: (T,) 1 for trained tokens, 0 for the padding that some backends need.
        sample_index: (T,) int64, which sample of the micro-batch a token belongs to, 0 … S-1.
        reduce: the mean over the global batch; see `Reduce`. The loss itself is built with it.
        measured: the mean over those tokens of the global batch that the model really read: all, unless samples
            without a gradient were skipped. Diagnostics (ratio, clip fraction, entropy, log-prob differences) use it; where the
            model read none at all, they are left out of the step's metrics.
        entropy: (T,) entropy of the next-token distribution, with gradient; present when the loss `reads` it.
        old_log_probs: (T,) under the weights before the first step of this rollout. None where there is only one step:
            then they are `log_probs.detach()`.
        trainer_log_probs: (T,) the same, where `--use-rollout-logprobs` makes `old_log_probs` the engine's; present when the loss
            `reads` it and there are several steps.
        ref_log_probs, rollout_log_probs, advantages, returns: (T,) or None.
        values: (T,) a critic's predictions, with gradient; only a critic's loss has them (and no `log_probs`: they are
            the same tensor). `old_values`: before its first step.
        responses: whole responses; see `Responses`. All train backends of slime give them.
    """

    log_probs: Tensor
    loss_mask: Tensor
    sample_index: Tensor
    reduce: Reduce
    measured: Reduce
    entropy: Tensor | None = None
    old_log_probs: Tensor | None = None
    ref_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None
    old_values: Tensor | None = None
    trainer_log_probs: Tensor | None = None
    responses: Responses | None = None


@dataclass(frozen=True)
class LossOutputs:
    """What a loss returns.

    Attributes:
        loss: scalar, this micro-batch's share of the global loss (built with `reduce`).
        metrics: scalars built with `reduce` or `measured`, detached; summed over micro-batches they are global means. Every
            micro-batch of a step has the same, also one without tokens: 0 where there is nothing.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


LossFunction = Callable[..., LossOutputs]
"""`loss(args, inputs: LossInputs) -> LossOutputs`, `args` being the run's frozen arguments."""

Declaring = Callable[[Any], Iterable[str]]
"""What a loss or estimator reads under given arguments, as names of `READS`."""

READS = (
    *("old_log_probs", "ref_log_probs", "rollout_log_probs", "trainer_log_probs"),
    *("advantages", "returns", "values", "entropy"),
)
"""What a loss or an advantage estimator may say that it reads."""


Component = TypeVar("Component")


def reads(names: Declaring) -> Callable[[Component], Component]:
    """Decorator of losses and advantage estimators: which of `READS` they read under given arguments.

    What nothing reads is not computed: no reference model is loaded, no old log-probs are taken, no entropy is found.
    A component without this decorator reads nothing but log-probs, mask and (a loss) advantages where there are any.

        @reads(lambda args: {"ref_log_probs"} if args.use_kl_loss else set())
        def my_loss(args, inputs): ...

    Raises:
        PluginError: it is given names in place of a function that returns them.
    """
    if not callable(names):
        raise PluginError(
            f"@reads was given {names!r}; expected a function of the run's options that returns names, such as "
            '@reads(lambda args: {"rollout_log_probs"}).'
        )

    def mark(component: Component) -> Component:
        component.slime_reads = names  # type: ignore[attr-defined]
        return component

    return mark


def needs_gradient_at_zero_advantage(when: Callable[[Any], bool]) -> Callable[[Component], Component]:
    """Decorator of losses: under which arguments a sample whose advantages are all 0 still has a gradient (KL or
    entropy terms). Without this decorator a loss is taken to need every sample."""

    def mark(component: Component) -> Component:
        component.slime_needs_zero_advantage = when  # type: ignore[attr-defined]
        return component

    return mark


def what_reads(component: Any, args: RunArguments) -> frozenset[str]:
    """What `reads` declared for a loss or estimator, which may be wrapped in a `Selected`.

    Raises:
        PluginError: it names something that is not in `READS`.
    """
    declared: Declaring | None = getattr(getattr(component, "target", component), "slime_reads", None)
    names = frozenset(declared(args)) if declared else frozenset()
    if unknown := sorted(names - set(READS)):
        label = getattr(component, "label", repr(component))
        raise PluginError(f"The {label} declares that it reads {', '.join(unknown)}; there are {', '.join(READS)}.")
    return names


def hint_at_reads(error: Exception, component: Any, args: tuple[Any, ...]) -> str:
    """A sentence on inputs that a loss or estimator used where it failed, and that are None as it does not declare them; "" if there
    are none."""
    if not isinstance(error, (TypeError, AttributeError)) or "NoneType" not in str(error):
        return ""
    given, inputs = args[0], args[1]
    fields = {name: name for name in READS}
    if not hasattr(inputs, "old_log_probs"):  # those of an estimator, whose `log_probs` these are
        fields["log_probs"] = "old_log_probs"
    used = {name for frame, _ in walk_tb(error.__traceback__) for name in frame.f_code.co_names}
    lacking = {fields[name] for name in used & fields.keys() if getattr(inputs, name, inputs) is None}
    if not (unread := sorted(lacking - what_reads(component, given))):
        return ""
    return (
        f"It was given None for {', '.join(unread)}, as it does not say that it reads {'it' if len(unread) == 1 else 'them'}; say so: "
        f"@slime_core.contracts.loss.reads(lambda args: {{{', '.join(map(repr, unread))}}})."
    )


def may_skip_zero_advantage(component: Any, args: RunArguments) -> bool:
    """Whether samples whose advantages are all 0 cannot contribute a gradient to this loss."""
    when = getattr(getattr(component, "target", component), "slime_needs_zero_advantage", None)
    return when is not None and not when(args)


def loss(args: RunArguments, inputs: LossInputs) -> LossOutputs:
    """This micro-batch's share of the loss of the global batch.

    A loss that names one more parameter, `importance_weight`, is given the function that `--custom-tis-function-path`
    chooses, or None; one that names `pg_loss_reducer` that of `--custom-pg-loss-reducer-function-path`. One that reads more than
    log-probs, mask and advantages says so with `reads`.
    """
    raise NotImplementedError


def importance_weight(
    args: RunArguments, inputs: LossInputs
) -> tuple[Tensor, dict[str, Tensor]] | tuple[Tensor, dict[str, Tensor], Tensor]:
    """Correction for tokens sampled by an engine that differs from the trainer: (T,) weights, detached, that multiply the
    policy loss of each token, and metrics built with `inputs.measured`. Reads `old_log_probs` and `rollout_log_probs`.

    A third element, (T,) and detached, rejects the tokens where it is 0: they leave every term of the loss and its diagnostics,
    while what these divide by stays. Without it every token is kept. A function of slime's shape always gives it."""
    raise NotImplementedError


def pg_loss_reducer(
    total_lengths: list[int],
    response_lengths: list[int],
    loss_masks: list[Tensor],
    calculate_per_token_loss: bool = False,
) -> Callable[[Tensor], Tensor]:
    """Return what turns the policy losses of a micro-batch's response tokens, laid end to end, into one number with gradient: what
    its samples add to a sum over the global batch. That is divided by the number of trajectories in it, or of its trained tokens
    under `--calculate-per-token-loss`.

    Args:
        total_lengths, response_lengths: tokens of each sample, and of its response.
        loss_masks: per sample 1 for trained tokens of the response, 0 for others, whose losses are 0, and for those that an importance
            weight rejects.
    """
    raise NotImplementedError


def _check_loss(result: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(result, LossOutputs):
        return f"{shown(result)}; expected a LossOutputs"
    # Runs for every micro-batch, so it looks at no value: that would wait for the device.
    for name, value in {"the loss": result.loss, **{f"the metric {n!r}": v for n, v in result.metrics.items()}}.items():
        if getattr(value, "shape", None) != () or not hasattr(value, "dtype"):
            return f"{shape_of(value)} as {name}; expected a tensor with one number, built with inputs.reduce or inputs.measured"
    inputs = args[1]
    predicted = getattr(inputs, "values", None)  # of a critic
    predicted = getattr(inputs, "log_probs", None) if predicted is None else predicted
    if predicted is not None and predicted.requires_grad and not result.loss.requires_grad and inputs.loss_mask.any():
        return (
            "a loss without a gradient, from which nothing is learned; expected one that is computed from inputs.log_probs (a critic's: "
            "inputs.values) without detach, item or torch.no_grad"
        )
    return None


def _check_reducer(result: Any, args: tuple[Any, ...]) -> str | None:
    return (
        None
        if callable(result)
        else f"{shown(result)}; expected a function from the losses of all tokens to one number"
    )


def _check_weights(result: Any, args: tuple[Any, ...]) -> str | None:
    # Runs for every micro-batch, so it looks at no value: that would wait for the device.
    if not isinstance(result, tuple) or len(result) not in (2, 3) or not isinstance(result[1], dict):
        return f"{shown(result)}; expected a tensor of weights, a dict of metrics and, where tokens are rejected, a tensor of those kept"
    wanted = tuple(args[1].loss_mask.shape)
    for name, values in zip(("weights", "kept tokens"), result[::2], strict=False):
        if getattr(values, "shape", None) != wanted:
            return f"{shape_of(values)} as {name}; expected a tensor of shape {wanted}, one for each token"
        if values.requires_grad:
            return f"{name} with a gradient; expected them detached: they scale the loss and are not trained through"
    return None


KINDS = (
    Kind(
        "loss",
        "slime_losses",
        loss,
        ("--loss-type", "--custom-loss-function-path"),
        extras=("importance_weight", "pg_loss_reducer"),
        marks=("slime_reads", "slime_needs_zero_advantage"),
        check=_check_loss,
        hint=hint_at_reads,
    ),
    Kind(
        "importance_weight",
        "slime_importance_weights",
        importance_weight,
        ("--custom-tis-function-path",),
        check=_check_weights,
    ),
    Kind(
        "pg_loss_reducer",
        "slime_pg_loss_reducers",
        pg_loss_reducer,
        ("--custom-pg-loss-reducer-function-path",),
        check=_check_reducer,
    ),
)
