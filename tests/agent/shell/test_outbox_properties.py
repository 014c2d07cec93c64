"""Whatever befalls an outbox: what was sealed has come in, or is owned up to, and nothing twice.

A device lives through an arbitrary row of events on a disk that may be full, be cut off power and
lose what nobody synced. Its controller hears some of the batches, twice or not at all.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.shell.outbox import Outbox
from tests.agent.shell.books import Books, event, health, window
from tests.operations import Create, DiskTap, Operation, Write
from tests.power_cut import LOSSES, Recording, write_contents

ROOM = 14_000
DAY_S = 86_400.0
ENDLESS = 10**9


class Disk(Recording):
    """A disk that records what is done to it, and may be full."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.capacity = ENDLESS

    def before(self, operation: Operation) -> None:
        used = sum(path.stat().st_size for path in self.root.iterdir())
        coming = len(operation.data) if isinstance(operation, Write) else 0
        if used + coming > self.capacity and isinstance(operation, (Write, Create)):
            raise OSError(28, "No space left on device")


class Life:
    """A device, its disk, and the books on both ends."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.books = Books()
        self.doubtful: set[int] = set()
        """Places in `books.sealed` of what a gap may have taken."""
        self.number = self.runs = self.ticks = self.jump = 0
        self.mono = 0.0
        self.disk = Disk(home / "0")
        self.disk.root.mkdir()
        self.tap = DiskTap(self.disk.root, self.disk)
        self.tap.__enter__()
        self.begin()

    def clock(self) -> int:
        self.ticks += 1
        return 10**10 + self.jump * 10**7 + self.ticks

    def begin(self) -> None:
        """Start as the agent does: what is owed first, then a report."""
        self.runs += 1
        started = self.clock()
        self.outbox = Outbox(
            self.disk.root, ROOM, 9 * DAY_S, started=started, mono=lambda: self.mono
        )  # fmt: skip
        assert self.outbox.last_seq() >= self.books.last_seen, "a number is given out twice"
        self.number = self.outbox.last_seq()
        since = self.outbox.owed_since
        if since is not None:
            ends = [each.end for each in self.books.sealed]
            first = ends.index(since) + 1 if since in ends else self.books.runs[since]
            self.doubtful |= set(range(first, len(ends)))
        self.books.begin(started)
        if since is not None:
            self.outbox.enqueue(event(self.next(), "gap", self.boot))
        self.outbox.enqueue(health(self.next(), self.boot))

    @property
    def boot(self) -> str:
        return f"boot-{self.runs}"

    def next(self) -> int:
        self.number += 1
        return self.number

    # ---- what may happen

    def seal(self, count: int) -> None:
        for turn in range(count):
            sealed = window(
                self.next(),
                self.boot,
                end=self.clock(),
                requests=1 + self.ticks % 97,
                version=1 + count % 2 * self.ticks,
            )
            self.books.seal(sealed)
            self.outbox.enqueue(sealed)
            if turn % 2:
                self.outbox.enqueue(health(self.next(), self.boot))

    def tell(self, _: int) -> None:
        self.outbox.enqueue(event(self.next(), "crash", self.boot))
        if self.outbox.untold and self.outbox.roomy:
            self.outbox.enqueue(event(self.next(), "dropped", self.boot, **self.outbox.untold))

    def send(self, luck: int) -> None:
        """Send; the batch may get lost, and so may the answer."""
        try:
            ahead = self.outbox.newest_health()
            outgoing = self.outbox.batch(1000)
        except OSError:
            return
        for each in (ahead, outgoing):
            if each is not None and luck:
                self.books.receive(each)
                self.books.receive(each)
        if luck > 1:
            self.outbox.forget(self.books.acked)

    def hear_late(self, back: int) -> None:
        """Hear an old acknowledgement once more."""
        self.outbox.forget(max(self.books.acked - back, 0))

    def restart(self, _: int) -> None:
        self.outbox.close()
        self.begin()

    def kill(self, _: int) -> None:
        self.begin()

    def cut(self, which: int) -> None:
        """Cut the power, and start from what that leaves of the disk."""
        left = self.disk.contents(len(self.disk.log), LOSSES[which % len(LOSSES)])
        self.tap.__exit__(None, None, None)
        self.disk = Disk(self.home / str(self.runs))
        write_contents(left, self.disk.root)
        self.tap = DiskTap(self.disk.root, self.disk)
        self.tap.__enter__()
        self.tap.find(left)
        self.begin()

    def fill(self, room: int) -> None:
        """Let others take the disk but for a little."""
        used = sum(path.stat().st_size for path in self.disk.root.iterdir())
        self.disk.capacity = used + room * 40

    def free(self, _: int) -> None:
        self.disk.capacity = ENDLESS

    def wait(self, hours: int) -> None:
        self.mono += hours * 3600

    def set_clock(self, jump: int) -> None:
        self.jump = jump - 50

    def end(self) -> None:
        """Drain it, have it tell what it owes, and compare."""
        self.free(0)
        self.books.drain(self.outbox)
        if self.outbox.untold:
            self.outbox.enqueue(event(self.next(), "dropped", self.boot, **self.outbox.untold))
        if self.outbox.owed_since is not None:
            self.outbox.enqueue(event(self.next(), "gap", self.boot))
        self.books.drain(self.outbox)

        assert self.outbox.untold == {}
        assert self.outbox.flash_bytes <= ROOM
        received, sealed = self.books.received, self.books.sealed
        doubtful = [
            sealed[place]
            for place in self.doubtful
            if (sealed[place].boot, sealed[place].seq) not in received
        ]
        most = sum(each.requests for each in doubtful) + self.books.told("requests_sent")
        assert 0 <= self.books.missing() <= most
        self.books.check_intervals()


STEPS: dict[str, Callable[[Life, int], None]] = {
    "seal": Life.seal, "tell": Life.tell, "send": Life.send, "hear late": Life.hear_late,
    "restart": Life.restart, "kill": Life.kill, "cut": Life.cut, "fill": Life.fill,
    "free": Life.free, "wait": Life.wait, "set clock": Life.set_clock,
}  # fmt: skip
NUMBERS = {"seal": (1, 30), "send": (0, 3), "cut": (0, 11), "wait": (1, 60), "set clock": (0, 99),
           "fill": (0, 100), "hear late": (0, 50)}  # fmt: skip
STEP = st.sampled_from([*STEPS, "seal", "seal", "seal", "send", "send", "send"]).flatmap(
    lambda name: st.tuples(st.just(name), st.integers(*NUMBERS.get(name, (0, 0))))
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=40))
def test_all_that_was_sealed_has_come_in_or_is_owned_up_to(
    steps: list[tuple[str, int]],
) -> None:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as home:
        life = Life(Path(home))
        try:
            for name, number in steps:
                STEPS[name](life, number)
            life.end()
        finally:
            life.tap.__exit__(None, None, None)
            logging.disable(logging.NOTSET)
