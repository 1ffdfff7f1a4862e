"""`slime check --parity` on tiny checkpoints, in one process, as it is and with mistakes planted in the backend."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from megatron_faults import _configured, parameters_alone
from megatron_models import make_model, make_samples, save
from megatron_ranks import resolve


@dataclass(frozen=True)
class Check:
    """One call of `slime check --parity`.

    Attributes:
        model: one of `megatron_models.MODELS`.
        fault: import path of a context manager under which it runs, "module:name".
        named: what the message must name.
        failed: the comparison that fails.
        backend: whose numbers are compared.
        options: further words of the command line.
    """

    model: str
    fault: str = ""
    named: tuple[str, ...] = ()
    failed: str = ""
    backend: str = "megatron"
    options: tuple[str, ...] = field(default=("--gradients",))

    def __str__(self) -> str:
        return ", ".join(part for part in (self.backend, self.model, self.fault.partition(":")[2]) if part)


def write_rows(path: Path) -> None:
    """Write rows of token ids, of which some are trained."""
    lines = []
    for sample in make_samples():
        tokens = sample.tokens * 2
        mask = [0] * (len(tokens) - sample.response_length) + [1] * sample.response_length
        lines.append(json.dumps({"input": tokens, "loss_mask": mask}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def words(check: Check, folder: Path) -> list[str]:
    """The command line of a check."""
    return [
        *("check", "--hf-checkpoint", str(folder / check.model), "--prompt-data", str(folder / "rows.jsonl")),
        *("--rollout-function-path", "sft", "--loss-type", "sft_loss", "--disable-compute-advantages-and-returns"),
        *("--rollout-batch-size", "8", "--num-rollout", "1", "--train-backend", check.backend, "--debug-train-only"),
        *(("--make-vocab-size-divisible-by", "8") if check.backend == "megatron" else ()),
        *("--parity", *check.options),
    ]


def prepare(checks: Sequence[Check], folder: Path) -> None:
    """Write rows and the checkpoints that are not there yet."""
    if not (folder / "rows.jsonl").is_file():
        write_rows(folder / "rows.jsonl")
    for check in checks:
        if not (folder / check.model).is_dir():
            save(make_model(check.model), folder / check.model)


def work(checks: Sequence[Check], folder: Path, found: dict[str, Any], note: Any) -> None:
    """Run one check after the other, and keep exit status and everything that was printed."""
    from slime_core.cli import main

    prepare(checks, folder)
    for check in checks:
        out, err = io.StringIO(), io.StringIO()
        try:
            with resolve(check.fault)() if check.fault else contextlib.nullcontext():
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    status = main(words(check, folder))
        except BaseException:
            status = -1
            err.write(traceback.format_exc())
        found[str(check)] = {"status": status, "out": out.getvalue(), "err": err.getvalue()}
        note()
        gc.collect()


# ------------------------------------------------------------------------------------------------------------- mistakes


@contextmanager
def _spec(change: Any) -> Iterator[None]:
    """What a family makes of a configuration is changed."""
    from slime_megatron import configuration

    right = configuration.read_spec

    def read_spec(*args: Any) -> Any:
        spec = right(*args)
        change(spec)
        return spec

    with mock.patch.object(configuration, "read_spec", read_spec):
        yield


def wrong_rope_base() -> Any:
    """Rotary positions turn with ten times the base."""

    def change(spec: Any) -> None:
        where = spec.config if spec.latent else spec.model
        where["rotary_base"] = where["rotary_base"] * 10

    return _spec(change)


def wrong_epsilon() -> Any:
    """Norms add a hundred times as much."""
    return _configured(layernorm_epsilon=1e-3)


def odd_epsilon() -> Any:
    """Norms add what nobody would think of."""
    return _configured(layernorm_epsilon=0.0123)


@contextmanager
def gate_and_up_swapped() -> Iterator[None]:
    """Gate and up projection take each other's place, on their way in and on their way out."""
    from slime_megatron.names import GateUp

    join, part = GateUp.join, GateUp.part

    def swapped(whole: Any) -> Any:
        return torch.cat(whole.chunk(2)[::-1])

    with (
        mock.patch.object(GateUp, "join", lambda self, tensors: swapped(join(self, tensors))),
        mock.patch.object(GateUp, "part", lambda self, whole: part(self, swapped(whole))),
    ):
        yield


@contextmanager
def query_heads_reordered() -> Iterator[None]:
    """Heads of queries are counted through the groups, on their way in and on their way out."""
    from slime_megatron.names import Attention

    join, part = Attention.join, Attention.part

    def there(self: Any, tensor: Any, first: int) -> Any:
        cut = tensor.reshape(first, self.heads // first, self.head_dim, *tensor.shape[1:])
        return cut.transpose(0, 1).reshape(tensor.shape)

    def joined(self: Any, tensors: Any) -> Any:
        return join(self, [there(self, tensors[0], self.groups), *tensors[1:]])

    def parted(self: Any, whole: Any) -> Any:
        query, *rest = part(self, whole)
        return [there(self, query, self.heads // self.groups), *rest]

    with mock.patch.object(Attention, "join", joined), mock.patch.object(Attention, "part", parted):
        yield


@contextmanager
def query_heads_reordered_one_way() -> Iterator[None]:
    """Heads of queries are counted through the groups on their way out alone."""
    from slime_megatron.names import Attention

    part = Attention.part

    def parted(self: Any, whole: Any) -> Any:
        query, *rest = part(self, whole)
        cut = query.reshape(self.groups, -1, self.head_dim, *query.shape[1:])
        return [cut.transpose(0, 1).reshape(query.shape), *rest]

    with mock.patch.object(Attention, "part", parted):
        yield


@contextmanager
def rows_leak() -> Iterator[None]:
    """A packed row is one sequence for attention, while positions begin again."""
    from slime_megatron import pipeline

    right = pipeline.rank_row

    def rank_row(row: Any, layout: Any, rank: int) -> Any:
        own = right(row, layout, rank)
        ends = own.bounds[[0, -1]]
        return replace(own, bounds=ends, longest=int(ends[-1]))

    with mock.patch.object(pipeline, "rank_row", rank_row):
        yield


@contextmanager
def gradient_doubled() -> Iterator[None]:
    """The gradients of the norms of keys come out twice as large, while the forward pass is right."""
    from slime_megatron import gradients

    right = gradients.own

    def own(model: Any) -> Any:
        return {name: g * 2 if name.endswith("k_layernorm.weight") else g for name, g in right(model).items()}

    with mock.patch.object(gradients, "own", own):
        yield


lost_router_bias = parameters_alone
