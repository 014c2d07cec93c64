"""Alerts at work, over a real store: what is stored, told and done, and what a restart does."""

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fleet.core.alert_policy import Hook, Policy
from fleet.core.alert_rules import Scene
from fleet.core.alert_views import SilenceRequest
from fleet.core.alerts import Act, Alert, Outcome
from fleet.core.census import Device
from fleet.core.errors import FleetError
from fleet.core.views import EventView, Refusal
from fleet.shell.alerting import Alerting, Done, PolicyFile, Values
from fleet.shell.store import Store
from fleet.shell.telemetry import Telemetry
from fleet.upkeep import Figures
from wire.alert import Alerts
from wire.telemetry import Health

T = TypeVar("T")

NOW = 1_800_000_000.0
DISK = """
defaults = false
every = "1m"
[[rule]]
name = "disk"
kind = "disk"
below = 5
for = 0
"""
HOOK = """
actions = ["hook:clean"]
[[hook]]
name = "clean"
command = ["clean"]
"""


class Loud:
    """Outputs that remember what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.policies: list[Policy] = []
        self.now: list[str] = []
        self.closed = False
        self.done: Done = lambda *_: None

    def __call__(self, policy: Policy, done: Done) -> "Loud":
        self.done = done
        self.use(policy)
        return self

    def use(self, policy: Policy) -> None:
        self.policies.append(policy)

    def tell(self, alert: Alert) -> None:
        self.told.append((alert.subject.name, alert.state))

    def firing(self, alerts: Iterable[Alert]) -> None:
        self.now = [each.subject.name for each in alerts]

    def run(self, act: Act, hook: Hook, summary: dict[str, Any]) -> None:
        self.calls.append((act.id, hook.name, summary))

    def counts(self) -> list[tuple[str, str, int]]:
        return [("loud", "delivered", len(self.told))]

    def close(self) -> None:
        self.closed = True


class Controller:
    """A desk: one caller at a time, a real store, and a broker that may be away."""

    def __init__(self, data: Path, outputs: Loud | None = None) -> None:
        self.data = data
        self.store = Store(data / "fleet.db")
        self.telemetry = Telemetry(data / "telemetry.db")
        self.outputs = outputs or Loud()
        self.free: dict[str, float] = {}
        self.published: list[Alerts] = []
        self.connected = True
        self.acted: list[str] = []
        self.answer: Callable[[Act], tuple[Outcome, str]] = lambda act: ("done", "as told")
        self._lock = threading.RLock()
        file = PolicyFile(data / "alerts.toml", needed=False)
        figures = Figures(self.telemetry)
        self.alerts = Alerting(file, self, figures, self.outputs, self.store.alert_values)
        self.alerts.settle()

    def end(self) -> None:
        self.telemetry.close()
        self.store.close()

    def ask(self, run: Callable[[], T]) -> T:
        with self._lock:
            return run()

    def scene(self, known: frozenset[str]) -> Scene:
        return Scene(tuple(map(self._device, self.free)), {}, NOW - 86_400, known)

    def _device(self, id: str) -> Device:
        health = Health(
            device=id, boot="b", seq=1, at=int(NOW), uptime_s=1, cpu_percent=1, load_1m=1,
            memory_total_bytes=100, memory_available_bytes=50, agent_cpu_percent=1,
            agent_rss_bytes=1, disk_total_bytes=1000, disk_free_bytes=int(10 * self.free[id]),
        )  # fmt: skip
        far = NOW + 1e9
        return Device(id, health=health, agents=(("b", far, far),), last_seen=far, present_at=far)

    def keep(self, values: Values, events: Sequence[EventView]) -> None:
        self.store.save_alert_values(values, events)

    def publish(self, document: Alerts) -> bool:
        if self.connected:
            self.published.append(document)
        return self.connected

    def act(self, act: Act) -> tuple[Outcome, str]:
        self.acted.append(act.action)
        return self.answer(act)

    def look(self, minute: float = 0, **free: float) -> None:
        self.free.update({id.replace("_", "-"): share for id, share in free.items()})
        self.alerts.look_once(NOW + 60 * minute)

    def events(self) -> list[str]:
        return [f"{each.kind} {each.subject}: {each.text}" for each in self.store.events(100)][::-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterable[Callable[..., Controller]]:
    started: list[Controller] = []

    def begin(policy: str | None = None, outputs: Loud | None = None) -> Controller:
        if policy is not None:
            (tmp_path / "alerts.toml").write_text(policy)
        started.append(Controller(tmp_path, outputs))
        return started[-1]

    yield begin
    for each in started:
        each.end()


Start = Callable[..., Controller]


def test_an_alert_that_fires_is_an_event_a_retained_document_and_told_once(start: Start) -> None:
    fleet = start(DISK)

    for minute in range(3):
        fleet.look(minute, cam_1=1.0)

    text = "cam-1: 1.0% of the disk free, below 5"
    assert fleet.events() == [f"alert cam-1: a-1 disk fires (warning): {text}"]
    assert fleet.outputs.told == [("cam-1", "firing")]
    assert fleet.outputs.now == ["cam-1"]
    assert [[each.reason for each in doc.firing] for doc in fleet.published] == [[text]]


def test_its_end_is_told_and_the_document_is_empty_then(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)

    fleet.look(1, cam_1=50.0)

    assert fleet.outputs.told == [("cam-1", "firing"), ("cam-1", "resolved")]
    assert fleet.published[-1].firing == ()
    assert [each.state for each in fleet.alerts.views(resolved=True)] == ["resolved"]
    assert fleet.alerts.views(resolved=False) == []


def test_a_restart_goes_on_with_what_fires_and_tells_nobody_again(start: Start) -> None:
    start(DISK).look(0, cam_1=1.0)

    again = start()
    again.look(1, cam_1=1.0)
    (alert,) = again.alerts.views(resolved=False)

    assert (alert.id, alert.state, alert.began_at) == ("a-1", "firing", NOW)
    assert again.outputs.told == []
    assert len(again.events()) == 1
    # It is still published: the broker may have forgotten it.
    assert len(again.published[-1].firing) == 1


def test_numbers_go_on_after_a_restart(start: Start) -> None:
    start(DISK).look(0, cam_1=1.0)

    again = start()
    again.look(1, cam_1=1.0, cam_2=1.0)

    assert {each.id for each in again.alerts.views(resolved=False)} == {"a-1", "a-2"}


def test_what_is_published_follows_the_broker(start: Start) -> None:
    fleet = start(DISK)
    fleet.connected = False
    fleet.look(0, cam_1=1.0)
    assert fleet.published == []

    fleet.connected = True
    fleet.alerts.connected()
    fleet.look(1)

    assert len(fleet.published) == 1


def test_no_document_names_an_alert_where_the_policy_wants_none(start: Start) -> None:
    fleet = start("mqtt = false\n" + DISK)

    fleet.look(0, cam_1=1.0)

    assert all(each.firing == () for each in fleet.published)


ACTING = DISK.replace('"disk"\nbelow', '"disk"\nactions = ["command:ping"]\nbelow')


def test_an_action_is_done_and_its_outcome_is_kept_and_told(start: Start) -> None:
    fleet = start(ACTING)

    fleet.look(0, cam_1=1.0)
    fleet.look(1, cam_1=1.0)

    (act,) = fleet.alerts.view("a-1").actions
    assert fleet.acted == ["command:ping"]
    assert (act.outcome, act.detail) == ("done", "as told")
    assert fleet.events()[1].startswith("action cam-1: x-2 command:ping done: as told; alert a-1")


def test_an_action_that_makes_no_sense_is_refused_and_one_that_breaks_has_failed(
    start: Start,
) -> None:
    def refuse(act: Act) -> tuple[Outcome, str]:
        raise Refusal(409, "cam-1 is offline")

    def break_down(act: Act) -> tuple[Outcome, str]:
        raise OSError("no room")

    fleet = start(ACTING)
    fleet.answer = refuse
    fleet.look(0, cam_1=1.0)
    fleet.answer = break_down
    fleet.look(1, cam_2=1.0)

    (refused,), (failed,) = fleet.alerts.view("a-1").actions, fleet.alerts.view("a-3").actions
    assert (refused.outcome, refused.detail) == ("refused", "cam-1 is offline")
    assert (failed.outcome, failed.detail) == ("failed", "OSError: no room")


def test_a_hook_is_called_with_a_summary_and_says_later_what_came_of_it(start: Start) -> None:
    fleet = start(DISK + HOOK)

    fleet.look(0, cam_1=1.0)
    ((id, name, told),) = fleet.outputs.calls
    before = fleet.alerts.view("a-1").actions[0].outcome
    fleet.outputs.done(id, "done", "exit code 0")

    assert name == "clean"
    assert (told["alert"]["id"], told["device"], told["model"]) == ("a-1", "cam-1", None)
    assert before == "planned"
    assert fleet.alerts.view("a-1").actions[0].detail == "exit code 0"


def test_a_hook_under_way_when_the_controller_ends_is_lost_and_not_called_again(
    start: Start,
) -> None:
    start(DISK + HOOK).look(0, cam_1=1.0)

    again = start()
    again.look(1, cam_1=1.0)

    (act,) = again.alerts.view("a-1").actions
    assert act.outcome == "lost"
    assert again.outputs.calls == []
    assert "x-2 hook:clean lost: the controller ended meanwhile" in again.events()[-1]


def test_what_cannot_be_stored_is_neither_told_nor_done_until_it_can(start: Start) -> None:
    fleet = start(ACTING)
    keep, full = fleet.keep, OSError(28, "no room")

    def refuse(values: Values, events: Sequence[EventView]) -> None:
        raise full

    fleet.keep = refuse  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no room"):
        fleet.look(0, cam_1=1.0)
    meanwhile = (list(fleet.outputs.told), list(fleet.acted), fleet.alerts.views(resolved=True))
    fleet.keep = keep  # type: ignore[method-assign]
    fleet.look(1, cam_1=1.0)

    assert meanwhile == ([], [], [])
    assert fleet.outputs.told == [("cam-1", "firing")]
    assert fleet.acted == ["command:ping"]


def test_an_alert_that_goes_on_firing_writes_nothing_more(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)
    writes: list[object] = []
    fleet.keep = lambda values, events: writes.append(values)  # type: ignore[method-assign]

    for minute in range(1, 20):
        fleet.look(minute, cam_1=1.0 + minute / 10)

    assert writes == []


def test_a_file_that_changes_is_read_anew(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=10.0)

    (fleet.data / "alerts.toml").write_text(DISK.replace("below = 5", "below = 50"))
    fleet.look(1)

    assert [each.state for each in fleet.alerts.views(resolved=False)] == ["firing"]
    assert len(fleet.outputs.policies) == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rule]", "expected TOML"),
        (DISK.replace("below", "bellow"), "rule 'disk': bellow: no such key"),
        (DISK.replace('"disk"\nbelow', '"dusk"\nbelow'), "kind: expected one of accuracy"),
        ("x = 1", "no such key"),
    ],
)
def test_a_file_with_an_error_is_not_followed_and_the_error_is_shown(
    start: Start, text: str, complaint: str
) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)

    (fleet.data / "alerts.toml").write_text(text)
    fleet.look(1)
    shown = fleet.alerts.policy_view()
    (fleet.data / "alerts.toml").write_text(DISK + "\n")
    fleet.look(2)

    assert complaint in shown.error
    assert [each.name for each in shown.rules] == ["disk"]
    assert complaint in fleet.events()[1]
    assert fleet.alerts.policy_view().error == ""
    assert [each.state for each in fleet.alerts.views(resolved=False)] == ["firing"]


def test_a_file_that_is_gone_leaves_the_rules_as_they_were(start: Start) -> None:
    fleet = start(DISK)

    (fleet.data / "alerts.toml").unlink()
    fleet.look(0, cam_1=1.0)

    assert "No such file" in fleet.alerts.policy_view().error
    assert len(fleet.alerts.views(resolved=False)) == 1


def test_without_a_file_the_default_rules_hold_and_one_may_come_later(start: Start) -> None:
    fleet = start()
    fleet.look(0)
    before = fleet.alerts.policy_view()

    (fleet.data / "alerts.toml").write_text(DISK)
    fleet.look(1)

    assert before.origin == "default"
    assert {each.origin for each in before.rules} == {"default"}
    assert [each.name for each in fleet.alerts.policy_view().rules] == ["disk"]


def test_a_file_that_was_named_must_be_there_and_make_sense(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="No such file"):
        PolicyFile(tmp_path / "nowhere.toml", needed=True)
    (tmp_path / "alerts.toml").write_text("every = 'often'")
    with pytest.raises(FleetError, match="expected a duration such as 90s"):
        PolicyFile(tmp_path / "alerts.toml", needed=False)


def test_silences_outlive_a_restart_and_hide_what_fires_from_the_document(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)
    wanted = SilenceRequest(for_s=10 * 365 * 86_400 / 10, subject="cam-1", reason="known")

    made = fleet.alerts.silence(wanted)
    again = start()
    again.look(1, cam_1=1.0)

    assert fleet.published[-1].firing == ()
    assert [each.id for each in again.alerts.silences()] == [made.id]
    assert again.alerts.views(resolved=False)[0].silenced_until == made.until
    again.alerts.unsilence(made.id)
    assert again.alerts.silences() == []


def test_what_is_asked_for_and_is_not_there_is_refused_with_the_next_command(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)

    refused = [
        lambda: fleet.alerts.view("a-9"),
        lambda: fleet.alerts.acknowledge("a-9", "", ""),
        lambda: fleet.alerts.unsilence("s-9"),
        lambda: fleet.alerts.silence(SilenceRequest(for_s=60, rule="dusk")),
    ]

    for call in refused:
        with pytest.raises(Refusal) as told:
            call()
        assert told.value.next_step.startswith("fleet alerts")


def test_an_acknowledgement_is_kept_with_its_note(start: Start) -> None:
    fleet = start(DISK)
    fleet.look(0, cam_1=1.0)

    fleet.alerts.acknowledge("a-1", "ann", "on it")
    fleet.look(1, cam_1=50.0)
    again = start()

    view = again.alerts.view("a-1")
    assert (view.state, view.acknowledged_by, view.note) == ("resolved", "ann", "on it")
    with pytest.raises(Refusal, match="a-1 is over already"):
        again.alerts.acknowledge("a-1", "", "")


def test_it_looks_by_itself_and_ends_when_told(start: Start) -> None:
    fleet = start(DISK.replace('every = "1m"', 'every = "100ms"'))
    fleet.free["cam-1"] = 1.0
    seen = threading.Event()
    fleet.outputs.tell = lambda alert: seen.set()  # type: ignore[method-assign]

    fleet.alerts.start()
    told = seen.wait(20)
    fleet.alerts.stop()

    assert told
    assert fleet.outputs.closed
