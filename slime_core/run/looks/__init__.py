"""What is looked at before a run starts: by `slime check`, which prints it, and by the run itself.

look.py        `Look`, and how all of them are taken
data.py        the tokenizer, the first row of every file, and the first dump
outputs.py     where the run writes, and whether its weights are kept
evaluation.py  the metric of early stopping
places.py      what is not installed on this machine
parts.py       what the chosen components say themselves

A look opens something once and says everything that it finds wrong; none needs another one to succeed. To add one, write it
beside these and name it in `LOOKS`. What only one component knows belongs to that component's own check
(`slime_core.contracts.checking`).
"""

from slime_core.run.looks import data, evaluation, outputs, parts, places
from slime_core.run.looks.look import Look, look_at

LOOKS = (*data.LOOKS, *evaluation.LOOKS, *outputs.LOOKS, *places.LOOKS, *parts.LOOKS)
"""In the order in which they are taken; what a look adds to `Checking`, such as the tokenizer, later ones read."""

__all__ = ["LOOKS", "Look", "look_at"]
