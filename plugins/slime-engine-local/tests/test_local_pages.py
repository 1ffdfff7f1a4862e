"""Pages of keys and values: a request never takes more of them than it was said to need when it joined."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from slime_engine_local import pages
from slime_engine_local.request import Request
from slime_engine_local.sampling import SamplingParams
from slime_engine_local.storage import Joining, Storage

PARAMS = SamplingParams.parse({"max_new_tokens": 8}, frozenset())


def request(prompt: list[int]) -> Request:
    return Request(prompt, replace(PARAMS), 8, decode=lambda tokens: "", hold=lambda change: None)


def one_step(storage: Storage, new: list[Request], ends: list[Request]) -> tuple[int, int]:
    """Let requests join, of which some end with their first token. Return how many pages they took, and how many they might."""
    assert storage.pages is not None
    joining, before, promised = Joining(storage, [], 10**6), storage.pages.free, 0
    for number, one in enumerate(new):
        plan = joining.plan(one, one.keys(), [other.keys() for other in new[number + 1 :]])
        joining.add(one, one.keys(), plan)
        promised += storage.pages.needed(plan.added)
    for chunk in joining.chunks():
        chunk.sequence.row.length += len(chunk.tokens)
    storage.computed()
    for one in ends:
        storage.remove(one)
    storage.move_to_pages([one for one in new if one not in ends])
    return before - storage.pages.free, promised


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(pages, "PAGE", 8)
    found = Storage(10**6)
    found.pages = pages.Pages(20_000, 500, 512, torch.device("cpu"))
    return found


def test_whoever_makes_a_prefix_may_end_before_anybody_reads_all_of_it(storage: Storage) -> None:
    made, also, part = request([*range(200)]), request([*range(200)]), request([*range(20), 999])
    taken, promised = one_step(storage, [made, also, part], [made, also])
    assert taken <= promised
    taken, promised = one_step(storage, [request([*range(200), 7])], [])
    assert taken <= promised


@pytest.mark.parametrize("seed", range(3))
def test_no_request_takes_more_pages_than_it_was_said_to(seed: int, storage: Storage) -> None:
    assert storage.pages is not None
    draw, running = random.Random(seed), list[Request]()
    all_free = storage.pages.free
    for _ in range(150):
        new, ends = list[Request](), list[Request]()
        for _ in range(draw.randrange(1, 4)):
            shared = range(draw.choice([5, 16, 17, 40, 64, 130, 300]))
            group = [request([*shared, draw.randrange(2000, 2003)]) for _ in range(draw.choice([1, 1, 3]))]
            new += group
            ends += group if draw.random() < 0.5 else []
        taken, promised = one_step(storage, new, ends)
        assert taken <= promised
        running += [one for one in new if one not in ends]
        for one in draw.sample(running, draw.randrange(len(running) + 1)):
            running.remove(one)
            storage.remove(one)
    for one in running:
        storage.remove(one)
    assert storage.pages.free == all_free
