"""Checks of converters, of data sources, and of how groups leave the buffer."""

from __future__ import annotations

import copy
import json
from typing import Any

from slime_core.contracts.data import Closes, CountsMalformedRows, DataSource, HasMetrics
from slime_core.contracts.results import is_finite_number
from slime_core.data import chat_messages, pop_first
from slime_core.errors import DataError
from slime_core.sample import Group, Sample
from slime_core.testing.inputs import FOREIGN_ROWS, Row, group, groups
from slime_core.testing.subject import Check, ContractError, Subject

# --------------------------------------------------------------------------------------------------------- converter


def converts_rows(subject: Subject[Row]) -> None:
    """turns rows into chat rows"""
    for row in _convertible(subject):
        made = subject.call(copy.deepcopy(row))
        subject.expect(
            "messages" in made, f"it returned {made!r}, which has no 'messages'; see slime_core.contracts.data.convert."
        )
        try:
            chat_messages(made["messages"])
            json.dumps(made)
        except (DataError, TypeError, ValueError) as error:
            raise ContractError(
                f"it made a row that is no chat row: {error}. Expected plain JSON data with messages like "
                '{"role": "user", "content": "…"}.'
            ) from error


def refuses_other_rows(subject: Subject[Row]) -> None:
    """refuses a row that does not fit with a DataError"""
    for row in ({}, {"no_such_column": 1}):
        try:
            made = subject.target(dict(row))
        except DataError:
            continue
        except Exception as error:
            raise ContractError(
                f"given {row!r} it raised {type(error).__name__}: {error}. Raise slime_core.errors.DataError with the "
                "reason, so that --on-error skip can leave the row out."
            ) from error
        raise ContractError(
            f"given {row!r} it returned {made!r}. Raise slime_core.errors.DataError for a row that lacks what you need."
        )


def leaves_rows_alone(subject: Subject[Row]) -> None:
    """does not change the rows"""
    rows = copy.deepcopy(_convertible(subject))
    with subject.unchanged("a row", lambda: copy.deepcopy(rows)):
        for row in rows:
            subject.call(row)


def _convertible(subject: Subject[Row]) -> list[Row]:
    """Return the rows to try: the examples, or those of the kit's own rows that the converter takes."""
    if subject.examples:
        return subject.examples
    rows = []
    for row in FOREIGN_ROWS:
        try:
            subject.target(copy.deepcopy(row))
        except Exception:  # a row of another format; how it is refused has a check of its own
            continue
        rows.append(row)
    subject.expect(
        bool(rows),
        f"it has no example row and takes none of the kit's. Give one: EXAMPLES = {{{subject.name!r}: [{{…}}]}} in "
        f"{subject.target.__module__}, or examples=[{{…}}] in check_component.",
    )
    return rows


# ------------------------------------------------------------------------------------------------------- data source


def hands_out_groups(subject: Subject[DataSource]) -> None:
    """hands out numbered groups, over several epochs"""
    source, size = _source(subject), subject.args.n_samples_per_prompt
    subject.expect(len(source) > 0, f"its length is {len(source)}; expected the number of prompts in one epoch.")
    count = min(2 * len(source) + 1, 50)
    taken = [g for n in (1, count - 1) for g in _take(subject, source, n)]
    for g in taken:
        subject.expect(
            isinstance(g, list) and all(isinstance(s, Sample) for s in g) and len(g) == size,
            f"it handed out {g!r:.80} as a group; expected a list of --n-samples-per-prompt = {size} Samples.",
        )
    numbers = [s.index for g in taken for s in g]
    subject.expect(
        None not in numbers and len(set(numbers)) == len(numbers),
        f"it numbered its samples {numbers[:8]}…; set `index` to a number that no other sample of the run has.",
    )
    group_numbers = [{s.group_index for s in g} for g in taken]
    subject.expect(
        all(len(n) == 1 for n in group_numbers) and len(set().union(*group_numbers)) == len(taken),
        "set `group_index` to one number per group, the same for all of its samples and for no other group.",
    )


def gives_buffered_groups_first(subject: Subject[DataSource]) -> None:
    """gives groups that were put back before new ones"""
    source = _source(subject)
    back = _take(subject, source, 2)
    source.add_samples(back[:1])
    again = _take(subject, source, 2)
    subject.expect(
        any(g[0].index == back[0][0].index for g in again),
        "a group given to add_samples did not come back with the next get_samples; hand out the buffer first.",
    )


def goes_on_from_its_state(subject: Subject[DataSource]) -> None:
    """goes on from its state as if never stopped, buffer included"""
    source = _source(subject)
    source.add_samples(_take(subject, source, 3)[:1])
    try:
        state = json.loads(json.dumps(source.state_dict()))
    except (TypeError, ValueError) as error:
        raise ContractError(
            f"state_dict is not plain JSON data: {error}. Use dicts, lists, texts and numbers; Sample.to_dict helps."
        ) from error
    resumed = _source(subject)
    resumed.load_state_dict(state)
    count = min(len(source) + 2, 50)
    expected, found = _plain(_take(subject, source, count)), _plain(_take(subject, resumed, count))
    different = next((n for n, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]), None)
    subject.expect(
        different is None,
        f"after load_state_dict(state_dict()) group {different} is another one than without stopping; the state must "
        "hold the position, the numbering, random states and the buffer.",
    )


def fingerprints_its_data(subject: Subject[DataSource]) -> None:
    """says what its data is, the same each time"""
    found = _source(subject).fingerprint()
    subject.expect(
        isinstance(found, dict) and all(isinstance(text, str) for pair in found.items() for text in pair),
        f"fingerprint returned {found!r}; expected {{file: digest}}, or {{}} if it reads no file.",
    )
    subject.expect(_source(subject).fingerprint() == found, "fingerprint differs between two sources of the same data.")


def reports_numbers(subject: Subject[DataSource]) -> None:
    """reports metrics and counts of what it left out in finite numbers, if it does"""
    source = _source(subject)
    _take(subject, source, 2)
    found: dict[str, object] = {}
    if isinstance(source, HasMetrics):
        found |= source.metrics()
    if isinstance(source, CountsMalformedRows):
        found |= source.counts
    for name, value in found.items():
        subject.expect(is_finite_number(value), f"its number {name!r} is {value!r}; expected a finite number.")


def closes(subject: Subject[DataSource]) -> None:
    """closes, after it handed out groups and before, if it holds something"""
    for count in (0, 2):
        source = _opened(subject)
        if isinstance(source, Closes):
            _take(subject, source, count) if count else []
            source.close()


def _source(subject: Subject[DataSource]) -> DataSource:
    """Return a new data source, which is closed after the check."""
    source = _opened(subject)
    if isinstance(source, Closes):
        subject.closing(source)
    return source


def _opened(subject: Subject[DataSource]) -> DataSource:
    return subject.call(subject.args, extras={"buffer_pop": pop_first})


def _take(subject: Subject[DataSource], source: DataSource, count: int) -> list[Group]:
    taken = source.get_samples(count)
    subject.expect(
        isinstance(taken, list) and len(taken) == count,
        f"get_samples({count}) returned {taken!r:.80}; expected a list of {count} groups, into the next epoch if need "
        "be.",
    )
    return taken


def _plain(taken: list[Group]) -> list[list[dict[str, Any]]]:
    return [[s.to_dict() for s in g] for g in taken]


# -------------------------------------------------------------------------------------------------------- buffer pop


def removes_what_it_returns(subject: Subject[list[Group]]) -> None:
    """removes from the buffer what it returns, and loses nothing"""
    for asked in (1, 3, 5, 8):
        for rollout_id in (None, 3):
            buffer = groups(5)
            before = {id(g): g for g in buffer}
            taken = subject.call(subject.args, rollout_id, buffer, asked)
            found = sorted([id(g) for g in taken] + [id(g) for g in buffer])
            subject.expect(
                found == sorted(before),
                f"asked for {asked} of 5 groups it returned {len(taken)} and left {len(buffer)}; every group must be "
                "in exactly one of the two: remove from `buffer`, in place, what you return, and nothing else.",
            )


def takes_no_more_than_asked(subject: Subject[list[Group]]) -> None:
    """returns at most as many groups as asked, none from an empty buffer"""
    for size, asked in ((5, 1), (5, 3), (1, 4), (0, 2)):
        buffer = [group(group_index=n) for n in range(size)]
        taken = subject.call(subject.args, None, buffer, asked)
        subject.expect(
            len(taken) <= min(size, asked),
            f"asked for {asked} groups of a buffer of {size} it returned {len(taken)}; return at most `num_samples`.",
        )


CONVERTER: list[Check] = [converts_rows, refuses_other_rows, leaves_rows_alone]
DATA_SOURCE: list[Check] = [
    hands_out_groups,
    gives_buffered_groups_first,
    goes_on_from_its_state,
    fingerprints_its_data,
    reports_numbers,
    closes,
]
BUFFER_POP: list[Check] = [removes_what_it_returns, takes_no_more_than_asked]
