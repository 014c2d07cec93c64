"""Both ends together: what devices sealed is what the controller has, whatever lies between.

Real outboxes on a disk under the agent's real core, and the controller's real ingest and database,
on a made-up clock. Between them a line that loses, repeats and reorders; ends that are killed at
any moment; clocks that jump by years; a week without any line.
"""

import random
from pathlib import Path

import pytest

from agent.control import Window
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import step
from agent.shell.outbox import Outbox
from fleet.ingest import Ingest
from fleet.shell.telemetry import Telemetry
from tests.fleet.samples import sample_manifest
from wire.packing import unpack
from wire.telemetry import Health
from wire.twin import Capabilities

RELEASE = sample_manifest(1)
NOW = 1_790_000_000.0
WEEK_MIN = 7 * 24 * 60
YEAR_S = 365 * 86_400.0


class Device:
    """An agent without engine and link: what these would say comes from here."""

    def __init__(self, id: str, home: Path, rng: random.Random, outbox_bytes: int) -> None:
        self.id = id
        self.rng = rng
        self.sealed: dict[str, int] = {"requests": 0, "labelled": 0, "correct": 0}
        self.online = False
        self.sent: list[bytes] = []
        self._home = home
        self._bytes = outbox_bytes
        self._runs = 0
        self._mono = 1000.0
        self._offset = NOW
        """Of the wall clock, which may be set."""
        self._begin()

    def _begin(self) -> None:
        self._runs += 1
        self.outbox = Outbox(
            self._home, self._bytes, started=int(self._now().wall), mono=lambda: self._mono
        )
        settings = Settings(
            self.id, f"boot-{self._runs}", "test", int(self._now().wall), health_s=1e12
        )
        self._state = AgentState(settings)
        sequence, acked = self.outbox.last_seq(), self.outbox.acked
        gap = self.outbox.owed_since
        self._give(ev.Booted(Journal(), Capabilities(), frozenset(), sequence, acked, gap))
        if self.online:
            self._give(ev.Connected())

    def _now(self) -> Instant:
        return Instant(self._mono, self._offset + self._mono)

    def _give(self, event: ev.Event) -> None:
        self._state, actions = step(self._state, event, self._now())
        for action in actions:
            match action:
                case do.Enqueue(item):
                    self.outbox.enqueue(item)
                case do.Forget(seq):
                    self.outbox.forget(seq)
                case do.SendOutbox(ahead):
                    newest = self.outbox.newest_health() if ahead else None
                    for outgoing in (newest, self.outbox.batch()):
                        if outgoing is not None:
                            self.sent.append(outgoing.body)

    # ---- what may happen

    def connect(self) -> None:
        if not self.online:
            self.online = True
            self._give(ev.Connected())

    def disconnect(self) -> None:
        if self.online:
            self.online = False
            self.sent.clear()
            self._give(ev.Disconnected())

    def minute(self, minutes: int = 1) -> None:
        """Seal a window, and report on health."""
        self.tick(60 * minutes)
        now, rng = int(self._now().wall), self.rng
        requests = rng.randint(1, 1000)
        labelled = rng.randint(0, requests)
        counts = {
            "requests": requests,
            "latency": {200 + rng.randrange(40): requests},
            "predicted": {rng.randrange(10): requests},
            "labelled": labelled,
            "correct": rng.randint(0, labelled),
        }
        for name in self.sealed:
            self.sealed[name] += counts[name]
        variant = RELEASE.variants[0].name
        window = Window(
            RELEASE.model, RELEASE.version, RELEASE.digest, variant, now - 60 * minutes, now, counts
        )
        self._give(ev.ScoresCame(1, (window,), ()))
        if self.outbox.untold and self.outbox.roomy:
            self._give(ev.ReportsDropped(self.outbox.untold))
        self._give(ev.HealthSampled(self._health(now)))
        self.tick(1)

    def tick(self, seconds: float) -> None:
        self._mono += seconds
        self._give(ev.Ticked())

    def kill(self) -> None:
        """End at once: nothing is closed, and no word is said."""
        self.sent.clear()
        self._begin()

    def restart(self) -> None:
        self.outbox.close()
        self.kill()

    def set_clock(self, years: float) -> None:
        self._offset = NOW + years * YEAR_S

    def hear(self, acked: int) -> None:
        if self.online:
            self._give(ev.AckCame(acked))

    def _health(self, now: int) -> Health:
        return Health(
            device=self.id, boot="", seq=1, at=now, uptime_s=1, cpu_percent=1, load_1m=1,
            memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1,
            agent_cpu_percent=1, agent_rss_bytes=1,
        ).model_copy(update={"boot": f"boot-{self._runs}"})  # fmt: skip


class Controller:
    """The controller's side, which may be killed at any moment."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.now = NOW
        self._begin()

    def _begin(self) -> None:
        self.telemetry = Telemetry(self._path, lambda device: {"site": device[-1]})
        self.ingest = Ingest(self.telemetry, lambda window: window.manifest == RELEASE.digest)

    def take(self, body: bytes) -> None:
        self.ingest.take(unpack(body), body, self.now)

    def commit(self) -> dict[str, int]:
        return self.ingest.commit()

    def kill(self) -> None:
        self.telemetry.close()
        self._begin()

    def sums(self, device: str) -> dict[str, int]:
        totals = self.telemetry.totals(device)
        return {
            name: sum(getattr(each, name) for each in totals)
            for name in ("requests", "labelled", "correct")
        }

    def dropped(self, device: str, name: str) -> int:
        """Return how many of something a device told to have dropped."""
        events = self.telemetry.events(device, kind="dropped", limit=10_000)
        return sum(row.event.counts.get(name, 0) for row in events)


class Line:
    """What is on its way from the devices to the controller, and back."""

    def __init__(self, rng: random.Random, devices: list[Device], controller: Controller) -> None:
        self._rng = rng
        self._devices = {device.id: device for device in devices}
        self._controller = controller
        self._bodies: list[bytes] = []

    def carry(self, *, faults: bool) -> None:
        """Bring something over: with faults some of it twice, late, or never."""
        rng = self._rng
        for device in self._devices.values():
            self._bodies += device.sent
            device.sent.clear()
        if faults:
            self._bodies += [each for each in self._bodies if rng.random() < 0.2]
            rng.shuffle(self._bodies)
            held = [each for each in self._bodies if rng.random() < 0.3][-50:]
        else:
            held = []
        for body in self._bodies:
            if not faults or rng.random() < 0.7:
                self._controller.take(body)
        self._bodies = held
        for device, acked in self._controller.commit().items():
            if not faults or rng.random() < 0.7:
                self._devices[device].hear(acked)

    def drain(self) -> None:
        """Let everything arrive."""
        for device in self._devices.values():
            device.connect()
        for _ in range(3000):
            self.carry(faults=False)
            if not any(device.outbox.waiting for device in self._devices.values()):
                return
            for device in self._devices.values():
                device.tick(2)
        raise AssertionError("it does not drain")


@pytest.mark.parametrize("seed", range(4))
def test_the_sums_of_both_ends_are_the_same_whatever_happens_between(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    devices = [Device(f"cam-{n}", tmp_path / f"cam-{n}", rng, 4 * 1024 * 1024) for n in range(3)]
    controller = Controller(tmp_path / "telemetry.db")
    line = Line(rng, devices, controller)

    for _ in range(400):
        controller.now += 30
        device = rng.choice(devices)
        match rng.randrange(14):
            case 0:
                device.disconnect()
            case 1 | 2:
                device.connect()
            case 3:
                device.kill()
            case 4:
                device.restart()
            case 5:
                controller.kill()
            case 6:
                device.set_clock(rng.choice([-50, -5, -1, 0, 0, 0, 1, 30]))
            case 7:
                controller.telemetry.merge(controller.now)
            case 8 | 9:
                device.tick(rng.choice([1, 30, 400]))
            case _:
                device.minute()
        line.carry(faults=True)
    line.drain()
    controller.telemetry.merge(controller.now)
    controller.kill()

    for device in devices:
        assert controller.sums(device.id) == device.sealed, device.id
        assert controller.ingest.ledger(device.id).missing == 0
        assert device.outbox.dropped == 0


@pytest.mark.parametrize(
    ("room", "minutes"), [(4_000_000, 2), (96_000, 6), (34_000, 20)], ids=["room", "little", "none"]
)
def test_a_week_without_a_line_costs_no_count_that_is_not_told(
    tmp_path: Path, room: int, minutes: int
) -> None:
    rng = random.Random(11)
    device = Device("cam-1", tmp_path / "cam-1", rng, room)
    controller = Controller(tmp_path / "telemetry.db")
    line = Line(rng, [device], controller)
    device.connect()
    for _ in range(3):
        device.minute()
        line.carry(faults=False)

    device.disconnect()
    windows = WEEK_MIN // minutes
    kills = {windows * place // 8 for place in (1, 3, 7)}
    if room < 50_000:  # windows of different runs are never merged
        kills = set(range(0, windows, 2))
    for number in range(windows):
        device.minute(minutes)
        if number in kills:
            device.kill()
        if number == windows // 2:
            device.set_clock(20)
    flash = device.outbox.flash_bytes
    controller.now += 7 * 86_400
    device.set_clock(0)
    line.drain()
    for _ in range(3):
        device.minute()
        line.drain()

    sums, dropped = controller.sums("cam-1"), controller.dropped("cam-1", "requests")
    missing = device.sealed["requests"] - sums["requests"] - dropped
    assert flash <= room
    # What was dropped after it was sent may have come in, and is told apart.
    assert 0 <= missing <= controller.dropped("cam-1", "requests_sent")
    if room > 50_000:
        assert sums == device.sealed, "merging makes room enough for a week"
        gaps = controller.telemetry.events("cam-1", kind="gap")
        assert len(gaps) == len(kills), "the window that was open is told of"
        assert len(controller.telemetry.events("cam-1", kind="clock")) >= 1
    else:
        assert dropped > 0
