"""Writes the tables of docs/from-slime.md from slime_core/arguments/from_slime.toml: `python scripts/generate_from_slime.py`. A
test fails when the page is not up to date.

The page begins with `INTRODUCTION`; what stands on it behind `BY_HAND` is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from slime_core.arguments.from_slime import Fate, fates
from slime_core.arguments.namespace import Namespace
from slime_core.cli.as_slime.report import shown
from slime_core.contracts.kinds import KINDS
from slime_core.plugins import Plugins
from slime_core.plugins.catalogue import FIRST_PARTY
from slime_core.plugins.discovery import discover

PAGE = Path(__file__).parent.parent / "docs" / "from-slime.md"
BY_HAND = "<!-- Written by hand from here on. -->"

INTRODUCTION = """
# Coming from slime

<!-- The tables are written by scripts/generate_from_slime.py from slime_core/arguments/from_slime.toml; do not edit them here. -->

Rewards, generators, filters and launch scripts of [slime](https://github.com/THUDM/slime) are meant to run here as they stand. This
page says how to bring them, and what becomes of every flag.

## Bring a launch script

<!-- run by tests/test_as_slime.py -->
```bash
slime check --as-slime run-qwen3-4B.sh --hf-checkpoint MODEL --prompt-data rows.jsonl --rollout-engine sglang
```

reads the script, without running anything of it, and answers in one call: every option, and what becomes of it; the defaults that
differ and that the script does not set; then what `slime check` says of the run with the options that are here. Options behind the
script win over its own, so paths and models can be replaced. Without a script, the words behind `--as-slime` are taken for what is
handed to `train.py`.

Arrays, variables, `source` and conditions are read as bash reads them. What only a running shell knows, such as the output of a
command or what a loop puts together, is named, and the option is left out. Variables of the environment count:
`BASE_FOLDER=/data slime check --as-slime …`.

`train.py` is `slime train`, `train_async.py` is `slime train-async`. Blocks of arguments can stand as they are:
`slime train "${CKPT_ARGS[@]}" "${ROLLOUT_ARGS[@]}" …`. There is no `ray job submit`: with more than one training rank a run
starts Ray itself, or joins a cluster ([From laptop to cluster](cluster.md)). An option that is not here is an error that says what to
do instead; nothing is ignored in silence.

## Bring a reward, a generator, a filter

Put the file where Python finds it (the current folder will do) and name it as slime does:

<!-- run by plugins/slime-compat/tests/test_hooks_of_slime.py -->
```bash
slime train … --custom-rm-path my_reward.score --custom-generate-function-path my_tool.generate \\
    --dynamic-sampling-filter-path my_filter.keep
```

* A **reward** is `async def score(args, sample)` and returns a number, or a dict of which `--reward-key` names one. With
  `--group-rm`, or where its second parameter is called `samples`, it is given whole groups and returns a list.
* A **generator** is `async def generate(args, sample, sampling_params)` and returns the sample with `tokens`, `response`,
  `response_length`, `loss_mask` (0 for what a tool wrote), `rollout_log_probs` and `status` set, or a list of samples, which
  are one [trajectory](rl.md#trajectories): they get one `rollout_id` where they have none, and count together as one.
* A **filter** is `def keep(args, samples, **kwargs)` and returns a truth value, or an object with `keep` and `reason`.

Files that import `slime` (`from slime.utils.types import Sample`, `GenerateState`, `post`, `async_rm`) run as they are with
`pip install slime-compat`: [Hook files of slime](slime-compat.md).

What to know of the others says [Functions written for slime](rl.md#functions-written-for-slime). `args` has every option under its flat
name; options of your own come from `--custom-config-path` or, checked and with `--help`, from [a plugin](write-a-plugin.md). All types
are in [Hooks and contracts](hooks.md).
""".strip()


def page() -> str:
    """The whole page."""
    plugins = Plugins([info for info in discover() if info.distribution in FIRST_PARTY])
    parts = [
        INTRODUCTION,
        "## Defaults that differ",
        "slime always generates with SGLang, trains with Megatron in bfloat16, and offloads with `--colocate`. Here each is asked for. "
        "Not in the table, because they are the same: `--eps-clip` 0.2, `--eps-clip-high` as `--eps-clip`, `--clip-grad` 1.0, `--lr` "
        "1e-6, Adam's 0.9, 0.999 and 1e-8, `--weight-decay` 0.01, no warm-up, linear decay to 0.",
        "\n".join(_defaults(Namespace(plugins))),
        "## Hooks",
        "Every option of slime that names a function or a class, and the contract that it keeps here.",
        "\n".join(_hooks()),
        "Names of slime's own functions stand for ours:",
        "\n".join(_aliases(plugins)),
        "## Every option of slime",
        "**same**: it is here and does what it does there. **different**: it is here, and something is not as there. **not needed**: "
        "leave it out, nothing is lost. **not here**: what it does there, and what to do here. Defaults are slime's. What the options "
        "of Megatron become is told [with the Megatron backend](megatron.md#every-option-of-a-launch-script), those of SGLang are "
        "`--sglang-…` as there.",
        "\n".join(_table(fates("slime").values())),
        "Of the options of Megatron and SGLang that slime's launch scripts give, these are no options here, or not quite the same:",
        "\n".join(
            _table(f for p in ("megatron", "other") for f in fates(p).values() if f.text and f.verdict != "same")
        ),
        BY_HAND,
    ]
    return "\n\n".join(parts) + _by_hand()


def _by_hand() -> str:
    """What people have written at the end of the page."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return old.partition(BY_HAND)[2] or "\n"


def _defaults(namespace: Namespace) -> Iterator[str]:
    yield "| option | slime | here | what it changes |"
    yield "|---|---|---|---|"
    for program in ("slime", "megatron", "other"):
        for fate in fates(program).values():
            if fate.why:
                only = fate.counts_with
                where = (
                    f", {'without' if only.startswith('!') else 'with'} `--{only.lstrip('!').replace('_', '-')}`"
                    if only
                    else ""
                )
                here = shown(namespace.options[fate.name].default)
                yield f"| `{fate.flag}` | {shown(fate.default)}{where} | {here} | {_cell(fate.why)} |"


def _hooks() -> Iterator[str]:
    contracts = {flag: kind for kind in KINDS.values() for flag in kind.options}
    yield "| option | contract | here |"
    yield "|---|---|---|"
    for fate in fates("slime").values():
        kind = contracts.get(fate.flag)
        if not fate.name.endswith("_path") or fate.name in (
            "megatron_config_path",
            "custom_config_path",
        ):  # these name files
            continue
        contract = f"[`{kind.name}`](hooks.md#{kind.hook})" if kind else ""
        yield f"| `{fate.flag}` | {contract} | {_told(fate)} |"


def _aliases(plugins: Plugins) -> Iterator[str]:
    yield "| slime's name | here |"
    yield "|---|---|"
    for component in sorted(plugins.all_components(), key=lambda c: (c.kind, c.name)):
        for alias in component.aliases:
            if "." in alias:
                yield f"| `{alias}` | {component.kind.replace('_', ' ')} `{component.name}` |"


def _table(chosen: Iterable[Fate]) -> Iterator[str]:
    yield "| option | default | here |"
    yield "|---|---|---|"
    for fate in chosen:
        default = "" if fate.default is None or fate.counts_with else shown(fate.default)
        yield f"| `{fate.flag}` | {default} | {_told(fate)} |"


def _told(fate: Fate) -> str:
    return f"**{fate.verdict}**" + (f": {_cell(fate.text)}" if fate.text else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
