"""`Mixture`: which data set the next prompt comes from, so that the shares are the weights.

Called by the data source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any


class Mixture:
    """Chooses among k sets without chance: after every n choices, set i was chosen n · wᵢ times, wᵢ being its share of
    the weights, give or take at most 1 - 1/(2k - 2).

    That bound is the best there is. The rule that keeps it: of the sets that lag behind their share by at least
    1/(2k - 2), take the one that would break the bound soonest (Tijdeman, "The chairman assignment problem", Discrete
    Mathematics 32, 1980). In whole numbers, so that it is the same on every machine and after any number of choices.

    Args:
        weights: positive numbers, one per set.

    Attributes:
        chosen: how often each set was chosen.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, not the nearest binary fraction
        unit = math.lcm(*(weight.denominator for weight in exact))
        self.chosen = [0] * len(exact)
        self._given = list(weights)
        self._weights = [int(weight * unit) for weight in exact]

    def next(self) -> int:
        """Choose the set that is next, and return its number."""
        k, total, turn = len(self.chosen), sum(self._weights), sum(self.chosen) + 1
        if k == 1:
            best = 0
        else:
            lags = [weight * turn - total * chosen for weight, chosen in zip(self._weights, self.chosen, strict=True)]
            # (1 - 1/(2k-2) - lag) / weight is the time left, here times 2k-2; at least one set always lags enough.
            may = [i for i in range(k) if lags[i] * (2 * k - 2) >= total]
            best = min(may, key=lambda i: Fraction((2 * k - 3) * total - (2 * k - 2) * lags[i], self._weights[i]))
        self.chosen[best] += 1
        return best

    def state_dict(self) -> dict[str, Any]:
        """Return weights and choices as plain data."""
        return {"weights": self._given, "chosen": list(self.chosen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken. With other weights than there, shares are counted from here."""
        self.chosen = list(state["chosen"]) if state["weights"] == self._given else [0] * len(self.chosen)
