"""The outbox over a recording of its disk, cut at every operation.

After every such cut an agent starts again, and a bookkeeper compares what was sealed with what
came in, what was dropped, and what may be lost in the gap.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.shell.outbox import Outbox
from tests.agent.shell.books import Books, event, health, window
from tests.operations import DiskTap, Sync, SyncNames
from tests.power_cut import LOSSES, Loss, Note, Recording, read_contents, write_contents
from wire.telemetry import Item

ROOM = 12_000
"""Some fifteen segments of two windows each."""

GAP_TOLD = 56
"""Number of what the third run queues first."""


def item_of(seq: int, boot: str) -> Item:
    """Return an event, a report or a window; late ones are of as many releases: never merged."""
    if seq == GAP_TOLD:
        return event(seq, "gap", boot)
    if seq % 11 == 0:
        return event(seq, boot=boot)
    return window(seq, boot, version=max(seq - 40, 1)) if seq % 2 else health(seq, boot)


def record_life(root: Path) -> Recording:
    """Seal, send, forget, merge and drop, over three runs that end well and badly."""
    recording = Recording()
    numbers = iter(range(1, 1000))

    def seal(outbox: Outbox, count: int, boot: str) -> None:
        for seq in [next(numbers) for _ in range(count)]:
            item = item_of(seq, boot)
            recording.note("sealed", item)
            outbox.enqueue(item)

    def begin(started: int) -> Outbox:
        recording.note("began", started)
        return Outbox(root, ROOM, started=started)

    def send(outbox: Outbox, upto: int = 1000) -> None:
        outgoing = outbox.batch()
        assert outgoing is not None
        recording.note("sent", outgoing)
        outbox.forget(min(outgoing.last, upto))

    with DiskTap(root, recording):
        root.mkdir()
        outbox = begin(10_000)
        recording.note("sealed", health(next(numbers)))
        outbox.enqueue(health(1))
        seal(outbox, 8, "one")
        send(outbox, upto=4)
        seal(outbox, 3, "one")
        outbox.close()
        outbox = begin(20_000)
        send(outbox)
        seal(outbox, 43, "two")
        assert outbox.merged > 5
        assert outbox.dropped == 0
        outbox = begin(30_000)
        seal(outbox, 51, "three")
        assert {"windows", "health"} <= outbox.untold.keys()
        send(outbox)
        outbox.close()
    return recording


def complaints(recording: Recording, home: Path, losses: Sequence[Loss] = LOSSES) -> Iterator[str]:
    for at, operation in enumerate([*recording.log, None]):
        if isinstance(operation, Note):
            continue
        loss = losses[at % len(losses)]
        name = f"cut {at}, before {str(operation)[:60]}, {loss}"
        root = home / str(at)
        write_contents(recording.contents(at, loss), root)
        books, seen = Books(), 0
        for note in recording.notes(at):
            if note.what == "began":
                books.begin(note.about)
            elif note.what == "sealed":
                books.seal(note.about)
            else:
                books.receive(note.about)
                seen = note.about.last
        with DiskTap(root, Recording()):  # nothing is cut here: no need to sync
            outbox = Outbox(root, ROOM, started=40_000)
            if outbox.last_seq() < seen:
                yield f"{name}: {outbox.last_seq()} is the last of {seen}"
            for text in settle(outbox, books):
                yield f"{name}: {text}"


def settle(outbox: Outbox, books: Books) -> Iterator[str]:
    """Take all that is left, and see that nothing is missing beside what is told."""
    since = outbox.owed_since
    books.drain(outbox)
    if outbox.untold:
        outbox.enqueue(event(outbox.last_seq() + 1, "dropped", "last", **outbox.untold))
    if since is not None:
        outbox.enqueue(event(outbox.last_seq() + 1, "gap", "last"))
    books.drain(outbox)
    lost = books.sealed_after(since) if since is not None else 0
    if outbox.owed_since is not None or outbox.untold:
        yield "what was told is still owed"
    if not 0 <= books.missing() - lost <= books.told("requests_sent"):
        yield f"{books.missing()} requests are missing, {lost} in the gap since {since}"
    for item in books.unmerged():
        if item != item_of(item.seq, item.boot):
            yield f"an item came back as {item}"
    try:
        books.check_intervals()
    except AssertionError as error:
        yield str(error)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root = tmp_path_factory.mktemp("reports") / "outbox"
    recording = record_life(root)

    assert recording.contents(len(recording.log)) == read_contents(root)
    return recording


def test_no_cut_costs_more_than_the_window_that_was_open(life: Recording, tmp_path: Path) -> None:
    assert list(complaints(life, tmp_path)) == []


@pytest.mark.parametrize("forgotten", [Sync, SyncNames], ids=["files", "directories"])
def test_an_outbox_that_forgets_to_sync_would_be_found_out(
    life: Recording, tmp_path: Path, forgotten: type
) -> None:
    wrong = complaints(life.without(forgotten), tmp_path)

    assert any("is the last of" in text for text in wrong)
