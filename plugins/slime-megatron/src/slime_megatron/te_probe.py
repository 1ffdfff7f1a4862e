"""Whether Transformer Engine can be used here. `slime_megatron.refusals` asks when a run is planned, the backend before
megatron-core is imported. Imports nothing heavy.

megatron-core imports Transformer Engine wherever it is installed, and is ready for an ImportError alone. The package without
its CUDA libraries raises RuntimeError or OSError, and then megatron-core cannot be imported either. So it is tried in a process
of its own first.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions

from slime_core.errors import ArgumentError

TIMEOUT_S = 300

_PROGRAM = """
import json, traceback
found = {"error": None, "bearable": False, "cuda": False}
try:
    import transformer_engine.pytorch, torch
    found["cuda"] = torch.cuda.is_available()
except BaseException as error:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    kind = type(error).__name__
    found["error"] = lines[-1] if len(lines) == 1 else f"{kind}: {lines[-1].strip()}"
    found["bearable"] = isinstance(error, ImportError)
print("\\n" + json.dumps(found))
"""


@dataclass(frozen=True)
class Probe:
    """What came of importing Transformer Engine.

    Attributes:
        error: the last line of what went wrong; None: it works.
        bearable: megatron-core goes on without it.
        cuda: torch sees a CUDA device.
    """

    error: str | None = None
    bearable: bool = False
    cuda: bool = False


@cache
def probe() -> Probe:
    """Import Transformer Engine in a process of its own, once for this process. Where it is not installed none is started."""
    if importlib.util.find_spec("transformer_engine") is None:
        return Probe("it is not installed", bearable=True)
    words = [sys.executable, "-W", "ignore", "-c", _PROGRAM]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Probe(f"importing it has not ended after {TIMEOUT_S} s")
    if done.returncode:
        return Probe(": ".join([f"importing it ended Python {_how(done.returncode)}", *done.stderr.splitlines()[-1:]]))
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def refusal(transformer_impl: str | None) -> str | None:
    """Why a run cannot begin with the Transformer Engine that is installed, or is not; None: it can.

    Args:
        transformer_impl: as in `--transformer-impl`.
    """
    found, asked = probe(), transformer_impl == "transformer_engine"
    why = f"{(found.error or '').removesuffix('.')}."
    if asked and found.error:
        return (
            f"--transformer-impl transformer_engine: Transformer Engine cannot be imported: {why} Install it with what "
            "it needs for this torch and CUDA (pip install --no-build-isolation 'transformer-engine[pytorch]'), or leave the "
            f"option out.{'' if found.bearable else f' Without the option it has to be removed: {_removal()}'}"
        )
    if asked and not found.cuda:
        return (
            "--transformer-impl transformer_engine needs a CUDA device, and torch sees none. Leave the option out, or give "
            "--transformer-impl local."
        )
    if found.error and not found.bearable:
        return (
            "--train-backend megatron: Transformer Engine is installed without something that it needs, and megatron-core "
            f"cannot be imported then: {why} Remove it ({_removal()}), or install what it needs."
        )
    return None


def require_usable(transformer_impl: str | None) -> None:
    """Raise `ArgumentError` with what `refusal` says, if anything."""
    if why := refusal(transformer_impl):
        raise ArgumentError(why)


def _removal() -> str:
    names = {(one.name or "").lower().replace("_", "-") for one in distributions()}
    found = sorted(name for name in names if name.startswith("transformer-engine"))
    return f"pip uninstall {' '.join(found or ['transformer-engine'])}"


def _how(code: int) -> str:
    return f"with {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
