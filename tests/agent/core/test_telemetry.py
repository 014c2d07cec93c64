"""What is queued for the controller, and when it goes out."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from agent.control import Window
from agent.core import actions as do
from agent.core import events as ev
from agent.core.state import AgentState, Instant, Journal, Settings
from agent.core.step import next_wake, step
from agent.core.telemetry import LAST_RESEND_S, LINGER_S, PAUSE_S
from tests.agent.core.world import CAPABLE, World, make_release
from wire.ids import digest_of
from wire.telemetry import DeviceEvent, Health, Item

SAMPLE = Health(
    device="pi-1", boot="one", seq=1, at=1, uptime_s=1, cpu_percent=1, load_1m=1,
    memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1, agent_cpu_percent=1,
    agent_rss_bytes=1,
)  # fmt: skip
WINDOW = Window("digits", 1, digest_of(b"release"), "onnx-int8", 60, 120, {"requests": 7})


class Device:
    """A core whose clock the test turns by hand."""

    def __init__(self, boot: str = "one", **booted: Any) -> None:
        self.now = Instant(1000.0, 1_790_000_000.0)
        self.items: list[Item] = []
        self.sends: list[tuple[float, bool]] = []
        """When, and whether the newest report was to go ahead."""
        settings = Settings("pi-1", boot, "test", int(self.now.wall))
        self.state = AgentState(settings)
        self.give(ev.Booted(Journal(), CAPABLE, frozenset(), **booted))

    def give(self, event: ev.Event) -> list[do.Action]:
        self.state, actions = step(self.state, event, self.now)
        for action in actions:
            if isinstance(action, do.Enqueue):
                self.items.append(action.item)
            elif isinstance(action, do.SendOutbox):
                self.sends.append((self.now.mono, action.ahead))
        return actions

    def minute(self) -> None:
        """Seal a window and, a little later, a report."""
        self.give(ev.ScoresCame(1, (WINDOW,), ()))
        self.wait(0.1)
        self.give(ev.HealthSampled(SAMPLE))

    def wait(self, seconds: float) -> None:
        """Let time pass, waking when the core wants to."""
        end = self.now.mono + seconds
        while self.now.mono < end:
            wake = min(max(next_wake(self.state, self.now), self.now.mono + 0.001), end)
            self.now = replace(
                self.now, mono=wake, wall=self.now.wall + wake - self.now.mono
            )  # fmt: skip
            self.give(ev.Ticked())

    def set_clock(self, seconds: float) -> None:
        self.now = replace(self.now, wall=self.now.wall + seconds)

    def events(self, kind: str) -> list[DeviceEvent]:
        return [i for i in self.items if isinstance(i, DeviceEvent) and i.kind == kind]


# ---- when


def test_a_window_and_the_health_of_its_minute_travel_together() -> None:
    device = Device()
    device.give(ev.Connected())
    device.wait(5)
    began = device.now.mono

    device.minute()
    device.wait(5)

    (sent,) = device.sends
    assert sent[0] == pytest.approx(began + LINGER_S, abs=0.01)
    assert [item.seq for item in device.items] == [1, 2]


def test_what_nobody_acknowledges_goes_again_ever_more_rarely() -> None:
    device = Device()
    device.give(ev.Connected())
    device.minute()

    device.wait(3000)

    times = [at for at, _ in device.sends]
    waits = [b - a for a, b in pairwise(times)]
    assert 15 <= waits[0] <= 25
    assert all(0.75 * LAST_RESEND_S <= wait <= 1.25 * LAST_RESEND_S for wait in waits[5:])
    assert len(times) < 16


def test_a_backlog_goes_batch_by_batch_each_a_while_after_the_last_was_acknowledged() -> None:
    device = Device(sequence=500, acked=0)
    device.give(ev.Connected())
    device.wait(2)
    for acked in (100, 200, 300):
        assert len(device.sends) == acked / 100, "no more than one is on its way"
        heard = device.now.mono
        actions = device.give(ev.AckCame(acked))
        device.wait(2)

        assert do.Forget(acked) in actions
        assert PAUSE_S[0] <= device.sends[-1][0] - heard <= PAUSE_S[1] + 0.01

    device.give(ev.AckCame(500))
    device.wait(30)
    assert len(device.sends) == 4


def test_devices_that_come_back_together_do_not_send_together() -> None:
    times = set()
    for number in range(20):
        device = Device(f"boot-{number}", sequence=5)
        device.give(ev.Connected())
        device.wait(2)
        times.add(round(device.sends[0][0], 2))

    assert len(times) > 15


def test_the_newest_report_overtakes_a_backlog_when_somebody_seems_to_listen() -> None:
    device = Device(sequence=500)
    device.give(ev.Connected())
    device.wait(30)
    device.give(ev.AckCame(100))
    device.wait(2)

    assert [ahead for _, ahead in device.sends] == [True, False, True]


def test_nothing_is_sent_while_the_broker_is_away() -> None:
    device = Device(sequence=5)
    device.minute()
    device.wait(300)

    assert device.sends == []


# ---- what


def test_an_unclean_end_is_told_before_anything_else() -> None:
    device = Device(sequence=7, gap_since=1_789_999_000)

    (gap,) = device.events("gap")
    assert (gap.seq, device.items[0]) == (8, gap)
    assert gap.counts == {"since": 1_789_999_000, "until": 1_790_000_000}
    assert Device(sequence=7).items == []


def test_what_was_dropped_is_told_with_the_figures() -> None:
    device = Device()

    device.give(ev.ReportsDropped({"windows": 3, "requests": 21}))

    (dropped,) = device.events("dropped")
    assert dropped.counts == {"windows": 3, "requests": 21}
    assert dropped.text == "no room in the outbox for 3 windows, 21 requests"


@pytest.mark.parametrize(
    ("seconds", "counts"), [(-3600.0, {"back_s": 3600}), (10.0**9, {"ahead_s": 10**9})]
)
def test_a_clock_that_is_set_is_told_and_counted(seconds: float, counts: dict[str, int]) -> None:
    device = Device()
    device.give(ev.HealthSampled(SAMPLE))

    device.set_clock(seconds)
    device.give(ev.HealthSampled(SAMPLE))
    device.give(ev.HealthSampled(SAMPLE))

    (told,) = device.events("clock")
    assert told.counts == counts
    reports = [item for item in device.items if isinstance(item, Health)]
    assert [report.clock_stepped_s for report in reports] == [0, abs(seconds), abs(seconds)]


def test_a_clock_that_is_slewed_is_not_told() -> None:
    device = Device()
    for _ in range(60):
        device.give(ev.HealthSampled(SAMPLE))
        device.wait(60)
        device.set_clock(0.3)

    assert device.events("clock") == []


def test_the_end_of_a_deployment_is_told() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1")
    world.settle()
    world.want(world.add(make_release(2, "worse")), "r-2")
    world.settle()

    told = [item for item in world.outbox if isinstance(item, DeviceEvent)]

    assert [(event.kind, event.model, event.version) for event in told] == [
        ("deployment", "digits", 1),
        ("deployment", "digits", 2),
    ]
    assert told[0].text.startswith("digits@1: committed")
    assert told[1].text.startswith("digits@2: rolled_back: worse_than_champion: ")


def test_crashes_are_told_and_a_loop_of_them_ever_more_rarely() -> None:
    world = World()
    world.want(world.add(make_release(1)), "r-1")
    world.settle()

    for _ in range(20):
        world.kill_engine(max(world.engines))
        world.settle(100)

    told = [i for i in world.outbox if isinstance(i, DeviceEvent) and i.kind == "crash"]
    assert [event.text.rpartition(" ")[2] for event in told] == ["1", "2", "3", "4", "8", "16"]
    assert {(event.model, event.version) for event in told} == {("digits", 1)}


def test_consent_that_is_withdrawn_is_told() -> None:
    device = Device()

    device.give(ev.ConsentWithdrawn("digits", "order-1", 12))

    (told,) = device.events("consent")
    assert (told.model, told.counts) == ("digits", {"deleted": 12})


def test_every_item_has_a_number_of_its_own() -> None:
    device = Device(sequence=7, gap_since=1)
    device.minute()
    device.set_clock(100)
    device.give(ev.ReportsDropped({"health": 1}))
    device.minute()

    assert [item.seq for item in device.items] == list(range(8, 8 + len(device.items)))
