"""The checks of a plugin itself: its module, its options and its observers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial

from slime_core.plugins import PluginInfo, Plugins
from slime_core.testing.behaviour.observers import TOLD
from slime_core.testing.findings import Finding, run_all, verdict
from slime_core.testing.small_run import SmallRun

HEAVY = {
    "aiohttp",
    "jax",
    "math_verify",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "ray",
    "reasoning_gym",
    "sglang",
    "sympy",
    "tensorboard",
    "torch",
    "transformers",
    "vllm",
    "wandb",
}


def inspect_plugin(info: PluginInfo, plugins: Plugins, options: Sequence[str], time_limit: float) -> list[Finding]:
    """Return the findings on a plugin without its components: its module, its options, its observers."""
    from slime_core.arguments.namespace import Namespace

    part, loads = f"plugin {info.name}", "loads and implements known hooks"
    Namespace(plugins)  # sets a plugin aside whose options cannot be used
    if info.status != "loaded":
        why = f"{info.reason}\n{info.traceback}".strip() or f"it is {info.status}"
        return [Finding(part, loads, "failed", why)]
    found = [Finding(part, loads, "ok"), _light(part, info, time_limit)]
    groups = {i.label: made for i, made in plugins.provide("slime_argument_groups")}.get(info.label, [])
    for group in groups:
        lacking = [name for name, field in group.model_fields.items() if not field.description]
        lacking += [] if "__doc__" in vars(group) and group.__doc__ else [group.__name__]
        why = f"there is no help text for {', '.join(lacking)}; give every option and its group one." if lacking else ""
        found.append(verdict(part, f"documents the options of {group.__name__}", why))
    return found + _told(part, info, plugins, options, time_limit)


def _told(part: str, info: PluginInfo, plugins: Plugins, options: Sequence[str], time_limit: float) -> list[Finding]:
    """Call the plugin's observers once each, as a small run would, and return what came of it."""
    observed = [hook for hook in TOLD if hook in info.hooks]
    run = SmallRun(plugins, options)
    try:
        checks = [(f"takes {hook}", partial(_tell, run, info, hook)) for hook in observed]
        return run_all(part, checks, time_limit, f" See slime_core.hookspecs.{observed[0]}." if observed else "")
    finally:
        run.close()


def _tell(run: SmallRun, info: PluginInfo, hook: str) -> None:
    for observer, call in run.plugins.observers(hook):
        if observer is info:
            call(args=run.args, **TOLD[hook](run))


def _light(part: str, info: PluginInfo, time_limit: float) -> Finding:
    """Import the plugin's module in a fresh process, and return whether nothing heavy is imported with it."""
    module, promise = info.target.split(":")[0], "imports nothing heavy"
    code = f"import sys, importlib; importlib.import_module({module!r}); print(*({HEAVY!r} & set(sys.modules)))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=time_limit)
    except subprocess.TimeoutExpired:
        return Finding(part, promise, "failed", f"importing it alone did not come to an end within {time_limit:g} s.")
    if done.returncode:
        return Finding(part, promise, "failed", f"it does not import alone:\n{done.stderr.strip()}")
    if heavy := done.stdout.split():
        why = (
            f"{module} imports {', '.join(sorted(heavy))}, so that every `slime` command waits for it; name components "
            'with slime_core.Lazy("module:attribute"), and import option groups inside slime_argument_groups.'
        )
        return verdict(part, promise, why)
    return verdict(part, promise, "")
