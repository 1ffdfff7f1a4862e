"""`slime train` to the end of its first optimizer step, phase by phase: `python -m benchmarks.start_phases STARTED WORD…`, with the
words behind `slime`. Called by `benchmarks.start`.

Prints one JSON object: a phase → [seconds, seconds of processor time], in the order in which they end. STARTED is the `time.time()` at
which the process was started. The run is ended when the step is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

PHASES: dict[str, list[float]] = {}
_last = [0.0, 0.0]


def ended(phase: str) -> None:
    """Note what has passed since the end of the phase before."""
    now = [time.time(), time.process_time()]
    PHASES[phase] = [round(new - old, 3) for new, old in zip(now, _last, strict=True)]
    _last[:] = now


def between(module: Any, name: str, before: str, after: str) -> None:
    """Let phases end when a function is called, and when it returns."""
    original = getattr(module, name)

    def noting(*args: Any, **kwargs: Any) -> Any:
        ended(before)
        found = original(*args, **kwargs)
        ended(after)
        return found

    setattr(module, name, noting)


def main() -> None:
    _last[0] = float(sys.argv[1])
    import slime_core.cli.train as command
    import slime_core.run.plan as plan
    from slime_core.cli.command import main as slime

    ended("Python, and the command line's modules")
    between(plan, "choose_components", "plugins and options", "torch, and the components' modules")
    between(plan, "look_at", "data files opened", "looks: tokenizer, first rows, checks")
    changed: Any = command
    survey = changed.survey

    def with_backend(*args: Any, **kwargs: Any) -> Any:
        found = survey(*args, **kwargs)
        import slime_torch.backend as backend

        kind: Any = backend.TorchBackend
        setup, step = kind.setup, kind.train_step
        from transformers import LlamaForCausalLM  # noqa: F401  # what engine and trainer would import

        ended("transformers' model classes")

        def prepared(*args: Any, **kwargs: Any) -> None:
            ended("the run's folder, console and engine")
            between(backend, "load_model", "processes meet", "weights")
            between(backend, "prepare", "layers exchanged", "packed rows compared with the untouched model")
            setup(*args, **kwargs)
            ended("optimizer")

        def last(*args: Any, **kwargs: Any) -> None:
            ended("first rows")
            step(*args, **kwargs)
            ended("the step itself")
            print(json.dumps(PHASES), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

        kind.setup = prepared
        kind.train_step = last
        return found

    changed.survey = with_backend
    sys.exit(slime(sys.argv[2:]))


if __name__ == "__main__":
    main()
