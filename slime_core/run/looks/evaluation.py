"""The metric of early stopping. The evaluation sets themselves are looked at by the rollout functions, which know what they read of
them."""

from __future__ import annotations

from slime_core.arguments.groups.evaluation import eval_sets
from slime_core.errors import ArgumentError
from slime_core.run.best import keeps_best
from slime_core.run.looks.look import Look, Scene


def early_stopping(scene: Scene) -> None:
    """The metric that early stopping watches is one of a set that there is, and the best checkpoint has a folder."""
    args = scene.args
    if keeps_best(args) and not args.save:
        scene.error(
            "--early-stopping-keep best keeps the checkpoint of the best evaluation, and there is no folder for it. Give --save DIR."
        )
    metric = args.early_stopping_metric.removeprefix("-")
    if not args.early_stopping_patience or "/" not in metric or not args.eval_prompt_data:
        return
    try:
        names = [name for name, _ in eval_sets(args)]
    except ArgumentError:  # told already
        return
    if not any(metric.startswith(f"eval/{name}/") for name in names):
        scene.error(
            f"--early-stopping-metric is {args.early_stopping_metric!r}, which no evaluation measures: its name begins with "
            f"{' or '.join(f'eval/{name}/' for name in names)}."
        )


LOOKS = (Look("early stopping", "nothing", early_stopping),)
