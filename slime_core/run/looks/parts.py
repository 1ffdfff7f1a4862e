"""What the chosen components say of the run themselves (`slime_core.contracts.checking`)."""

from __future__ import annotations

from typing import Any

from slime_core.plugins import Selected
from slime_core.run.looks.look import Look, Scene
from slime_core.run.served_precision import check_served_precision


def components(scene: Scene) -> None:
    """Every chosen component that has a check finds nothing wrong. Each is asked once."""
    asked: list[tuple[str, str]] = []
    scores = scene.components.rollouts.engine_use == "always"
    for _, component in scene.components.roles():
        chosen: Selected[Any] = component
        if (chosen.kind, chosen.name) not in asked:
            asked.append((chosen.kind, chosen.name))
            # A reward of evaluations alone scores other samples than those that are trained on.
            scene.ask(chosen, () if chosen.kind == "reward" and not scores else None)


def served(scene: Scene) -> None:
    """A quantised `--hf-checkpoint` can be served."""
    for remark in check_served_precision(scene.args, scene.components):
        scene.remark(remark)


LOOKS = (
    Look("components", "what each of them opens", components),
    Look("served precision", "the configuration of --hf-checkpoint", served),
)
