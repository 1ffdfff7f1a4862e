"""When a run was started and ended, with what and where, and its last signs of life."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core import __version__
from slime_core.arguments.derived import derived
from slime_core.display import told
from slime_core.runtime.hardware import visible_hardware
from slime_core.secrets import masked
from slime_core.yaml_text import from_yaml
from slime_report.recording import EVENTS, FOLDER, SIGNS

if TYPE_CHECKING:
    from slime_core.arguments import RunArguments

PACKAGES = ("torch", "transformers", "ray", "sglang", "megatron-core", "transformer-engine", "tokenizers", "numpy")
_SIGN_EVERY_S = 1.0
_TEXT = 4000
"""Characters of an error's message that are kept."""
_signed: dict[Path, float] = {}


def note_start(run_dir: Path, behind: int | None) -> None:
    """Write down that the run was started here and now.

    Args:
        behind: the last rollout that it has behind it; None of a new run.
    """
    _append(
        run_dir,
        {
            "event": "start",
            "at": round(time.time(), 3),
            "command": _command(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "resume_after": behind,
            "seen_before": _last_sign(run_dir),
            "versions": _versions(),
            "hardware": _hardware(),
        },
    )


def note_end(args: RunArguments, error: BaseException | None) -> None:
    """Write down that the run has ended, and what ended it."""
    what = None if error is None else {"type": type(error).__name__, "text": told(str(error))[:_TEXT]}
    _append(Path(derived(args.run_dir)), {"event": "end", "at": round(time.time(), 3), "error": what})


def sign(args: RunArguments, what: str, rollout_id: int) -> None:
    """Leave a sign that something has just happened: a small file that is written at most once a second. The first training rank
    alone leaves signs of training."""
    if os.environ.get("RANK", "0") != "0":
        return
    path = Path(derived(args.run_dir)) / FOLDER / SIGNS / what
    now = time.monotonic()
    if now - _signed.get(path, -_SIGN_EVERY_S) < _SIGN_EVERY_S:
        return
    _signed[path] = now
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{rollout_id}\n", encoding="utf-8")


def _append(run_dir: Path, event: dict[str, Any]) -> None:
    path = run_dir / FOLDER / EVENTS
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_short = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("ab") as file:
        file.write(b"\n" * cut_short + json.dumps(event).encode() + b"\n")


def _command() -> str:
    """The command line, where this process is the command `slime`."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    return masked(shlex.join(["slime", *sys.argv[1:]])) if program in ("slime", "__main__.py") else ""


def resume_after(run_dir: Path) -> int | None:
    """The last rollout that a resumed run has behind it, as its configuration says; None in a new one."""
    path = run_dir / "config.yaml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    last = [line for line in lines if line.startswith("resume_after:")]
    found = from_yaml(last[-1])["resume_after"] if last else None
    return found if isinstance(found, int) else None


def _last_sign(run_dir: Path) -> float | None:
    """When an earlier start of this run gave its last sign of life, which is all that is known of one that was killed."""
    signs = [path.stat().st_mtime for path in (run_dir / FOLDER / SIGNS).glob("*")]
    return round(max(signs), 3) if signs else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "slime-core": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {_cpu()}".removesuffix(", "),
        "memory": f"{memory:.0f} GiB",
    }
    gpu = visible_hardware()
    if gpu.name != "CPU":
        found["gpu"] = gpu.name
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
