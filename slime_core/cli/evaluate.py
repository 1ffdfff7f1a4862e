"""`slime eval`: the evaluation of a run, on any model, without a run."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slime_core.arguments.command_line import run_parser
from slime_core.arguments.namespace import Namespace
from slime_core.arguments.recipe import read_recipe
from slime_core.arguments.resolve import shown_arguments
from slime_core.display import log_to_stderr, told
from slime_core.errors import ArgumentError, SlimeError, together
from slime_core.output import writing
from slime_core.plugins import Plugins
from slime_core.run.console import told_of_evaluation
from slime_core.run.evaluated_models import Options, Target, find_targets
from slime_core.run.model_evaluation import Evaluated, Source, evaluate
from slime_core.run.plan import Plan, survey
from slime_core.run.scores import Score
from slime_core.whole_file import write_whole

if TYPE_CHECKING:
    from rich.table import Table

WORDS = "MODEL [MODEL …] [RECIPE.yaml]"
HELP = """Evaluates models as training evaluates them: held-out loss, and answers with their rewards. A MODEL is a Hugging Face folder, a run
directory (its newest checkpoint), a folder of --save (all checkpoints), or an iter_N in it. The options of the first run that is named
are the defaults, so `slime eval RUN` alone repeats that run's evaluation. Of `slime eval` alone:

  --all-checkpoints   of run directories, evaluate every checkpoint
  --json FILE         write everything that was measured as JSON
  --run-dir DIR       write the generated answers into DIR/eval, one file for each model

All other options are those of `slime train`, of which these are of use here:
  --eval-prompt-data NAME FILE …, --eval-config FILE, --rm-type NAME, --n-samples-per-eval-prompt N, --eval-…
"""
_SHOWN = re.compile(r"(loss|reward(/.+)?|pass@\d+|truncated_ratio|response_len/mean)$")
_MOST_COLUMNS = 4


@dataclass(frozen=True)
class _Asked:
    models: list[str]
    recipe: str | None
    every: bool
    json: Path | None
    flags: list[str]


def main(argv: list[str], plugins: Plugins) -> int:
    """Run `slime eval …`. The status is 1 if a model could not be evaluated."""
    log_to_stderr()
    namespace = Namespace(plugins)
    if {"-h", "--help"} & set(argv):
        run_parser(namespace, "slime eval", HELP, WORDS).print_help()
        return 0
    asked = _read(argv)
    targets = find_targets(asked.models, asked.every)
    runs = [target.run for target in targets if target.run is not None]
    recipe = _recipe(asked.recipe, namespace) if asked.recipe else {}
    options = Options(plugins, namespace, asked.flags, recipe, runs[0] if runs else None)
    found: list[Evaluated] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="slime-eval-"))
        plans = _plans(targets, options, folder, plugins, stack)
        answers = Path(plans[0].args.run_dir or "") / "eval" if _is_given(plans[0]) else None
        for target, plan in zip(targets, plans, strict=True):
            for one in evaluate(plan, target.sources, _file_in(answers) if answers else None):
                _say(_in_a_line(one))
                found.append(one)
        _show(found)
        if asked.json is not None:
            with writing("The evaluation", asked.json):
                asked.json.parent.mkdir(parents=True, exist_ok=True)
                write_whole(asked.json, json.dumps(_as_data(found, plans, targets), indent=1) + "\n")
    return int(any(one.error for one in found))


def _read(argv: Sequence[str]) -> _Asked:
    """Take a command line apart: the models and a recipe in front, and among the flags those of this command alone."""
    words = list(argv)
    front: list[str] = []
    while words and not words[0].startswith("-"):
        front.append(words.pop(0))
    every, file, flags = False, None, list[str]()
    while words:
        word = words.pop(0)
        flag, has_value, value = word.partition("=")
        if flag == "--all-checkpoints" and not has_value:
            every = True
        elif flag == "--json":
            value = value or (words.pop(0) if words and not words[0].startswith("--") else "")
            if not value:
                raise ArgumentError("--json needs the file to write.")
            file = Path(value)
            if file.is_dir():
                raise ArgumentError(f"--json {file} is a folder; expected the file to write.")
        else:
            flags.append(word)
    recipes = [word for word in front if word.endswith((".yaml", ".yml"))]
    models = [word for word in front if word not in recipes]
    if not models:
        raise ArgumentError("Which model? Models come first, in front of all options. See slime eval --help.")
    if len(recipes) > 1:
        raise ArgumentError(f"Given {len(recipes)} recipes, {' and '.join(recipes)}; expected one at most.")
    return _Asked(models, recipes[0] if recipes else None, every, file, flags)


def _recipe(path: str, namespace: Namespace) -> dict[str, Any]:
    stages = read_recipe(path)
    if len(stages) > 1:
        raise ArgumentError(f"The recipe {path} has {len(stages)} stages; slime eval reads the options of one.")
    values, errors = stages[0].read(namespace)
    if errors:
        raise together(errors)
    return values


def _plans(targets: Sequence[Target], options: Options, folder: str, plugins: Plugins, stack: ExitStack) -> list[Plan]:
    """A plan for each target, all of them before the first model is loaded.

    Raises:
        SlimeError: everything that is wrong.
    """
    plans, errors = [], dict[str, SlimeError]()
    for target in targets:
        found = survey(options.of(target, folder), plugins, starts=True)
        errors |= {str(error): error for error in found.errors()}
        if found.plan is not None:
            stack.callback(found.plan.close)
            plans.append(found.plan)
            given = {word.split("=")[0] for word in options.flags if word.startswith("--")}
            notes = [note for note in found.plan.notes if note.split(" ")[0].rstrip(":") in given]
            for note in dict.fromkeys([*notes, *found.remarks()]):
                _say(f"note: {note}")
    if errors:  # those that another one does not say too
        raise together(
            [e for text, e in errors.items() if not any(text in other and text != other for other in errors)]
        )
    return plans


def _is_given(plan: Plan) -> bool:
    return plan.resolved.provenance["run_dir"].startswith(("command line", "environment"))


def _file_in(folder: Path) -> Any:
    return lambda source: folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', source.label).strip('-.')}.jsonl"


def _say(text: str) -> None:
    print(told(text), file=sys.stderr, flush=True)


def _in_a_line(one: Evaluated) -> str:
    """As training says it."""
    if one.error:
        return f"{one.source.label}: {one.error}"
    return f"evaluation of {one.source.label}: {'  '.join(told_of_evaluation(one.metrics))}"


# ---------------------------------------------------------------------------------------------------- the table


def _show(found: Sequence[Evaluated]) -> None:
    """Print the table: metrics below each other and models beside each other or, where there are many, the other way round."""
    from slime_core.cli.tables import show

    measured = [one for one in found if not one.error]
    if not measured:
        return
    show(table_of(measured))
    remarks = []
    if any(score.standard_error is not None for one in measured for score in one.scores.values()):
        remarks.append("in brackets: 95 % interval over the rows of the set")
    if len(measured) > 1 and any(_against(measured[0], one, name) for one in measured[1:] for name in one.scores):
        remarks.append(f"behind it: the difference from {measured[0].source.label} on the same rows")
    if remarks:
        print(told("; ".join(remarks)))


def table_of(found: Sequence[Evaluated]) -> Table:
    """The numbers of these models."""
    from rich.text import Text

    from slime_core.cli.tables import new_table

    names = list(
        dict.fromkeys(n.removeprefix("eval/") for one in found for n, v in one.metrics.items() if _is_shown(n, v))
    )
    counts = {name: _count(found, name) for name in names}
    cells = {
        name: [_cell(one, name, found[0] if number else None) for number, one in enumerate(found)] for name in names
    }
    labels = short([one.source.label for one in found])
    if len(found) <= _MOST_COLUMNS:
        table = new_table("metric", "n", *labels)
        for name in names:
            table.add_row(*map(Text, (name, counts[name], *cells[name])))
    else:
        table = new_table("model", *(f"{name}  n={counts[name]}" if counts[name] else name for name in names))
        for number, label in enumerate(labels):
            table.add_row(*map(Text, (label, *(cells[name][number] for name in names))))
    return table


def short(labels: Sequence[str]) -> list[str]:
    """Labels that are paths, each by as many of its last parts as tell it from the others."""
    parts = [Path(label).parts for label in labels]
    return [
        str(Path(*own[-count:]))
        for own in parts
        for count in [next(n for n in range(1, 99) if sum(other[-n:] == own[-n:] for other in parts) == 1)]
    ]


def _is_shown(name: str, value: float) -> bool:
    """Whether a metric has a place in the table: the scores, and what failed."""
    return bool(value) if "hooks/" in name else bool(_SHOWN.search(name))


def _count(found: Sequence[Evaluated], name: str) -> str:
    rows = sorted({one.scores[name].rows for one in found if name in one.scores})
    return " to ".join(str(number) for number in dict.fromkeys((rows[0], rows[-1]))) if rows else ""


def _cell(one: Evaluated, name: str, first: Evaluated | None) -> str:
    value = one.metrics.get(f"eval/{name}")
    if value is None:
        return "–"
    text = f"{value:.4f}"
    if (score := one.scores.get(name)) is not None and (interval := score.interval) is not None:
        text += f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    if first is not None and (between := _against(first, one, name)) is not None:
        text += f"  {between[0]:+.4f}" + (f" ± {between[1]:.4f}" if between[1] is not None else "")
    return text


def _against(first: Evaluated, one: Evaluated, name: str) -> tuple[float, float | None] | None:
    scores = first.scores.get(name), one.scores.get(name)
    return None if scores[0] is None or scores[1] is None else scores[1].difference(scores[0])


# ---------------------------------------------------------------------------------------------------- as JSON


def _as_data(found: Sequence[Evaluated], plans: Sequence[Plan], targets: Sequence[Target]) -> dict[str, Any]:
    return {"models": list(_models(found, plans, targets)), "plugins": plans[0].plugins.fingerprint()}


def _models(found: Sequence[Evaluated], plans: Sequence[Plan], targets: Sequence[Target]) -> Iterator[dict[str, Any]]:
    plan_of: dict[Source, Plan] = {s: plan for target, plan in zip(targets, plans, strict=True) for s in target.sources}
    for one in found:
        plan = plan_of[one.source]
        stored, provenance = shown_arguments(plan.args), plan.resolved.provenance
        yield {
            "model": one.source.label,
            "folder": str(one.source.folder),
            "error": one.error or None,
            "metrics": {name: value if math.isfinite(value) else None for name, value in one.metrics.items()},
            "scores": {name: _score(one, found[0], name, score) for name, score in one.scores.items()},
            "answers": one.answers,
            "arguments": {name: stored[name] for name, where in provenance.items() if where != "default"},
        }


def _score(one: Evaluated, first: Evaluated, name: str, score: Score) -> dict[str, Any]:
    between = None if one is first else _against(first, one, name)
    found: dict[str, Any] = {
        "value": score.value,
        "rows": score.rows,
        "standard_error": score.standard_error,
        "interval": score.interval,
    }
    if between is not None:
        found["difference"] = {"from": first.source.label, "value": between[0], "half_width": between[1]}
    return found
