"""What people start: the `slime` command, and pytest's `--slime-check`.

main.py          the command; its subcommands are components like everything else
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
