"""The training state on disk: everything that a resumed run needs to equal the unbroken one bit for bit.

It is a checkpoint of torch.distributed.checkpoint: every rank writes the part that it holds, and any number of ranks
can read it. What is in it:

    model.NAME             parameters, and buffers, those with scales of FP8 among them; with LoRA the trained ones alone, and
                           frozen ones are those of --hf-checkpoint
    kept.COPY.NAME         the same parameter in a copy of the weights
    optimizer.NAME.KEY     what the optimizer keeps for that parameter
    rank_00000, …          each rank's number of finished steps and random states

The backend calls `collect` and `load`, the same for copies of weights, and writes through a `Saver`; an export calls `load_weights`.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from slime_core.errors import CheckpointError
from slime_core.tensors.kept_weights import Copy
from slime_core.tensors.low_precision import is_precision_state
from slime_core.tensors.random_states import random_states, set_random_states
from slime_core.tensors.stored import load_stored
from slime_core.training.frozen import freezes

if TYPE_CHECKING:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from slime_torch.arguments import TorchRunArguments

warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # one process is fine
logger = logging.getLogger(__name__)


def is_whole(args: TorchRunArguments) -> bool:
    """Whether parameters that are not trained belong to the state: where options freeze some of a model without adapters."""
    return freezes(args) and not args.lora_rank


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, whole: bool = False) -> dict[str, Tensor]:
    """The state by its names on disk. The tensors are those of the model, which training goes on changing.

    Args:
        whole: parameters that are not trained belong to it too.
    """
    own = {"optimizer": type(optimizer).__name__, "step": step, "random": random_states()}
    return {**_model_tensors(model, whole), **_optimizer_tensors(model, optimizer), _rank_name(_rank()): _packed(own)}


class Saver:
    """Writes the states of one model, each either at once or on a thread while training goes on."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save-state")
        self._writing: Future[None] | None = None
        self._group: dist.ProcessGroup | None = None

    def save(self, path: Path, state: dict[str, Tensor], background: bool) -> None:
        """Write `state`, which `collect` returned, into the folder `path`. All ranks call this. A state that is still
        being written is waited for.

        Args:
            background: return as soon as there is a copy in host memory; `saved` then tells whether it is on disk.
        """
        self.saved()
        if dist.is_initialized() and self._group is None:
            # Its messages must not mix with those of training. Gloo, since it is host memory that is written.
            self._group = dist.new_group(backend="gloo")
        if background:
            self._writing = self._thread.submit(_write, path, _copied(state), self._group)
        else:
            _write(path, state, self._group)

    def saved(self, wait: bool = True) -> bool:
        """Whether the last state is on disk.

        Args:
            wait: return when it is.

        Raises:
            OSError, RuntimeError: it could not be written. This is raised once for each state.
        """
        if self._writing is not None and (wait or self._writing.done()):
            writing, self._writing = self._writing, None
            writing.result()
        return self._writing is None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, whole: bool = False) -> int:
    """Restore what was saved by any number of ranks, and return the number of finished steps. `whole`: as in `collect`.

    The random states are this rank's own, or rank 0's if it was saved by another number of ranks. Learning rates,
    weight decay and the like stay as the options of this run set them.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model or optimizer.
    """
    stored = _stored(path)
    ranks = [name for name in stored if name.startswith("rank_")]
    same = len(ranks) == (dist.get_world_size() if dist.is_initialized() else 1)
    name = _rank_name(_rank() if same else 0)
    if name not in stored:
        raise CheckpointError(f"The training state {path} holds no {name}. Go on from an earlier checkpoint.")
    raw = torch.empty(stored[name].size, dtype=torch.uint8)
    _read(path, {name: raw})
    own = _unpacked(path, raw)
    state = _model_tensors(model, whole)
    kept = {key: meta for key, meta in stored.items() if key.startswith("optimizer.")}
    _check_fits(path, state, stored, kept, own["optimizer"], type(optimizer).__name__)
    parameters = dict(model.named_parameters())
    values: dict[str, dict[str, Tensor]] = {}
    for key, meta in kept.items():
        parameter, what = _parameter_of(key)
        like, dtype = parameters[parameter], meta.properties.dtype
        value = torch.empty_like(like, dtype=dtype) if meta.size == like.shape else torch.empty(meta.size, dtype=dtype)
        values.setdefault(parameter, {})[what] = state[key] = value.detach()
    _read(path, state)
    order = {id(p): name for name, p in parameters.items()}
    trained = [order[id(p)] for group in optimizer.param_groups for p in group["params"]]
    of_number = {number: values[name] for number, name in enumerate(trained) if name in values}
    try:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": of_number})
        set_random_states(own["random"])
        finished = int(own["step"])
    except Exception as error:  # numbers of other types or sizes than were written
        raise _unreadable(path, error) from error
    if not same:
        logger.warning(
            "%s was saved by %d ranks; the random states of this rank go on from those of rank 0.", path, len(ranks)
        )
    return finished


def load_weights(path: Path, model: nn.Module, whole: bool = False) -> None:
    """Read the weights alone, without an optimizer to go on with; `whole`: as in `collect`. What products in low precision remember
    stays unread.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
    """
    stored, state = _stored(path), _model_tensors(model, whole)
    _require_none(path, _misfits(state, {n: meta for n, meta in stored.items() if not is_precision_state(n)}))
    _read(path, state)


def collect_kept(copies: Mapping[str, Copy]) -> dict[str, Tensor]:
    """Copies of the weights by their names on disk."""
    return {f"kept.{name}.{parameter}": t for name, copy in copies.items() for parameter, t in copy.items()}


def load_kept(path: Path, model: nn.Module) -> dict[str, Copy]:
    """The copies of weights that the folder holds, by name."""
    parameters, copies, state = dict(model.named_parameters()), dict[str, Copy](), dict[str, Tensor]()
    for key in (key for key in _stored(path) if key.startswith("kept.")):
        _, name, parameter = key.split(".", 2)
        state[key] = parameters[parameter].detach().to("cpu", copy=True)
        copies.setdefault(name, {})[parameter] = state[key]
    if state:
        _read(path, state)
    return copies


def _model_tensors(model: nn.Module, whole: bool) -> dict[str, Tensor]:
    """Parameters, only trained ones unless `whole`, tied ones once, and the buffers that belong to a checkpoint."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or whole}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in every}
    return {f"model.{name}": tensor for name, tensor in {**trained, **buffers}.items()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{name}.{key}": value.detach()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _parameter_of(key: str) -> tuple[str, str]:
    """The parts NAME and KEY of "optimizer.NAME.KEY"."""
    name, _, what = key.removeprefix("optimizer.").rpartition(".")
    return name, what


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _rank_name(rank: int) -> str:
    return f"rank_{rank:05d}"


def _packed(data: dict[str, Any]) -> Tensor:
    """Plain data as a tensor of bytes, so that torch.distributed.checkpoint need not unpickle any."""
    stream = io.BytesIO()
    torch.save(data, stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _unpacked(path: Path, data: Tensor) -> dict[str, Any]:
    try:
        found: dict[str, Any] = load_stored(data.numpy().tobytes())
        return {name: found[name] for name in ("optimizer", "step", "random")}
    except Exception as error:  # damaged bytes can fail in any way
        raise _unreadable(path, error) from error


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of all tensors in host memory."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}


def _write(path: Path, state: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = FileSystemWriter(path, sync_files=False)  # whoever makes the checkpoint flushes all its files
    try:
        save(state, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:  # not an Exception; it holds those of the ranks
        raise _first(error) from error


def _read(path: Path, state: dict[str, Tensor]) -> None:
    """Fill the tensors in `state` from the checkpoint. Every rank reads for itself."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    from slime_core.tensors.dcp_metadata import PlainReader

    try:
        load(state, storage_reader=PlainReader(path), no_dist=True)
    except CheckpointException as error:
        raise _unreadable(path, _first(error)) from error
    except Exception as error:  # damaged bytes can fail in any way
        raise _unreadable(path, error) from error


def _stored(path: Path) -> dict[str, TensorStorageMetadata]:
    """The size and dtype of all tensors that the folder holds, by name."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from slime_core.tensors.dcp_metadata import read_metadata

    try:
        found = read_metadata(path)
    except CheckpointError as error:
        raise _unreadable(path, error) from error
    return {name: meta for name, meta in found.state_dict_metadata.items() if isinstance(meta, TensorStorageMetadata)}


def _first(error: CheckpointException) -> BaseException:
    """The exception of the first rank that failed."""
    return next(iter(error.failures.values()))[0]


def _unreadable(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"The training state {path} cannot be read: {error!r}. Go on from an earlier checkpoint.")


def _check_fits(
    path: Path,
    model: dict[str, Tensor],
    stored: dict[str, TensorStorageMetadata],
    kept: Iterable[str],
    saved: str,
    optimizer: str,
) -> None:
    """Raise `CheckpointError` unless names and shapes agree and the optimizer is of the same kind."""
    wrong = _misfits(model, stored)
    wrong += [f"{key} is of no parameter here" for key in kept if f"model.{_parameter_of(key)[0]}" not in model]
    if saved != optimizer:
        wrong.append(f"it is of {saved}, not {optimizer}")
    _require_none(path, wrong)


def _misfits(model: dict[str, Tensor], stored: Mapping[str, TensorStorageMetadata]) -> list[str]:
    """One phrase for each weight that is not the same in both."""
    found = {name: tuple(meta.size) for name, meta in stored.items() if name.startswith("model.")}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.items()}
    return [
        f"{name.removeprefix('model.')} is {found.get(name, 'missing')} there and {wanted.get(name, 'missing')} here"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


def _require_none(path: Path, wrong: list[str]) -> None:
    if wrong:
        raise CheckpointError(
            f"The training state {path} belongs to another model or optimizer: {'; '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Resume with the --hf-checkpoint, --optimizer, "
            "--lora-rank and --fp8-recipe that the run was started with."
        )
