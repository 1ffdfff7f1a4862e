"""`Storage`: where the keys and values of all requests are, and for how many there is room. `Joining`: the requests that join in one
step. The scheduler decides who runs, and asks both.

Nothing here computes: the rows of a request that joins are filled by the step's forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from slime_engine_local.cache import CachedSequence, KVCache, Row
from slime_engine_local.forward_pass import Chunk
from slime_engine_local.pages import PagedSequence, Pages
from slime_engine_local.prefixes import PrefixPlan, StoredPrefix, plan_prefix
from slime_engine_local.request import Request

ROOM_TO_GO_ON = 32
"""Every running request must have room for so many tokens before another one joins, so that it is not preempted at
once."""


class Storage:
    """The keys and values of all requests.

    Args:
        max_tokens: how many tokens are kept at most.

    Attributes:
        cache: the rows.
        prefixes: what requests that join may read or copy.
        pages: where the tokens of running requests are while they are decoded with fixed shapes; None: in rows.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.cache = KVCache()
        self.prefixes: list[StoredPrefix] = []
        self.pages: Pages | None = None

    def __len__(self) -> int:
        """How many tokens are stored."""
        return len(self.cache) + (len(self.pages) if self.pages is not None else 0)

    def lacks_room(self, running: Collection[Request]) -> bool:
        """Whether there is no room for one more token of every running request."""
        few = self.pages is not None and self.pages.free < len(running)
        return len(self) + len(running) > self.max_tokens or (few and self.free_pages(running) < 0)

    def free_pages(self, running: Iterable[Request]) -> int:
        """How many pages will be free when all running requests have one for their next token; below 0, if there are not enough."""
        if self.pages is None:
            return 0
        paged = (request.sequence for request in running)
        return self.pages.free - sum(self.pages.missing(one, 1) for one in paged if isinstance(one, PagedSequence))

    def grow(self, running: Iterable[Request]) -> None:
        """Make room for one more token in the rows of running requests."""
        for request in running:
            if not isinstance(request.cached, PagedSequence):
                self.cache.grow(request.cached.row, request.cached.row.length + 1)

    def computed(self) -> None:
        """What joined in a step has been computed: from now on it can be copied."""
        self.prefixes = [StoredPrefix(entry.tokens, entry.row, entry.shared, pending=False) for entry in self.prefixes]

    def move_to_pages(self, requests: Sequence[Request]) -> None:
        """Move what rows hold of these requests to pages. What they share stays in its row too."""
        assert self.pages is not None
        rows = {request.cached.row for request in requests}
        moved = self.pages.adopt([request.cached for request in requests], self.cache)
        for request, sequence in zip(requests, moved, strict=True):
            request.sequence = sequence
        self._forget(rows)

    def remove(self, request: Request) -> None:
        """Remove what is stored of a request, and its shared prefix if nobody else reads it."""
        sequence, request.sequence = request.cached, None
        gone = [sequence.row]
        if isinstance(sequence, PagedSequence) and self.pages is not None:
            self.pages.remove(sequence)
            gone = []
        if sequence.prefix:
            sequence.prefix.readers -= 1
            if not sequence.prefix.readers:
                gone.append(sequence.prefix)
                if self.pages is not None:
                    self.pages.forget(sequence.prefix)
        for row in gone:
            self.cache.remove(row)
        self._forget(gone)

    def _forget(self, rows: Collection[Row]) -> None:
        self.prefixes = [entry for entry in self.prefixes if entry.row not in rows]


class Joining:
    """The requests that join in one step.

    Args:
        storage: gets rows for them.
        running: the requests that run already.
        most: how many tokens may be computed for all that join; the first one may bring more.
    """

    def __init__(self, storage: Storage, running: Iterable[Request], most: int) -> None:
        self._storage, self._most = storage, most
        self._stored, self._new, self._free = len(storage), 0, storage.free_pages(running)
        self._shared: list[Chunk] = []
        self._own: list[tuple[Request, Chunk]] = []
        self._whole: list[tuple[Request, int]] = []  # nothing of them is computed beyond a prefix of this step
        self._ends: dict[Row | None, int] = {}

    def plan(self, request: Request, keys: Sequence[int], others: Iterable[Sequence[int]]) -> PrefixPlan:
        """How a request would get its first tokens.

        Args:
            keys: `request.keys()`.
            others: those of the requests that wait with it.
        """
        return plan_prefix(keys, self._storage.prefixes, others, request.shown.uncut)

    def has_room(self, plan: PrefixPlan, running: int) -> bool:
        """Whether a request of this plan can join, beside so many that run: the first one always can."""
        room = self._storage.max_tokens - self._stored - ROOM_TO_GO_ON * running
        pages = self._storage.pages
        if not running:
            return True
        if plan.added > room or (self._new and self._new + plan.added > self._most):
            return False
        return pages is None or pages.needed(plan.added) <= self._free

    def add(self, request: Request, keys: Sequence[int], plan: PrefixPlan) -> None:
        """Give a request its rows, and say what must be computed for it."""
        storage, shown = self._storage, request.shown
        tokens = [*request.prompt, *request.tokens]
        prefix = self._new_prefix(request, keys, plan) if plan.length and plan.row is None else plan.row
        if prefix:
            prefix.readers += 1
        rest = tokens[plan.length :]
        request.sequence = CachedSequence(storage.cache.add(len(rest) + 1), prefix, plan.length, shown.shift)
        if rest:
            self._own.append((request, Chunk(request.sequence, rest, shown.chunk(plan.length, len(tokens)))))
            if not plan.length:
                storage.prefixes.append(StoredPrefix(keys, request.sequence.row, shared=False, pending=True))
        else:
            self._whole.append((request, self._ends[prefix]))
        self._stored, self._new = self._stored + plan.added, self._new + plan.added - plan.copied
        self._free -= storage.pages.needed(plan.added) if storage.pages is not None else 0

    def _new_prefix(self, request: Request, keys: Sequence[int], plan: PrefixPlan) -> Row:
        """Make the row of a prefix that a request is the first to read."""
        cache = self._storage.cache
        prefix = cache.add(plan.length, shared=True)
        if plan.copy:
            cache.copy(plan.copy, prefix, plan.copied)
        self._ends[prefix] = len(self._shared)
        new = slice(plan.copied, plan.length)
        tokens, shown = [*request.prompt, *request.tokens][new], request.shown.chunk(plan.copied, plan.length)
        self._shared.append(Chunk(CachedSequence(prefix), tokens, shown))
        self._storage.prefixes.append(StoredPrefix(keys[: plan.length], prefix, shared=True, pending=True))
        return prefix

    def chunks(self) -> list[Chunk]:
        """What must be computed, in this order."""
        return [*self._shared, *(chunk for _, chunk in self._own)]

    def ends(self) -> dict[Request, int]:
        """The requests, each with the index of the chunk that ends with its last token."""
        own = ((request, number) for number, (request, _) in enumerate(self._own, len(self._shared)))
        return {**dict(self._whole), **dict(own)}
