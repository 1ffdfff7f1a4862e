"""What a run needs that is not on this machine: such a run can be checked here, but for what is not there."""

from __future__ import annotations

from slime_core.errors import NotInstalled
from slime_core.run.looks.look import Look, Scene
from slime_core.runtime.layout import require_ray


def cluster(scene: Scene) -> None:
    """Ray is installed, if the run needs it."""
    try:
        require_ray(scene.args, scene.components.rollouts.engine)
    except NotInstalled as missing:
        scene.not_seen(f"{missing} Whether the cluster has room for the run was not looked at.")


LOOKS = (Look("cluster", "nothing", cluster),)
