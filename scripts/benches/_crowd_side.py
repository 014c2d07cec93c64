"""Thousands of devices in one process: the wire and nothing behind it, one connection for each.

    python -m scripts.benches._crowd_side JSON

A device is what the controller sees of one: a clean session with subscriptions at QoS 0 and a last
will; status, report, a window of the model that apps ask and the health of its minute every
`every_s` (an agent says the first two only when they change); an order is
checked against its seal, fetched chunk by chunk as it is offered and checked, and answered with
the phases of the agent's deployment. What it serves, tries and counts is made up. Once a second a
line of JSON on standard output says how all of them fare. The password is in $BENCH_PASSWORD.
"""

import base64
import heapq
import json
import os
import random
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from agent.control import Window
from scripts.benches import _lean_mqtt as mqtt
from scripts.benches._minutes import Minutes
from wire.codec import Document, decode, encode
from wire.ids import digest_of
from wire.packing import pack
from wire.seal import Verifier
from wire.telemetry import Ack, Batch, Health, Histogram, ScoreWindow
from wire.topics import RULES, Kind, Topic, artifact_filter, build, device_filters, parse
from wire.transfer import HASH_BYTES, ChunkFrame, FetchRequest, Offer, chunk_hash
from wire.twin import (
    Capabilities,
    DeploymentReport,
    Desired,
    DesiredRelease,
    Finding,
    Phase,
    Reported,
    Serving,
    Status,
)

KEEPALIVE_S = 180
"""Every device speaks more often than that."""

AT_ONCE = 40
"""Connections that are being made."""

SOURCES = 24
"""Minutes drawn; devices send them in turn, each under its own name and number."""

DISAGREE = 0.06
"""Share of inputs on which releases that are equally good disagree."""

TRIAL_S = (0.3, 2.0)
RETRY_S = (1.0, 60.0)
HEARTBEAT_S = 1.0


class Device:
    """One device: its connection, what it serves, and what it is told."""

    def __init__(self, crowd: "Crowd", number: int, id: str) -> None:
        self.id = id
        self.crowd = crowd
        self.number = number
        self.socket: socket.socket | None = None
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.online = False
        self.revision = self.reports = self.seq = self.acked = 0
        self.serving: dict[str, Serving] = {}
        self.deployments: dict[str, DeploymentReport] = {}
        self.orders: dict[str, DesiredRelease] = {}
        self.fetch: Fetch | None = None
        self.queue: deque[DesiredRelease] = deque()
        """To be fetched: one release after the other."""

    # ---- the line

    def open(self) -> None:
        """Begin to connect."""
        self.inbox.clear()
        self.outbox.clear()
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(self.crowd.address)
        self.crowd.watch(self)
        will = build(Topic(Kind.STATUS, self.id)), encode(self._status(online=False))
        self.outbox += mqtt.connect(f"{self.id}-{self.crowd.boot}", will, self.crowd.login,
                                    KEEPALIVE_S)  # fmt: skip

    def publish(self, kind: Kind, body: bytes) -> None:
        """Send a message as its kind's rule says."""
        rule = RULES[kind]
        self.crowd.sent += 1
        id = self.reports % 65_535 + 1
        self.send(mqtt.publish(build(Topic(kind, self.id)), body, rule.qos, rule.retain, id))

    def say(self, kind: Kind, body: Document) -> None:
        """Publish a document."""
        self.publish(kind, encode(body))

    def send(self, data: bytes) -> None:
        """Write, or keep what the line does not take now."""
        if self.socket is None:
            return
        if not self.outbox:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                return  # the poll says so too
        if data:
            self.outbox += data
            self.crowd.watch(self)

    def on_writable(self) -> None:
        """Write what was kept."""
        assert self.socket is not None
        try:
            del self.outbox[: self.socket.send(self.outbox)]
        except BlockingIOError:
            return
        if not self.outbox:
            self.crowd.watch(self)

    def on_readable(self) -> bool:
        """Read all there is; False when the line is gone."""
        assert self.socket is not None
        try:
            while data := self.socket.recv(262_144):
                self.inbox += data
                if len(data) < 262_144:
                    break
            else:
                return False
        except BlockingIOError:
            pass
        for packet in mqtt.packets(self.inbox):
            if packet.kind == mqtt.CONNACK:
                self._connected()
            elif packet.kind == mqtt.PUBLISH:
                self.crowd.received += 1
                self._hear(packet.topic, packet.body)
        return True

    def lost(self) -> None:
        """The line is gone."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None
        self.online = False

    # ---- what it says

    def _connected(self) -> None:
        self.online = True
        self.crowd.opening -= 1
        filters = device_filters(self.id)
        if self.fetch is not None:
            filters.append(artifact_filter(self.fetch.offer.index))
        self.send(mqtt.subscribe(filters, 1))
        self.say(Kind.STATUS, self._status(online=True))
        self.report()

    def _status(self, *, online: bool) -> Status:
        return Status(
            device=self.id, online=online, nonce=self.crowd.boot, since=self.crowd.started
        )

    def minute(self) -> None:
        """Say what a minute brings: presence, twin, health, and scores of what it serves."""
        crowd, now = self.crowd, time.time()
        if self.online:
            self.say(Kind.STATUS, self._status(online=True))
            self.report()
            self.publish(Kind.BATCH, pack(self._batch(int(now))))
        crowd.later(crowd.every_s, self.minute)

    def _batch(self, now: int) -> Batch:
        crowd = self.crowd
        window, health = crowd.drawn[(self.number + self.seq) % len(crowd.drawn)]
        counts = {**window.counts, "latency": Histogram(bins=window.counts["latency"])}
        windows = []
        # Apps ask one model; the engine has no window of the others.
        for serving in [*self.serving.values()][:1]:
            self.seq += 1
            windows.append(
                ScoreWindow.model_validate(
                    {
                        **counts, "device": self.id, "boot": crowd.boot, "seq": self.seq,
                        "model": serving.model, "version": serving.version,
                        "manifest": serving.manifest, "variant": serving.variant,
                        "start": now - round(crowd.every_s), "end": now,
                    }
                )
            )  # fmt: skip
        self.seq += 1
        own = {"device": self.id, "boot": crowd.boot, "seq": self.seq, "at": now}
        fare = health.model_copy(update=own)
        return Batch(device=self.id, windows=tuple(windows), health=(fare,), complete=True)

    def report(self) -> None:
        """Say what runs."""
        self.reports += 1
        self.say(
            Kind.REPORTED,
            Reported(
                device=self.id,
                desired_revision=self.revision,
                agent="bench",
                boot=self.crowd.boot,
                sequence=self.reports,
                labels={"site": f"site-{self.number % 20}", "line": str(self.number % 3)},
                capabilities=self.crowd.able,
                serving=tuple(self.serving.values()),
                deployments=tuple(self.deployments.values()),
                api=("http://127.0.0.1:8080",),
            ),
        )

    # ---- what it hears

    def _hear(self, name: str, body: bytes) -> None:
        topic = parse(name)
        assert topic is not None
        match topic.kind:
            case Kind.ACK:
                self.acked = max(self.acked, decode(Ack, body).seq)
            case Kind.DESIRED:
                self._desired(self.crowd.verifier.open(Desired, body))
            case Kind.INDEX | Kind.DATA if self.fetch is not None:
                if topic.owner == self.fetch.offer.index:
                    self.fetch.hear(ChunkFrame.decode(body))

    def _desired(self, desired: Desired) -> None:
        if desired.revision > self.revision:
            self.revision = desired.revision
            for release in desired.releases:
                known = self.orders.get(release.model)
                if known is None or (known.rollout, known.purpose, known.manifest) != (
                    release.rollout, release.purpose, release.manifest,
                ):  # fmt: skip
                    self.orders[release.model] = release
                    self.crowd.note_told(release.rollout)
                    self._take_up(release)
        self.report()

    def _take_up(self, release: DesiredRelease) -> None:
        serving = self.serving.get(release.model)
        if serving is not None and serving.manifest == release.manifest:
            self._phase(release, Phase.COMMITTED, detail="already serving", quiet=True)
            return
        self._phase(release, Phase.PREFLIGHT, quiet=True)
        turn = release.manners.spread_s * self.crowd.draw.random()
        self.crowd.later(turn, lambda: self._fetch(release))

    def _fetch(self, release: DesiredRelease) -> None:
        self.queue.append(release)
        if self.fetch is None:
            self._next_fetch()

    def _next_fetch(self) -> None:
        self.fetch = None
        while self.queue and self.fetch is None:
            release = self.queue.popleft()
            if self._current(release):
                self._phase(release, Phase.FETCHING)
                self.fetch = Fetch(self, release)
                self.fetch.next()

    def fetched(self, release: DesiredRelease) -> None:
        """All files of a release are there."""
        self._phase(release, Phase.TRIAL)
        self.crowd.later(self.crowd.draw.uniform(*TRIAL_S), lambda: self._tried(release))
        self._next_fetch()

    def _tried(self, release: DesiredRelease) -> None:
        if not self._current(release):
            return
        policy = release.probation
        if policy.labelled_pairs == 0 or release.model not in self.serving:
            self._commit(release, None)
            return
        self._phase(release, Phase.PROBATION)
        half_s = self.crowd.labels_s / 2
        self.crowd.later(half_s, lambda: self._half_way(release))
        self.crowd.later(2 * half_s, lambda: self._judge(release))

    def _half_way(self, release: DesiredRelease) -> None:
        if self._current(release):
            pairs = release.probation.labelled_pairs // 2
            self._phase(release, Phase.PROBATION, labelled_pairs=pairs)

    def _judge(self, release: DesiredRelease) -> None:
        if not self._current(release):
            return
        draw, pairs = self.crowd.draw, release.probation.labelled_pairs
        differ = sum(draw.random() < DISAGREE for _ in range(pairs))
        worse = sum(draw.random() < 0.5 for _ in range(differ))
        self._commit(release, Finding(pairs=pairs, worse=worse, better=differ - worse))

    def _commit(self, release: DesiredRelease, finding: Finding | None) -> None:
        self.serving[release.model] = Serving(
            model=release.model, version=release.version, manifest=release.manifest,
            variant=self.crowd.variant, runtime="onnxruntime 1.32.0", since=int(time.time()),
        )  # fmt: skip
        found: dict[str, Any] = {}
        if finding is not None:
            found = {"labelled_pairs": finding.pairs, "worse": finding.worse,
                     "better": finding.better, "finding": finding}  # fmt: skip
        self.crowd.note_ended(release.rollout)
        self._phase(release, Phase.COMMITTED, **found)

    def _current(self, release: DesiredRelease) -> bool:
        return self.orders.get(release.model) is release

    def _phase(self, release: DesiredRelease, phase: Phase, *, quiet: bool = False,
               **more: Any) -> None:  # fmt: skip
        self.deployments[release.model] = DeploymentReport(
            model=release.model, version=release.version, rollout=release.rollout,
            purpose=release.purpose, manifest=release.manifest, phase=phase,
            since=int(time.time()), variant=self.crowd.variant, **more,
        )  # fmt: skip
        if not quiet:
            self.report()


class Fetch:
    """The files of one release on their way to one device; none is longer than a chunk."""

    def __init__(self, device: Device, release: DesiredRelease) -> None:
        self._device = device
        self._release = release
        # A delta needs the bytes that it rests on, and a lean device keeps none.
        files = {offer.file: offer for offer in release.offers if offer.encoding != "delta"}
        self._left = list(files.values())
        self.offer = self._left[-1]

    def next(self) -> None:
        """Begin with the next file."""
        self.offer = self._left.pop()
        if self.offer.part_chunks("data") != 1:
            raise ValueError(f"expected files of one chunk, got {self.offer.chunks}")
        self._index = b""
        self._device.send(mqtt.subscribe([artifact_filter(self.offer.index)], 2))
        self._ask(self.offer, "index", RETRY_S[0])

    def _ask(self, offer: Offer, part: str, wait_s: float) -> None:
        """Ask for what is missing, and again after a while."""
        missing = "data" if self._index else "index"
        if self.offer is not offer or self._device.fetch is not self or part != missing:
            return
        self._device.say(
            Kind.FETCH, FetchRequest.of(offer.index, "data" if self._index else "index", [0])
        )
        crowd = self._device.crowd
        spread = wait_s * crowd.draw.uniform(1.0, 1.5)
        crowd.later(spread, lambda: self._ask(offer, part, min(2 * wait_s, RETRY_S[1])))

    def hear(self, frame: ChunkFrame) -> None:
        """Take a frame, and go on."""
        if (
            frame.part == "index"
            and not self._index
            and digest_of(frame.payload) == self.offer.index
        ):
            self._index = frame.payload
            self._ask(self.offer, "data", RETRY_S[0])
        elif frame.part == "data" and chunk_hash(frame.payload) == self._index[:HASH_BYTES]:
            self._device.send(mqtt.unsubscribe([artifact_filter(self.offer.index)], 3))
            if self._left:
                self.next()
            else:
                self._device.fetched(self._release)


class Crowd:
    """All devices of this process, around one poll."""

    def __init__(self, options: dict[str, Any]) -> None:
        parts = urlsplit(options["url"])
        self.address = (parts.hostname or "127.0.0.1", parts.port or 1883)
        self.login = (options["user"], os.environ.get("BENCH_PASSWORD", ""))
        self.verifier = Verifier((base64.b64decode(options["key"]),))
        self.every_s: float = options["every_s"]
        self.labels_s: float = options["labels_s"]
        """How long until all labels of a probation are there."""
        self.variant: str = options["variant"]
        self.draw = random.Random(options["seed"])
        self.started = int(time.time())
        self.boot = f"b{options['seed']}-{self.started}"
        self.able = Capabilities(
            architecture="aarch64", python="3.11.9", runtimes={"onnxruntime": "1.32.0"},
            max_chunk_bytes=256 * 1024, memory_bytes=4 * 2**30, cpus=4,
        )  # fmt: skip
        source = Minutes()
        self.drawn: list[tuple[Window, Health]] = [
            source.minute(self.started - 60 * number) for number in range(SOURCES)
        ]
        self.devices = [
            Device(self, options["first"] + place, f"cam-{options['first'] + place:05}")
            for place in range(options["devices"])
        ]
        self.sent = self.received = self.lost = self.opening = 0
        self.told: dict[str, tuple[int, float]] = {}
        """Rollout -> how many devices heard of it, and when the last one did."""
        self.ended: Counter[str] = Counter()
        self._poll = select.epoll()
        self._by_fd: dict[int, Device] = {}
        self._masks: dict[int, int] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._to_open = deque(self.devices)

    def later(self, in_s: float, run: Callable[[], None]) -> None:
        """Run something in a while."""
        heapq.heappush(self._timers, (time.monotonic() + in_s, next(self._order), run))

    def note_told(self, rollout: str) -> None:
        """A device heard of a rollout for the first time."""
        self.told[rollout] = (self.told.get(rollout, (0, 0.0))[0] + 1, time.time())

    def note_ended(self, rollout: str) -> None:
        """A device is through with a rollout."""
        self.ended[rollout] += 1

    def watch(self, device: Device) -> None:
        """Poll a device's line for what it waits for."""
        assert device.socket is not None
        fd = device.socket.fileno()
        mask = select.EPOLLIN | (select.EPOLLOUT if device.outbox or not device.online else 0)
        if fd not in self._masks:
            self._by_fd[fd] = device
            self._poll.register(fd, mask)
        elif self._masks[fd] != mask:
            self._poll.modify(fd, mask)
        self._masks[fd] = mask

    def run(self) -> None:
        """Work until the parent has gone."""
        for device in self.devices:
            self.later(self.every_s * self.draw.random(), device.minute)
        self.later(0, self._tell)
        while True:
            while self._to_open and self.opening < AT_ONCE:
                self.opening += 1
                self._to_open.popleft().open()
            wait_s = max(0.0, min(self._timers[0][0] - time.monotonic(), HEARTBEAT_S))
            for fd, event in self._poll.poll(wait_s):
                self._serve(self._by_fd[fd], fd, event)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def _serve(self, device: Device, fd: int, event: int) -> None:
        alive = True
        try:
            if event & select.EPOLLOUT:
                if device.outbox:
                    device.on_writable()
                else:
                    self.watch(device)
            if event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                alive = device.on_readable()
        except ConnectionError:
            alive = False
        if not alive:
            self.lost += 1
            self.opening -= not device.online
            self._poll.unregister(fd)
            del self._by_fd[fd], self._masks[fd]
            device.lost()
            self.later(self.draw.uniform(1.0, 8.0), lambda: self._to_open.append(device))

    def _tell(self) -> None:
        waiting = sum(device.seq - device.acked > 4 for device in self.devices)
        said = {
            "online": sum(device.online for device in self.devices),
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "told": self.told,
            "ended": self.ended,
            "behind": waiting,
        }
        try:
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            sys.exit(0)
        self.later(HEARTBEAT_S, self._tell)


def main() -> None:
    """Be the devices until the process is ended, or its parent has gone."""
    Crowd(json.loads(sys.argv[1])).run()


if __name__ == "__main__":
    main()
