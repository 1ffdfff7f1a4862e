"""`RunFolder`: what stands in a run directory besides its metrics: configuration, starts and ends, the last signs of life."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slime_core.errors import ArgumentError
from slime_core.run.claims import claim_of, is_claimed
from slime_core.yaml_text import from_yaml
from slime_report.recording import EVENTS, FOLDER, SIGNS
from slime_report.report import Resumed, State

_STOPPED = ("KeyboardInterrupt", "Terminated")


@dataclass(frozen=True)
class Sign:
    """The last thing that is known to have happened: what, in which rollout (counted from 0), and when."""

    what: str
    rollout_id: int
    at: float


@dataclass(frozen=True)
class RunFolder:
    """A run directory.

    Attributes:
        arguments, provenance, components, plugins: as config.yaml has them; empty where it cannot be read.
        events: starts and ends, oldest first; none where the run did not record them.
        claimed: a process holds the folder now.
        claim: who held it and did not give it back; "" for nobody.
        sign: the newest; None where there is none.
        earlier: folders of earlier runs in this one.
    """

    path: Path
    arguments: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    resume_after: int | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    claimed: bool = False
    claim: str = ""
    sign: Sign | None = None
    earlier: list[str] = field(default_factory=list)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The starts among the events."""
        return [event for event in self.events if event.get("event") == "start"]

    @property
    def error(self) -> dict[str, Any]:
        """What ended the run: "type" and "text"; empty where nothing is known, or it ended well."""
        last = self.events[-1] if self.events else {}
        error = last.get("error") if last.get("event") == "end" else None
        return error if isinstance(error, dict) else {}

    @property
    def total(self) -> int | None:
        """Rollouts that the run was asked for."""
        found = self.arguments.get("num_rollout")
        return found if isinstance(found, int) else None

    def state(self, trained: int) -> State:
        """How the run stands.

        Args:
            trained: rollouts that have been trained.
        """
        if self.claimed:
            return "running"
        if self.events and self.events[-1].get("event") == "end":
            if not self.error:
                return "finished"
            return "stopped" if self.error.get("type") in _STOPPED else "failed"
        if self.total is not None and trained >= self.total and not self.events:
            return "finished"
        return "crashed" if self.claim or self.events else "stopped"

    def resumed(self) -> list[Resumed]:
        """When the run went on from a checkpoint, as far as is known."""
        found = [
            Resumed(int(start["resume_after"]) + 1, iso(start.get("at")))
            for start in self.starts
            if isinstance(start.get("resume_after"), int)
        ]
        if not found and self.resume_after is not None:
            return [Resumed(self.resume_after + 1, "")]
        return found

    def seconds(self, first: float | None, last: float | None, now: float) -> float:
        """How long the run has worked, all of its starts together.

        Args:
            first, last: when the first and the last metrics were written.
            now: the time.
        """
        if not self.starts:
            return max(0.0, (last or 0.0) - (first or 0.0))
        total = 0.0
        for place, event in enumerate(self.events):
            if event.get("event") != "start":
                continue
            began = _at(event)
            following = self.events[place + 1] if place + 1 < len(self.events) else None
            if following is not None and following.get("event") == "end":
                ended = _at(following)
            elif following is not None:  # it was killed
                seen_before = following.get("seen_before")
                ended = float(seen_before) if isinstance(seen_before, (int, float)) else began
            else:
                seen = max(last or began, self.sign.at if self.sign else began)
                ended = now if self.claimed else seen
            total += max(0.0, ended - began)
        return total


def read_folder(path: Path) -> RunFolder:
    """Read a run directory.

    Raises:
        ArgumentError: it is none.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ArgumentError(f"{path} {what}; expected a run directory, the folder that --run-dir names.")
    if not any((path / name).exists() for name in ("metrics.jsonl", "config.yaml")):
        inside = sorted(p.parent.name for p in path.glob("*/metrics.jsonl"))
        hint = f" There are runs in it: {', '.join(inside[:8])}." if inside else ""
        raise ArgumentError(
            f"{path} is no run directory: it holds neither metrics.jsonl nor config.yaml.{hint} Give the folder that --run-dir names."
        )
    config = _config(path / "config.yaml")
    after = config.get("resume_after")
    return RunFolder(
        path,
        _table(config, "arguments"),
        _table(config, "provenance"),
        _table(config, "components"),
        _table(config, "plugins"),
        after if isinstance(after, int) else None,
        _events(path / FOLDER / EVENTS),
        is_claimed(path),
        claim_of(path),
        _newest_sign(path / FOLDER / SIGNS),
        sorted((p.parent.name for p in path.glob("earlier-*/metrics.jsonl")), key=lambda name: (len(name), name)),
    )


def iso(at: Any) -> str:
    """Seconds since 1970 as ISO 8601, with the time zone of this machine; "" for anything else."""
    if not isinstance(at, (int, float)):
        return ""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(at))


def _at(event: dict[str, Any]) -> float:
    at = event.get("at")
    return float(at) if isinstance(at, (int, float)) else 0.0


def _config(path: Path) -> dict[str, Any]:
    try:
        found = from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a kill cut it short
        if isinstance(event, dict) and event.get("event") in ("start", "end"):
            found.append(event)
    return found


def _newest_sign(folder: Path) -> Sign | None:
    found = []
    for path in folder.glob("*"):
        try:
            found.append(Sign(path.name, int(path.read_text(encoding="utf-8") or 0), path.stat().st_mtime))
        except (OSError, ValueError):
            continue
    return max(found, key=lambda sign: sign.at, default=None)
