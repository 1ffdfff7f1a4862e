"""The samples in the state of a run: the buffer of its data source, groups in flight, a rollout that waits. They are stored beside
`state.json`, which has references to them (`slime_core.data.beside_json`). Called by `slime_core.run.saving`,
`slime_core.run.checkpoints` and `slime samples`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slime_core.data.beside_json import put_back, taken_out
from slime_core.data.sample_files import PackedSamples, SampleFile
from slime_core.errors import DataError
from slime_core.plain import plain
from slime_core.sample import Sample, stored_sample
from slime_core.start_up import collecting_seldom

SAMPLES = "samples.arrow"
"""The file beside `state.json`; not there where a state has no samples."""

_KIND = "sample"


def without_samples(state: dict[str, Any]) -> tuple[dict[str, Any], PackedSamples | None]:
    """Return a state as plain JSON data (see `slime_core.plain`), and its samples as they are now; None where it has none.

    Raises:
        DataError, SampleError: something in it is no data; says where.
    """
    samples: list[Sample] = []

    def take(value: Any) -> tuple[str, int] | None:
        if not isinstance(value, Sample):
            return None
        samples.append(value)
        return _KIND, len(samples) - 1

    made = taken_out(state, take)
    if not samples:
        return plain(state, "the state"), None
    return plain(made, "the state"), PackedSamples(samples).keep()


def with_samples(state: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the state with the samples of the file in the places of the references to them.

    Raises:
        DataError: the file is damaged, or has not the samples that the state refers to.
    """
    try:
        with collecting_seldom():
            samples = [stored.sample for stored in SampleFile(file).read()]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    made: dict[str, Any] = put_back(state, {_KIND: samples.__getitem__})
    return made


def groups_in(state: Any, where: str = "") -> Iterator[tuple[str, int, Sample]]:
    """Yield (where, group, sample) for every sample of a state, also where they stand as `Sample.to_dict` makes them.

    `where` names the list of groups that it stands in, `group` counts the groups of that.
    """
    if isinstance(state, dict):
        for name, value in state.items():
            yield from groups_in(value, _NAMES.get(str(name), str(name)))
    elif isinstance(state, list):
        for number, group in enumerate(state):
            for value in group if isinstance(group, list) else ():
                if isinstance(value, Sample) or _is_stored(value):
                    yield where, number, stored_sample(value)


_NAMES = {"buffer": "in the buffer", "in_flight": "in flight", "groups": "waiting to be trained"}


def _is_stored(value: Any) -> bool:
    return isinstance(value, dict) and {"tokens", "response_length", "status"} <= value.keys()
