"""Lets megatron-core run without CUDA: on the CPU, over gloo. Where CUDA is available nothing here does anything.

megatron-core asks for CUDA in three ways: it calls functions of `torch.cuda`, it names "cuda" as the device of new tensors or
calls `.cuda()`, and it keeps states of CUDA's random number generator. `prepare` answers all three with the CPU. Some of its
modules also take Transformer Engine for installed when it is not; that is put right as well, on a GPU too.

megatron-core warns about what is known here: that it runs without Transformer Engine and Apex, and that it calls torch in ways
that will change. Those warnings are not shown.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")

_KNOWN_WARNINGS: dict[str, type[Warning]] = {
    r".*Apex (is|are) not installed": UserWarning,
    "full scope is deprecated": UserWarning,
    r"`sequence_parallel` is set to `True`, but tensor model parallel size is 1": UserWarning,  # of whole experts
    r"The .grad attribute of a Tensor that is not a leaf": UserWarning,
    r"\s*The 'megatron.core.transformer.custom_layers": DeprecationWarning,
    r"`torch.distributed.\w+` is deprecated": FutureWarning,
}
"""Beginnings of messages, as regular expressions."""


class _OnTheCpu(TorchFunctionMode):
    """Every tensor function that names a CUDA device gets the CPU in its place. Called for every one, also for `Tensor.shape`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _IN_PLACE_OF:
            return _IN_PLACE_OF[func](*args, **(kwargs or {}))
        if not kwargs:
            return func(*args)
        given = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if _is_cuda(given.get("device")):
            given["device"] = CPU
        return func(*args, **given)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and _is_cuda(args[0]):
        args = (CPU, *args[1:])
    if _is_cuda(kwargs.get("device")):
        kwargs["device"] = CPU
    return tensor.to(*args, **kwargs)


def _type(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Optimizers sort parameters by names such as "torch.cuda.FloatTensor"."""
    found = tensor.type(*args, **kwargs)
    return found if args or kwargs else found.replace("torch.", "torch.cuda.", 1)


_IN_PLACE_OF: dict[Any, Callable[..., Any]] = {
    Tensor.cuda: lambda tensor, *args, **kwargs: tensor,
    Tensor.record_stream: lambda *args: None,
    Tensor.to: _to,
    Tensor.type: _type,
}


class _Stream:
    """A stream or event without a device: whatever it is asked to wait for has happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def record_event(self, *args: Any) -> _Stream:
        return self

    def query(self) -> bool:
        return True


_prepared = False
_of_thread = threading.local()
"""The mode, in each thread that has it: torch knows modes by thread, and two runs of a process have a thread each."""


def prepare() -> torch.device:
    """Make megatron-core usable in this thread, and return the device that it computes on. Called before it is imported."""
    global _prepared
    for message, category in _KNOWN_WARNINGS.items():
        warnings.filterwarnings("ignore", message, category)
    if torch.cuda.is_available():
        _repair_probes()
        return torch.device("cuda", torch.cuda.current_device())
    # It is about CUDA's queues.
    warnings.filterwarnings("ignore", "When using sequence parallelism it is recommended", UserWarning)
    if not _prepared:
        _answer_for_cuda()
        _exchange_uneven_parts()
        _exchange_nothing_alone()
        _repair_probes()
        _prepared = True
    if not hasattr(_of_thread, "mode"):
        _of_thread.mode = _OnTheCpu()
        _of_thread.mode.__enter__()  # for the rest of the thread: megatron-core may be called from anywhere
    return CPU


@contextlib.contextmanager
def compiling_nothing() -> Iterator[None]:
    """A context in which `torch.compile` leaves functions as they are, and after which torch compiles nothing: megatron-core's
    jit_fuser would compile small functions for minutes on a CPU. To decorate them it would import torch's compiler, which takes half
    of the time of importing megatron-core."""
    os.environ["TORCH_COMPILE_DISABLE"] = "1"  # torch's compiler reads it when it is imported
    if "torch._dynamo" in sys.modules:
        torch._dynamo.config.disable = True
    patched: Any = torch
    compiler = patched.compile
    patched.compile = lambda function, *args, **kwargs: function
    try:
        yield
    finally:
        patched.compile = compiler


def _answer_for_cuda() -> None:
    stream = _Stream()
    answers = {
        "current_device": CPU,
        "current_stream": stream,
        "default_stream": stream,
        "synchronize": None,
        "set_device": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
    }
    cuda: Any = torch.cuda
    for name, answer in answers.items():
        setattr(cuda, name, _always(answer))
    cuda.Stream = cuda.Event = _Stream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.nvtx.range_push = cuda.nvtx.range_pop = _always(None)
    cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
    with compiling_nothing():
        import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)


def _exchange_uneven_parts() -> None:
    """Let ranks gather, and sum, parts of different lengths, as experts need it that are cut over tensor-parallel ranks: gloo
    exchanges tensors of one shape alone. These are replaced by name, since torch runs backward passes outside of the mode."""
    import megatron.core.tensor_parallel.mappings as mappings

    even_gather, even_sum = mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim

    def gather(own: Tensor, group: Any, output_split_sizes: Sequence[int] | None = None, *rest: Any) -> Any:
        if output_split_sizes is None or group.size() == 1:
            return even_gather(own, group, output_split_sizes, *rest)
        padded = own.new_zeros(max(output_split_sizes), *own.shape[1:])
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in output_split_sizes]
        dist.all_gather(found, padded, group=group)
        return torch.cat([part[:length] for part, length in zip(found, output_split_sizes, strict=True)])

    def sum_parts(whole: Tensor, group: Any, input_split_sizes: Sequence[int] | None = None, *rest: Any) -> Any:
        if input_split_sizes is None or group.size() == 1:
            return even_sum(whole, group, input_split_sizes, *rest)
        summed = whole.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=group)
        return torch.split(summed, list(input_split_sizes))[group.rank()]

    mappings._gather_along_first_dim, mappings._reduce_scatter_along_first_dim = gather, sum_parts


def _exchange_nothing_alone() -> None:
    """Let a rank that is alone not add up gradients, and hand out weights, with itself. Input and output are the same memory then;
    gloo would copy it twice, which NCCL does not."""
    import megatron.core.distributed.param_and_grad_buffer as buffers

    def unless_alone(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def run(output: Tensor, given: Tensor, *rest: Any, group: Any, async_op: bool = False, **more: Any) -> Any:
            if group.size() == 1 and output.data_ptr() == given.data_ptr() and not async_op:
                return None
            return exchange(output, given, *rest, group=group, async_op=async_op, **more)

        return run

    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        setattr(buffers, name, unless_alone(getattr(buffers, name)))


def _repair_probes() -> None:
    """Modules that take a stand-in for Transformer Engine's classes for the real ones, and helpers that are there only with it."""
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher
    import megatron.core.transformer.multi_latent_attention as latent

    if not isinstance(latent.TELinear, type):
        latent.HAVE_TE = False
    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
    original = moe_utils.maybe_move_tensor_to_cpu

    def to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if isinstance(tensor, torch.Tensor) and not tensor.is_cuda:
            return tensor.numpy() if as_numpy else tensor
        return original(tensor, as_numpy, record_stream)

    moe_utils.maybe_move_tensor_to_cpu = token_dispatcher.maybe_move_tensor_to_cpu = to_cpu


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")
