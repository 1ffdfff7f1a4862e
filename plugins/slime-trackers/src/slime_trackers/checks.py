"""What trackers see of a run before it starts: the package that they need. Named by the plugin
(`slime_core.contracts.checking`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slime_core.contracts.checking import Checking
from slime_core.run.looks.outputs import require_writable


def tensorboard(args: Any, checking: Checking) -> None:
    """The package tensorboard is installed."""
    _require("tensorboard", checking)


def wandb(args: Any, checking: Checking) -> None:
    """The package wandb is installed, and its folder can be written. The service is not asked."""
    _require("wandb", checking)
    if args.wandb_dir:
        with checking.noting():
            require_writable("--wandb-dir", Path(args.wandb_dir), set())
    if args.wandb_host and not args.wandb_host.startswith(("http://", "https://")):
        checking.error(f"--wandb-host is {args.wandb_host!r}; expected an address such as https://wandb.example.org.")


def mlflow(args: Any, checking: Checking) -> None:
    """The package mlflow is installed. The server is not asked."""
    _require("mlflow", checking)


def trackio(args: Any, checking: Checking) -> None:
    """The package trackio is installed."""
    _require("trackio", checking)


def swanlab(args: Any, checking: Checking) -> None:
    """The package swanlab is installed. The service is not asked."""
    _require("swanlab", checking)


def _require(package: str, checking: Checking) -> None:
    if find_spec(package) is None:
        checking.error(
            f"The tracker {package} needs the package {package}, which is not installed; install it with: "
            f"pip install slime-trackers[{package}]"
        )
