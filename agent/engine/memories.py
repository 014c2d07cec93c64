"""Answers that a label may still come for, by request id: many, and each small."""

from collections import deque

from agent.engine.comparison import Outcome

MAX_REMEMBERED = 8192
"""Requests a label can still be given for."""

MAX_REMEMBERED_ROWS = 8 * MAX_REMEMBERED
"""Of all of them; a box that was found counts as one."""

MAX_CHUNK = 128
MAX_CHUNK_ROWS = 1024


class _Chunk:
    """Requests that came one after another. An outcome is made of what was classified with
    others, and forgotten with them, when somebody asks for it."""

    __slots__ = ("_classes", "_ids", "_places", "_tops", "first", "outcomes", "requests", "rows")

    def __init__(self, first: int) -> None:
        self.first = first
        """How many requests there were before it."""
        self.requests = 0
        self.rows = 0
        self.outcomes: dict[str, tuple[int, Outcome]] = {}
        """With the place of each in the chunk."""
        self._ids: tuple[str, ...] = ()
        self._places: dict[str, int] = {}
        """Of the ids; made when somebody looks for one."""
        self._classes: list[int] = []
        self._tops: list[float] = []

    def hold(self, ids: tuple[str, ...], classes: list[int], tops: list[float]) -> None:
        """Remember requests of one row each."""
        self._ids, self._classes, self._tops = ids, classes, tops
        self.requests = self.rows = len(ids)

    def find(self, id: str) -> tuple[int, Outcome] | None:
        """Return place and outcome of a request."""
        if self._ids:
            self._places = dict(zip(self._ids, range(len(self._ids)), strict=True))
            self._ids = ()
        place = self._places.get(id)
        if place is not None and id not in self.outcomes:
            outcome = Outcome(id, (self._classes[place],), [self._tops[place]])
            self.outcomes[id] = place, outcome
        return self.outcomes.get(id)


class Memories:
    """The last requests of a model."""

    def __init__(self) -> None:
        self._chunks: deque[_Chunk] = deque()
        self._requests = 0
        self._rows = 0

    def add(self, outcome: Outcome) -> None:
        """Remember one request."""
        chunk = self._chunks[-1] if self._chunks else None
        if chunk is None or chunk.requests >= MAX_CHUNK or chunk.rows >= MAX_CHUNK_ROWS:
            chunk = self._begin()
        chunk.outcomes[outcome.id] = chunk.requests, outcome
        chunk.requests += 1
        chunk.rows += outcome.weight
        self._grow(1, outcome.weight)

    def add_many(self, ids: tuple[str, ...], classes: list[int], tops: list[float]) -> None:
        """Remember requests of one row each."""
        chunk = self._begin()
        chunk.hold(ids, classes, tops)
        self._grow(len(ids), len(ids))

    def find(self, id: str) -> Outcome | None:
        """Return what became of the latest request of this id, None when it is forgotten."""
        for chunk in reversed(self._chunks):
            found = chunk.find(id)
            if found is not None:
                place, outcome = found
                kept = chunk.first + place >= self._requests - MAX_REMEMBERED
                return outcome if kept else None
        return None

    def _begin(self) -> _Chunk:
        chunk = _Chunk(self._requests)
        self._chunks.append(chunk)
        return chunk

    def _grow(self, requests: int, rows: int) -> None:
        self._requests += requests
        self._rows += rows
        while self._rows > MAX_REMEMBERED_ROWS or (
            self._chunks[0].first + self._chunks[0].requests <= self._requests - MAX_REMEMBERED
        ):
            self._rows -= self._chunks.popleft().rows
