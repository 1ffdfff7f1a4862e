"""`AbsentData`: stands for data that is not on this machine, where a run is only looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from slime_core.contracts.data import UNKNOWN_LENGTH
from slime_core.data.files import matching, parse_spec
from slime_core.errors import DataError
from slime_core.sample import Group, Sample


def absent_files(specs: Sequence[str]) -> list[str]:
    """Those of these paths and globs that name nothing on this machine."""
    absent = []
    for spec in specs:
        try:
            matching(parse_spec(spec)[0])
        except DataError:
            absent.append(spec)
    return absent


class AbsentData:
    """A data source that has no row and no length.

    Args:
        absent: the paths that are not here.
    """

    def __init__(self, absent: Sequence[str]) -> None:
        self.absent = list(absent)

    def __len__(self) -> int:
        return UNKNOWN_LENGTH

    def first_samples(self) -> Iterator[Sample | DataError]:
        """None."""
        return iter(())

    def get_samples(self, num_samples: int) -> list[Group]:
        """Raises `DataError`, as all that reads does."""
        self._refuse()

    def add_samples(self, groups: list[Group]) -> None:
        """See `get_samples`."""
        self._refuse()

    def state_dict(self) -> dict[str, Any]:
        """See `get_samples`."""
        self._refuse()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `get_samples`."""
        self._refuse()

    def fingerprint(self) -> dict[str, str]:
        """See `get_samples`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(f"{', '.join(self.absent)} is not on this machine.")
