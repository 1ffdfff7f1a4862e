"""Past metrics as TensorBoard event files. Needs the package tensorboard, but not torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from slime_core.errors import ArgumentError, PluginError
from slime_core.output import writing


def write_events(metrics: Path, folder: Path) -> int:
    """Write everything that a run has logged, and return how many values these are. Steps are rollout ids and times those of the run, as
    `--use-tensorboard` would have written them.

    Raises:
        ArgumentError: the folder has event files, which TensorBoard would show together with the new ones.
        PluginError: the package tensorboard is not installed.
    """
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise PluginError(
            f"--to tensorboard needs the package tensorboard ({error}); install it with: pip install slime-trackers[tensorboard]"
        ) from error
    if any(folder.glob("events.out.tfevents.*")):
        raise ArgumentError(
            f"{folder} holds event files already, and TensorBoard would show both; choose another folder with --out, or remove them."
        )
    count = 0
    with writing("The event files", folder):
        writer = EventFileWriter(str(folder))
        try:
            for line in metrics.read_bytes().splitlines() if metrics.exists() else []:
                try:
                    found = json.loads(line)
                    step, time = int(found.pop("rollout_id")), float(found.pop("time"))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # half-written
                values = [
                    summary_pb2.Summary.Value(tag=name, simple_value=math.nan if value is None else value)
                    for name, value in found.items()
                    if value is None or isinstance(value, (int, float))
                ]
                summary = summary_pb2.Summary(value=values)
                writer.add_event(event_pb2.Event(wall_time=time, step=step, summary=summary))
                count += len(values)
        finally:
            writer.close()
    return count
