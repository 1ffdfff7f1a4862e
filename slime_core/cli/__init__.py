"""What people start: the `slime` command, and pytest's `--slime-check`.

command.py       the command; its subcommands are components like everything else
switches.py      the options that every command understands
train.py         `slime train`, `slime train-async`, `slime check`
parity.py        the options of `slime check --parity`
look_options.py  the options of `slime check` that say for which machine
recipes.py       `slime recipes`
as_slime/        `slime check --as-slime`: what becomes of a launch script of slime
convert.py       `slime convert`
evaluate.py      `slime eval`
export.py        `slime export`
samples.py       `slime samples`
plugins.py       `slime plugins`
new.py           `slime plugins new`
check_plugin.py  `slime plugins check`
tables.py        tables on the terminal
pytest_plugin.py `pytest --slime-check`
"""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Run a `slime` command in this process, and return its exit status; see `slime_core.cli.command.main`.

    Args:
        argv: the words after `slime`; by default those of this process.
    """
    from slime_core.cli import command  # not where pytest loads its plugin from here

    return command.main(argv)
