"""Traces of training, for TensorBoard, Perfetto or chrome://tracing."""

from __future__ import annotations

from pydantic import model_validator

from slime_core.contracts.options import ArgumentGroup, option


class ProfilingArguments(ArgumentGroup):
    """Profiling"""

    read_by_core = True

    use_pytorch_profiler: bool = option(
        False,
        "Write a torch.profiler trace of training on the rollouts from --profile-step-start up to, not including, "
        "--profile-step-end.",
        affects_result=False,
    )
    profile_step_start: int = option(
        10, "First rollout (counted from 0) to profile.", ge=0, when="use_pytorch_profiler", affects_result=False
    )
    profile_step_end: int = option(
        12, "Rollout before which profiling stops.", ge=1, when="use_pytorch_profiler", affects_result=False
    )
    record_memory_history: bool = option(
        False,
        "Also record every CUDA allocation of the profiled rollouts, as memory_snapshot.pickle beside the trace (open it "
        "at pytorch.org/memory_viz).",
        when="use_pytorch_profiler",
        affects_result=False,
    )
    tensorboard_dir: str | None = option(
        None,
        "Folder for TensorBoard: the trace of --use-pytorch-profiler and the metrics of --use-tensorboard. Default: "
        "profile and tensorboard in the run directory.",
        when="use_pytorch_profiler|use_tensorboard",
        affects_result=False,
    )

    @model_validator(mode="after")
    def _covers_a_rollout(self) -> ProfilingArguments:
        if self.use_pytorch_profiler and self.profile_step_end <= self.profile_step_start:
            raise ValueError(
                f"--profile-step-end is {self.profile_step_end}, but profiling stops before that rollout, so it must be "
                f"greater than --profile-step-start {self.profile_step_start}."
            )
        return self
