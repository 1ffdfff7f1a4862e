"""`Profiler`: writes a trace of some rollouts of training, for TensorBoard, Perfetto or chrome://tracing.

The training worker calls `step` before it trains on a rollout and `close` at the end of the run, both on its own
thread. Without `--use-pytorch-profiler` neither does anything, and torch is not imported.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from slime_core.arguments.groups.profiling import ProfilingArguments
from slime_core.output import writing

if TYPE_CHECKING:
    from torch.profiler import profile, record_function

logger = logging.getLogger(__name__)

MEMORY_SNAPSHOT = "memory_snapshot.pickle"


class Profiler:
    """Profiles the rollouts that the arguments name.

    Args:
        run_dir: where the trace goes unless `--tensorboard-dir` says otherwise.
    """

    def __init__(self, args: ProfilingArguments, run_dir: Path) -> None:
        self._wanted = range(args.profile_step_start, args.profile_step_end) if args.use_pytorch_profiler else range(0)
        self._folder = Path(args.tensorboard_dir or run_dir / "profile")
        self._option = "--tensorboard-dir" if args.tensorboard_dir else "--use-pytorch-profiler"
        self._memory = bool(self._wanted) and args.record_memory_history
        self._trace: profile | None = None  # while it runs
        self._span: record_function | None = None  # marks the present rollout in the trace
        self._done = False
        if self._wanted:
            import torch

            # The first profile of a process belongs on the thread that imported torch; elsewhere Kineto reports an
            # error.
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
                pass
            if self._memory and not torch.cuda.is_available():
                logger.warning(
                    "--record-memory-history has no effect: it needs a CUDA device, and this machine has none."
                )
                self._memory = False

    def step(self, rollout_id: int) -> None:
        """Note that training on the rollout `rollout_id` begins, which ends with the next call."""
        self._end_span()
        if rollout_id in self._wanted:
            self._start()
            from torch.profiler import record_function

            self._span = record_function(f"rollout {rollout_id}")
            self._span.__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        else:
            self._stop()

    def close(self) -> None:
        """Write what has been recorded; called when the run is over."""
        self._end_span()
        self._stop()
        if self._wanted and not self._done:
            logger.warning(
                "--use-pytorch-profiler wrote no trace: this run did not train on rollouts %d to %d.",
                self._wanted[0],
                self._wanted[-1],
            )

    def _start(self) -> None:
        if self._trace is not None:
            return
        import torch
        from torch.profiler import ProfilerActivity, profile, tensorboard_trace_handler

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        if self._memory:
            torch.cuda.memory._record_memory_history()  # torch documents it under this name
        # There is no second cycle, whose beginning would clear them. acc_events would silence torch as well, and make Python objects
        # of all events that nobody reads, which takes a minute where there are 200,000.
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)
        self._trace = profile(
            activities=activities,
            record_shapes=True,
            profile_memory=True,
            on_trace_ready=tensorboard_trace_handler(str(self._folder)),
        )
        self._trace.start()

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def _stop(self) -> None:
        if self._trace is None:
            return
        trace, self._trace, self._done = self._trace, None, True
        with writing(f"The profile, for {self._option},", self._folder):
            trace.stop()  # writes it
        if self._memory:
            import torch

            snapshot = str(self._folder / MEMORY_SNAPSHOT)
            with writing(f"The history of the memory, for {self._option},", self._folder):
                torch.cuda.memory._dump_snapshot(snapshot)  # type: ignore[no-untyped-call]  # torch does not annotate it
            torch.cuda.memory._record_memory_history(enabled=None)
        logger.info("the profile of rollouts %d to %d is in %s", self._wanted[0], self._wanted[-1], self._folder)
