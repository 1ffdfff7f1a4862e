"""`TensorboardTracker`: writes metrics as TensorBoard event files. Needs the package tensorboard, but not torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.errors import PluginError
from slime_core.output import writing
from slime_core.yaml_text import to_yaml

if TYPE_CHECKING:
    from slime_core.arguments.groups.profiling import ProfilingArguments
    from slime_core.contracts.tracker import Tracker


class TensorboardTracker:
    """Writes event files to `--tensorboard-dir`, by default the folder `tensorboard` in the run directory.

    A resumed run writes to the same folder and first tells TensorBoard to forget the steps that it is going to repeat;
    a new run in an old folder makes it forget all of them.

    Args:
        config: the resolved run, shown as text under "config". Its `resume_after` is the last rollout that a resumed
            run has behind it, or None in a new run.

    Raises:
        PluginError: the package tensorboard is not installed.
        OutputError: the event files cannot be written; so does every method.
    """

    def __init__(self, args: ProfilingArguments, run_dir: Path, config: dict[str, Any]) -> None:
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise PluginError(
                f"The tracker tensorboard needs the package tensorboard ({error}); install it with: "
                "pip install slime-trackers[tensorboard]"
            ) from error
        self._event = event_pb2.Event
        self._folder = Path(args.tensorboard_dir or run_dir / "tensorboard")
        self._what = f"The event files, for {'--tensorboard-dir' if args.tensorboard_dir else '--use-tensorboard'},"
        with writing(self._what, self._folder):
            self._writer = EventFileWriter(str(self._folder), flush_secs=30)
        behind = config.get("resume_after")
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        first_step = -1 if behind is None else behind + 1  # -1: the evaluation before the first rollout
        self._add(first_step, session_log=restart)
        self._add(max(first_step, 0), summary=_text_summary("config", _as_markdown(config)))

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Write metrics by their full names at a rollout id."""
        from tensorboard.compat.proto import summary_pb2

        values = [summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=summary_pb2.Summary(value=values))

    def close(self, error: BaseException | None) -> None:
        """Write everything that was logged, and close the file."""
        with writing(self._what, self._folder):
            self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        """Write one event with this content."""
        with writing(self._what, self._folder):
            self._writer.add_event(self._event(wall_time=time.time(), step=step, **content))


def _as_markdown(config: dict[str, Any]) -> str:
    """Return the configuration as YAML in a Markdown code block."""
    return "".join(f"    {line}\n" for line in to_yaml(config).splitlines())


def _text_summary(tag: str, text: str) -> Any:
    """Return the TensorBoard summary that shows a Markdown text under `tag`."""
    from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
    from tensorboard.plugins.text import metadata

    shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()], tensor_shape=shape)
    described = metadata.create_summary_metadata(display_name=tag, description="")
    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, metadata=described, tensor=tensor)])


if TYPE_CHECKING:  # type checkers compare the class with the contract
    _tracker: type[Tracker] = TensorboardTracker
