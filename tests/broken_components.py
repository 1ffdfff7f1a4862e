"""Components that break their contracts, at least one for every check of the kit: `BROKEN`.

An entry has the kind, the component (for a train backend or a precision recipe: a function that makes it), how the promise begins that it breaks, a
pattern of the advice, and words of a command line with which the check runs.
"""

from __future__ import annotations

from broken_data import BROKEN as DATA
from broken_engines import BROKEN as ENGINES
from broken_precision import BROKEN as PRECISION
from broken_rollouts import BROKEN as ROLLOUTS
from broken_training import BROKEN as TRAINING

BROKEN = [*DATA, *ROLLOUTS, *ENGINES, *PRECISION, *TRAINING]
