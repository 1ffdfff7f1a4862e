"""Recipe files: YAML mappings of option names to values; one run, or several in turn.

    hf_checkpoint: model          # what all stages share
    stages:
      - {rollout_function_path: sft, save_hf: runs/sft, …}
      - {hf_checkpoint: runs/sft, …}

A stage's own options win over the shared ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slime_core.arguments.namespace import Namespace
from slime_core.errors import ArgumentError, did_you_mean


@dataclass(frozen=True)
class Stage:
    """One run of a recipe.

    Attributes:
        name: the file and, where there are several, the number of the stage: how messages speak of it.
        given: option names, as they stand in the file, to values.
        number: of the stage, from 1; None where there is only one run.
    """

    name: str
    given: dict[Any, Any]
    number: int | None = None

    def options(self, namespace: Namespace) -> dict[str, Any]:
        """Values by option name.

        Raises:
            ArgumentError: a key is no option.
        """
        values = {}
        namespace.admit(str(key).lstrip("-").replace("-", "_") for key in self.given)
        for key, value in self.given.items():
            name = str(key).lstrip("-").replace("-", "_")
            if name not in namespace.options:
                raise ArgumentError(
                    f"The recipe {self.name} sets {key!r}, which is no option."
                    f"{namespace.where_to_get(name) or did_you_mean(name, namespace.options)}"
                )
            # YAML reads 1e-6 as text; pydantic turns the text into the number the option wants.
            values[name] = [value] if namespace.options[name].is_list and isinstance(value, str) else value
        return values


def read_recipe(path: str) -> list[Stage]:
    """The runs of a recipe file, in their order.

    Raises:
        ArgumentError: the file cannot be read or is no mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"The recipe {path} cannot be read: {error.strerror}. Check the path.") from None
    except yaml.YAMLError as error:
        raise ArgumentError(f"The recipe {path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ArgumentError(f"The recipe {path} must be a YAML mapping of option names to values.")
    if "stages" not in data:
        return [Stage(path, data)]
    stages = data.pop("stages")
    if not (isinstance(stages, list) and stages and all(isinstance(stage, dict) for stage in stages)):
        raise ArgumentError(f"In the recipe {path}, stages must be a list of mappings of option names to values.")
    return [Stage(f"{path}, stage {n}", {**data, **stage}, n) for n, stage in enumerate(stages, start=1)]
