"""`slime check --parity`: proves before a run that its train backend computes, in the run's own layout and on rows of its
data, what transformers computes, and names the tensor that is wrong.

The backend is set up in this process, or in the training ranks on Ray that the run would have. What is cheap comes first:

    checkpoint   has all tensors of the model
    weights      those of the backend are the checkpoint's, bit for bit
    log-probs    of the trained tokens of a few rows, packed together
    gradients    of every tensor, with --gradients or where log-probs differ

Where log-probs differ, two further looks tell what kind of thing is wrong: at each row alone, and at tokens that have one
token before them alone, for which queries, keys and positions do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slime_core.arguments.derived import derived
from slime_core.contracts.train_backend import GivesGradients
from slime_core.errors import ArgumentError, ParityError
from slime_core.plugins import Plugins
from slime_core.run.blueprint import Blueprint
from slime_core.run.parity_rows import pairs_of, parity_rows
from slime_core.run.plan import Plan
from slime_core.runtime.handles import Handle, LocalHandle, wait
from slime_core.sample import Sample
from slime_core.tensors.parity import Compared, placed
from slime_core.tensors.truth import layer_of
from slime_core.training.components import choose_train_components
from slime_core.training.parity import ParityWorker

SHOWN = 6
"""How many wrong tensors a message names."""

_SCORES = ("q_proj", "k_proj", "q_norm", "k_norm", "q_a_", "q_b_", "kv_a_", "qkv", "query", "key", "c_attn")
"""Parts of the names of what chooses the tokens that attention looks at."""


@dataclass(frozen=True)
class ParityOptions:
    """What to compare.

    Attributes:
        gradients: of all layers, or of the first, a middle and the last one; None: only where log-probs differ.
        rows: how many; None: 4, and two for every data-parallel rank.
        tokens: the longest row that is computed; longer ones are cut.
    """

    gradients: Literal["all", "few"] | None
    rows: int | None
    tokens: int


@dataclass(frozen=True)
class ParityMaker:
    """Makes the worker of a rank, in its own process."""

    blueprint: Blueprint

    def make(self) -> tuple[ParityWorker, Plugins]:
        """Make the worker, and return it with the plugins that were loaded for it."""
        args, plugins = self.blueprint.rebuild()
        return ParityWorker(args, choose_train_components(args, plugins)), plugins


def check_parity(plan: Plan, options: ParityOptions, say: Callable[[str], None]) -> None:
    """Compare, saying one line for each comparison.

    Raises:
        ParityError: something differs; names tensor and layer, and what was given and expected.
        ArgumentError: the run trains nothing, or the backend gives no gradients.
        SlimeError: what stops a run would stop this one too.
    """
    backend = plan.components.training.train_backend
    able = issubclass(backend.target, GivesGradients)  # type: ignore[arg-type]  # is a class
    if plan.args.debug_rollout_only:
        raise ArgumentError("--parity compares what the run trains with, but --debug-rollout-only trains nothing.")
    if options.gradients and not able:
        raise ArgumentError(
            f"--gradients: the {backend.label} gives no gradients (it has no method gradients). Leave --gradients out."
        )
    if plan.args.fp8_format:
        say(
            f"Compared without FP8, as transformers computes without it: --fp8-format {plan.args.fp8_format} is left out."
        )
    with _workers(plan, say) as worker:
        _Check(plan, options, worker, able, say).run()


@dataclass
class _Check:
    plan: Plan
    options: ParityOptions
    worker: Handle[ParityWorker]
    able: bool
    say: Callable[[str], None]

    def run(self) -> None:
        worker, options = self.worker, self.options
        self.say(f"{'parity':<12} {'result':<6} {'worst':>8} {'limit':>8} {'seconds':>8}  of")
        self._require(wait(worker.call(ParityWorker.read_checkpoint), "transformers' model to load"))
        started = time.perf_counter()
        ranks = wait(worker.call(ParityWorker.setup), "the train backend to load the model")
        self.say(f"{'set up':<12} {'':<6} {'':>8} {'':>8} {time.perf_counter() - started:>8.1f}  {self._backend}")
        self._require(wait(worker.call(ParityWorker.weights), "weights"))
        rows = parity_rows(self.plan, options.rows or max(4, 2 * ranks), options.tokens)
        found = self._log_probs(rows, together=True)
        self._tell(found)
        if not found.ok:
            self._explain(rows, found)
        if options.gradients:
            gradients = self._gradients(rows, together=True)
            if not gradients.count:
                raise ArgumentError(
                    f"--gradients: the {self._backend} gives the gradient of no tensor of the checkpoint, since it trains "
                    "something else, such as adapters. Leave --gradients out, or compare without the adapters."
                )
            self._require(gradients)

    @property
    def _backend(self) -> str:
        return self.plan.components.training.train_backend.label

    def _explain(self, rows: Sequence[Sample], found: Compared) -> None:
        """Find out what makes log-probs differ, and raise."""
        alone = self._log_probs(rows, together=False)
        self._tell(alone, "rows alone")
        if alone.ok:
            raise ParityError(
                f"{found.problems[0]} Each row alone gives the right numbers, so no tensor is wrong: packed rows reach into "
                "each other. Attention crosses the bounds of sequences, or positions do not begin again at each of them "
                "(self_attn of all layers)."
            )
        pairs = pairs_of(list(rows))
        single = self._log_probs(pairs, together=False)
        self._tell(single, "token pairs")
        if single.ok:
            where = (
                "Tokens that have one token before them alone get the right numbers, so what is wrong chooses the tokens that "
                "attention looks at: queries, keys, their norms, their order in heads, rotary positions, masks or windows."
            )
        else:
            where = (
                "It shows at tokens with one token before them alone too, so positions and packing alone do not explain it: "
                "embedding, norms, values, MLP, experts or head."
            )
        own = list(rows) if single.ok else pairs
        if single.ok:
            self._log_probs(own, together=False)  # which `explain` is about
        told, known = [f"{found.problems[0]} {where}"], self._known(own, None)
        if self.able:
            gradients = self._gradients(own, together=False)
            self._tell(gradients)
            told += _furthest(gradients, single.ok) if gradients.count else []
            known = known or self._known(own, layer_of(gradients.where))
        elif known is None:
            told.append(f"The {self._backend} gives no gradients, which would tell the tensor.")
        raise ParityError("\n".join([*told[:1], *([known] if known else []), *told[1:]]))

    def _known(self, samples: Sequence[Sample], layer: int | None) -> str | None:
        """A sentence on the mistake that gives the very numbers of the backend, if it is a known one."""
        found = wait(self.worker.call(ParityWorker.explain, samples, layer), "known mistakes to be tried")
        if found is None:
            return None
        where = "" if layer is None else f" in layer {layer} alone"
        more = f" and {len(found.names) - 4} more" if len(found.names) > 4 else ""
        return (
            f"transformers gives the very numbers of the backend if {found.text}{where}: "
            f"{', '.join(map(placed, found.names[:4]))}{more}."
        )

    def _log_probs(self, rows: Sequence[Sample], together: bool) -> Compared:
        return wait(self.worker.call(ParityWorker.log_probs, rows, together), "log-probs")

    def _gradients(self, rows: Sequence[Sample], together: bool) -> Compared:
        few = self.options.gradients == "few"
        return wait(self.worker.call(ParityWorker.gradients, rows, few, together), "gradients")

    def _tell(self, found: Compared, name: str = "") -> None:
        unit = "tokens" if found.what == "log-probs" else "tensors"
        where = f", worst {found.where}" if found.where else ""
        self.say(
            f"{name or found.what:<12} {'ok' if found.ok else 'FAILED':<6} {found.worst:>8.1e} {found.limit:>8.1e} "
            f"{found.seconds:>8.1f}  {found.count} {unit}{where}"
        )

    def _require(self, found: Compared) -> None:
        self._tell(found)
        if not found.ok:
            raise ParityError(
                "\n".join([f"The {self._backend} does not compute what transformers computes:", *_shown(found)])
            )


def _shown(found: Compared) -> list[str]:
    more = len(found.problems) - SHOWN
    return [*found.problems[:SHOWN], *([f"and {more} more"] if more > 0 else [])]


def _furthest(found: Compared, scores: bool) -> list[str]:
    """Sentences on the gradients that are furthest off, of those that can be the cause, in the model's order.

    Args:
        scores: what is wrong is known to choose the tokens that attention looks at.
    """
    own = [n for n, name in enumerate(found.names) if not scores or any(part in name for part in _SCORES)]
    worst = sorted(own, key=lambda n: -found.errors[n])[:SHOWN]
    if not worst:
        return ["All gradients are right."]
    text = f"A wrong number changes every gradient; furthest off, of {len(found.names)} that are wrong, is {placed(found.names[worst[0]])}:"
    return [text, *(found.problems[n] for n in sorted(worst))]


@contextmanager
def _workers(plan: Plan, say: Callable[[str], None]) -> Iterator[Handle[ParityWorker]]:
    """The training ranks of the run, in this process or on Ray. They are closed with the context."""
    if plan.layout is not None:
        from slime_core.runtime.connect import prepare

        prepare(plan.layout.address)
        from slime_core.run.on_ray import ranks_on_cluster

        maker = ParityMaker(Blueprint.of(plan, Path(derived(plan.args.run_dir))))
        with ranks_on_cluster(plan.layout, maker, say) as handle:
            yield handle
        return
    local = LocalHandle(ParityWorker(plan.args, plan.components.training), "parity")
    try:
        yield local
    finally:
        local.close()
