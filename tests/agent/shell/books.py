"""A device's reports as a bookkeeper sees them: sealed, received, or told to be lost."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.shell.outbox import Outbox
from agent.shell.outbox.outbox import Outgoing
from wire.packing import unpack
from wire.telemetry import DeviceEvent, Health, Histogram, Item, ScoreWindow


def health(seq: int, boot: str = "b", at: int = 1) -> Health:
    return Health(
        device="pi-1", boot=boot, seq=seq, at=at, uptime_s=1, cpu_percent=1.0, load_1m=0.5,
        memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1,
        agent_cpu_percent=0.1, agent_rss_bytes=1,
    )  # fmt: skip


def window(
    seq: int, boot: str = "b", *, end: int = 0, requests: int = 0, version: int = 1
) -> ScoreWindow:
    end, requests = end or seq + 1, requests or seq
    return ScoreWindow(
        device="pi-1", boot=boot, seq=seq, model="digits", version=version,
        manifest="sha256:" + "0" * 64, variant="onnx-int8", start=end - 1, end=end,
        requests=requests, latency=Histogram(bins={300 + seq % 7: requests}),
        predicted={seq % 10: requests},
    )  # fmt: skip


def event(seq: int, kind: str = "crash", boot: str = "b", **counts: int) -> DeviceEvent:
    values = {"device": "pi-1", "boot": boot, "seq": seq, "at": 1, "kind": kind, "counts": counts}
    return DeviceEvent.model_validate(values)


@dataclass
class Books:
    """What was sealed on the device, and what a controller made of all that reached it."""

    sealed: list[ScoreWindow] = field(default_factory=list)
    received: dict[tuple[str, int], Item] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    """When each run began -> how many windows were sealed by then."""
    acked: int = 0
    last_seen: int = 0
    """The highest number that came in."""

    def begin(self, started: int) -> None:
        self.runs[started] = len(self.sealed)

    def seal(self, item: Item) -> Item:
        if isinstance(item, ScoreWindow):
            self.sealed.append(item)
        return item

    def receive(self, outgoing: Outgoing) -> None:
        """Take a batch in as a controller does: repeats are dropped by their key."""
        batch = unpack(outgoing.body)
        self.last_seen = max(self.last_seen, outgoing.last)
        for item in batch.items():
            self.received.setdefault((item.boot, item.seq), item)
        if batch.complete:
            self.acked = max(self.acked, outgoing.last)

    def drain(self, outbox: Outbox) -> None:
        """Take everything that is left."""
        while (outgoing := outbox.batch()) is not None:
            self.receive(outgoing)
            outbox.forget(outgoing.last)

    def requests_received(self) -> int:
        windows = (item for item in self.received.values() if isinstance(item, ScoreWindow))
        return sum(window.requests for window in windows)

    def events(self, kind: str) -> Iterable[DeviceEvent]:
        for item in self.received.values():
            if isinstance(item, DeviceEvent) and item.kind == kind:
                yield item

    def told(self, name: str) -> int:
        """Return what `dropped` events say of something."""
        return sum(event.counts.get(name, 0) for event in self.events("dropped"))

    def missing(self) -> int:
        """Return requests that neither came nor are told to be dropped."""
        sealed = sum(window.requests for window in self.sealed)
        return sealed - self.requests_received() - self.told("requests")

    def sealed_after(self, since: int) -> int:
        """Return requests lost of windows sealed after the one that ended then, or in that run."""
        ends = [window.end for window in self.sealed]
        place = ends.index(since) + 1 if since in ends else self.runs[since]
        later = [each for each in self.sealed[place:] if (each.boot, each.seq) not in self.received]
        return sum(window.requests for window in later)

    def unmerged(self) -> list[Item]:
        """Return what was sealed on the device as it was, but no merged windows."""
        boots = {window.boot for window in self.sealed}
        items = [item for item in self.received.values() if item.boot in boots]
        return [
            item if isinstance(item, DeviceEvent) else item.model_copy(update={"first": None})
            for item in items
            if not isinstance(item, ScoreWindow) or item.end == item.start + 1
        ]

    def check_intervals(self) -> None:
        """See that no number is stood for twice within a run."""
        last: dict[str, int] = {}
        for (boot, seq), item in sorted(self.received.items()):
            first = getattr(item, "first", None) or seq
            assert last.get(boot, 0) < first <= seq, f"{boot}: {first} to {seq} once more"
            last[boot] = seq
