"""Alerts at work: rules look on a thread of their own, and the controller's loop decides.

    thread: rules --facts--> loop: step, store, act --what is due--> thread: tell, call hooks

What is known of alerts belongs to the loop. It is stored before anything is told or done, so a
restart does nothing twice; of an action that was under way then nobody knows what came of it.
"""

import logging
import threading
import time
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from fleet.core import alerts
from fleet.core.alert_policy import Hook, ModelRule, Policy, read_policy
from fleet.core.alert_rules import Memory, Numbers, Scene, look
from fleet.core.alert_summary import summary
from fleet.core.alert_views import (
    AlertPolicyView,
    AlertView,
    SilenceRequest,
    SilenceView,
    alert_view,
    alert_views,
    by_severity,
    policy_view,
    silence_view,
)
from fleet.core.alerts import MAX_SILENCES, Act, Alert, Facts, Outcome, Silence, State, Tell
from fleet.core.cohort import nearest
from fleet.core.errors import FleetError
from fleet.core.statistics.hysteresis import Latch
from fleet.core.views import EventView, Refusal
from wire.alert import MAX_FIRING, Alerts, FiringAlert

log = logging.getLogger("fleet.alerting")

T = TypeVar("T")
Done = Callable[[str, Outcome, str], None]
Values = Sequence[tuple[str, str, bytes | None]]
Latches = Mapping[str, tuple[Latch, int, str]]

FILE_S = 1.0
"""How often it is looked whether the policy changed."""

MAX_FILE_BYTES = 1024 * 1024
_SUMMARY_S = 86_400.0
"""How far back a hook is told of, for an alert that is not about a model."""

_ALERT = TypeAdapter(Alert)
_SILENCE = TypeAdapter(Silence)
_ACT = TypeAdapter(Act)
_LATCH = TypeAdapter(tuple[Latch, int, str])


class Desk(Protocol):
    """The controller, as alerts need it. All but `ask` is called on its loop."""

    def ask(self, run: Callable[[], T]) -> T:
        """Run something on the loop.

        Raises:
            Refusal: 503, it does not run, or is too busy.
        """

    def scene(self, known: frozenset[str]) -> Scene:
        """Return what is known at this moment."""

    def keep(self, values: Values, events: Sequence[EventView]) -> None:
        """Store values by (kind, id), None: forget it; and events. All or nothing.

        Raises:
            OSError: the disk refuses.
        """

    def publish(self, document: Alerts) -> bool:
        """Publish what fires; False without a broker."""

    def act(self, act: Act) -> tuple[Outcome, str]:
        """Pause, roll back, quarantine or send a command; say what came of it."""


class Outputs(Protocol):
    """Whoever is told beyond the broker, and hooks. No method waits for the other side."""

    def use(self, policy: Policy) -> None:
        """Go by another policy from now on."""

    def tell(self, alert: Alert) -> None:
        """Tell of an alert that fires, or is over."""

    def firing(self, alerts: Iterable[Alert]) -> None:
        """Say which alerts fire now."""

    def run(self, act: Act, hook: Hook, summary: dict[str, Any]) -> None:
        """Call a hook."""

    def counts(self) -> Iterable[tuple[str, str, int]]:
        """Return output, outcome, and how often it came to that since start; from any thread."""

    def close(self) -> None:
        """End what is under way."""


class PolicyFile:
    """`alerts.toml`, read anew when it changes."""

    def __init__(self, path: Path, *, needed: bool) -> None:
        """Read it; unless `needed` it may be missing, and come later.

        Raises:
            FleetError: it cannot be read, or makes no sense.
        """
        self._path = path
        self._needed = needed
        self._stamp: tuple[int, int, int] | None = None
        self.policy = Policy()
        self.origin = "default"
        self.error = ""
        """Why the file as it is now is not followed."""
        self._stamp = self._stamped()
        if self._stamp is not None or needed:
            self.policy = read_file(path)
            self.origin = str(path)

    def changed(self) -> bool:
        """Return whether it is another file than the one that was read."""
        return self._stamped() != self._stamp

    def look(self) -> bool:
        """Look whether it changed, and read it then; return whether there is anything to tell.

        With an error in it what was read before holds on.
        """
        stamp = self._stamped()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.policy = read_file(self._path)
        except FleetError as error:
            self.error = f"{error.error}; what was read before holds on"
        else:
            self.origin, self.error = str(self._path), ""
        return True

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            told = self._path.stat()
        except OSError:
            return None
        return told.st_mtime_ns, told.st_size, told.st_ino


def read_file(path: Path) -> Policy:
    """Return the policy in a file.

    Raises:
        FleetError: it cannot be read, or makes no sense; says where.
    """
    check = f"fleet alerts check {path}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise FleetError(f"{path}: expected at most {MAX_FILE_BYTES} bytes", check)
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror or error}", check) from error
    except ValueError as error:
        raise FleetError(f"{path}: expected TOML: {error}", check) from error
    return read_policy(values, str(path))


@dataclass(frozen=True, slots=True)
class _Due:
    """What is still to be told or done, beside the loop."""

    effect: Tell | Act
    alert: Alert


class Alerting:
    """All that alerts are and do, from the rules to the hooks."""

    def __init__(
        self,
        file: PolicyFile,
        desk: Desk,
        numbers: Numbers,
        outputs: Callable[[Policy, Done], Outputs],
        kept: Callable[[str], Iterable[tuple[str, bytes]]],
    ) -> None:
        """Go on where the last controller stood; `kept` says what it stored of a kind."""
        self._file = file
        self._desk = desk
        self._numbers = numbers
        self._outputs = outputs(file.policy, self._done)
        self._memory = Memory()
        """On the thread that looks."""
        self._kept: dict[tuple[str, str], object] = {}
        """What is stored, to tell what changed."""
        self._state = State()
        self._latches: Latches = {}
        self._shown: tuple[tuple[FiringAlert, ...], int] | None = None
        self._due: deque[_Due] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._restore(kept)

    def start(self) -> None:
        """Start to look. What was under way when the last controller ended is lost."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more, and end what is under way. Harmless when repeated."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)
        self._outputs.close()

    # ---- the thread

    def _run(self) -> None:
        due = 0.0
        while not self._stop.wait(max(0.02, min(FILE_S, due - time.monotonic()))):
            if time.monotonic() < due and not self._file.changed():
                continue
            began = time.monotonic()
            try:
                self.look_once(time.time())
            except Refusal as refusal:
                if not self._stop.is_set():
                    log.warning("alerts: %s; looking again later", refusal.error)
            except Exception:
                log.exception("alerts: a look failed; looking again later")
            # Only now: the look may have read another policy.
            due = began + self._every()

    def _every(self) -> float:
        policy = self._file.policy
        return min([policy.every, *(rule.every for rule in policy.rules() if rule.every)])

    def look_once(self, now: float) -> None:
        """Look at the rules that are due, and do what follows; what the thread does."""
        if self._file.look():
            self._outputs.use(self._file.policy)
            text = self._file.error or f"{self._file.origin}: read anew"
            event = EventView(at=now, kind="alerts", subject="policy", text=text)
            self._desk.ask(lambda: self._desk.keep([], [event]))
        policy = self._file.policy
        scene = self._desk.ask(self._scene)
        facts, memory = look(policy, scene, self._numbers, self._memory, now)
        self._desk.ask(lambda: self._take(policy, facts, memory, now))
        self._memory = memory
        while self._due:
            due = self._due.popleft()
            if isinstance(due.effect, Tell):
                self._outputs.tell(due.effect.alert)
            else:
                self._call(policy, scene, due.effect, due.alert)
        self._outputs.firing(self._desk.ask(lambda: self._loud(now)))

    def _call(self, policy: Policy, scene: Scene, act: Act, alert: Alert) -> None:
        """Call a hook with a summary of what is known."""
        name = act.action.removeprefix("hook:")
        hook = next((each for each in policy.hook if each.name == name), None)
        if hook is None:
            self._done(act.id, "failed", f"no hook is named {name!r} any more")
            return
        rule = next((each for each in policy.rules() if each.name == alert.rule), None)
        window_s = rule.window if isinstance(rule, ModelRule) else _SUMMARY_S
        labels = {each.id: each.reported.labels for each in scene.devices if each.reported}
        try:
            told = summary(
                act, alert, scene.manifests, labels, self._numbers,
                window_s=window_s, now=time.time(),
            )  # fmt: skip
        except Exception as error:
            log.exception("alerts: no summary for %s", act.id)
            self._done(act.id, "failed", f"no summary: {type(error).__name__}: {error}")
            return
        self._outputs.run(act, hook, told)

    def _done(self, id: str, outcome: Outcome, detail: str) -> None:
        """Note what came of an action; from any thread."""
        try:
            self._desk.ask(lambda: self._conclude(id, outcome, detail, time.time()))
        except Refusal as refusal:
            log.warning("alerts: %s: %s, and not noted: %s", id, outcome, refusal.error)

    # ---- on the loop

    def _scene(self) -> Scene:
        return self._desk.scene(frozenset(each.key for each in self._state.active()))

    def _take(self, policy: Policy, facts: Facts, memory: Memory, now: float) -> None:
        """Decide, store what was decided, and then do it."""
        after, effects = alerts.step(self._state, facts, policy, now)
        events = [_event(each, now) for each in effects]
        self._keep(after, [each for each in events if each is not None], memory.latches)
        for effect in effects:
            if isinstance(effect, Tell):
                self._due.append(_Due(effect, effect.alert))
            elif effect.outcome != "planned":
                continue
            elif effect.action.startswith("hook:"):
                self._due.append(_Due(effect, self._state.alerts[effect.alert]))
            else:
                self._conclude(effect.id, *self._acted(effect), now)
        self._show(now)

    def _acted(self, act: Act) -> tuple[Outcome, str]:
        try:
            return self._desk.act(act)
        except Refusal as refusal:
            return "refused", refusal.error
        except Exception as error:
            log.exception("alerts: %s: %s failed", act.id, act.action)
            return "failed", f"{type(error).__name__}: {error}"

    def _conclude(self, id: str, outcome: Outcome, detail: str, now: float) -> None:
        after = alerts.concluded(self._state, id, outcome, detail, now)
        if after is not self._state:
            self._keep(after, [_ended(after.acts[id], now)])

    def _loud(self, now: float) -> list[Alert]:
        """Return the alerts that fire and are not silenced, the most severe first."""
        state = self._state
        loud = [each for each in state.firing() if state.silence_of(each, now) is None]
        return by_severity(loud)

    def _show(self, now: float) -> None:
        """Publish what fires, if that is not what was published last."""
        loud = self._loud(now) if self._file.policy.mqtt else []
        firing = tuple(_firing(each) for each in loud[:MAX_FIRING])
        shown = firing, max(0, len(loud) - MAX_FIRING)
        if shown != self._shown:
            document = Alerts(at=int(now), firing=shown[0], more=shown[1])
            self._shown = shown if self._desk.publish(document) else None

    def connected(self) -> None:
        """Publish what fires: the broker is there, and may know nothing, or something old."""
        self._shown = None
        self._show(time.time())

    def _keep(
        self, after: State, events: Sequence[EventView], latches: Latches | None = None
    ) -> None:
        """Store what changed; only then is it so."""
        latches = self._latches if latches is None else latches
        values: dict[tuple[str, str], object] = {("last", "last"): after.last}
        for alert in after.alerts.values():
            if alert.state != "pending":
                values["alert", alert.id] = alerts.lasting(alert)
        values |= {("silence", id): each for id, each in after.silences.items()}
        values |= {("act", id): each for id, each in after.acts.items()}
        values |= {("latch", key): each for key, each in latches.items()}
        changed = {key for key, value in values.items() if self._kept.get(key) != value}
        gone = self._kept.keys() - values.keys()
        if changed == {("last", "last")} and not gone:
            # Of alerts that were pending and went away nothing is stored, not even a number.
            changed = set()
        rows: list[tuple[str, str, bytes | None]] = [
            (*key, _encoded(key, values[key], after)) for key in sorted(changed)
        ]
        rows += [(*key, None) for key in sorted(gone)]
        if rows or events:
            self._desk.keep(rows, events)
        self._kept |= {key: values[key] for key in changed}
        for key in gone:
            del self._kept[key]
        self._state, self._latches = after, latches

    def _restore(self, kept: Callable[[str], Iterable[tuple[str, bytes]]]) -> None:
        now = time.time()
        found = [_ALERT.validate_json(value) for _, value in kept("alert")]
        acts = [_ACT.validate_json(value) for _, value in kept("act")]
        silences = [_SILENCE.validate_json(value) for _, value in kept("silence")]
        last = [int(value) for _, value in kept("last")]
        self._latches = {key: _LATCH.validate_json(value) for key, value in kept("latch")}
        self._memory = Memory(latches=self._latches)
        self._kept |= {("alert", each.id): alerts.lasting(each) for each in found}
        self._kept |= {("silence", each.id): each for each in silences}
        self._kept |= {("act", each.id): each for each in acts}
        self._kept |= {("latch", key): latch for key, latch in self._latches.items()}
        if last:
            self._kept["last", "last"] = last[0]
        ids = [each.id for some in (found, acts, silences) for each in some]
        self._state = State(
            alerts={each.id: replace(each, looked_at=now) for each in _numbered(found)},
            silences={each.id: each for each in _numbered(silences)},
            acts={each.id: each for each in _numbered(acts)},
            last=max([0, *last, *(_number(id) for id in ids)]),
        )

    def settle(self) -> None:
        """Mark as lost what was under way when the last controller ended; before `start`."""
        for act in self._state.acts.values():
            if act.outcome == "planned":
                detail = "the controller ended meanwhile: nobody knows what came of it"
                self._conclude(act.id, "lost", detail, time.time())

    # ---- answers to the API, on the loop

    def fire_counts(self) -> tuple[tuple[str, str], ...]:
        """Return rule and severity of every alert that fires."""
        return tuple((each.rule, each.severity) for each in self._state.firing())

    def told(self) -> tuple[tuple[str, str, int], ...]:
        """Return output, outcome, and how often it came to that since start."""
        return tuple(self._outputs.counts())

    def severities(self) -> dict[str, int]:
        """Return how many fire, by severity."""
        return alerts.count_by_severity(self._state.alerts.values())

    def about(self, device: str) -> tuple[str, ...]:
        """Return the alerts that fire and are about a device, in words; from any thread."""
        mine = [each for each in self._state.firing() if each.subject.device == device]
        return tuple(f"{each.id} {each.rule} ({each.severity}): {each.reason}" for each in mine)

    def views(self, resolved: bool) -> list[AlertView]:
        """Return alerts, those that fire first; those that are over only when asked for."""
        return alert_views(self._state, time.time(), resolved=resolved)

    def view(self, id: str) -> AlertView:
        """Return one alert with its actions (404)."""
        return alert_view(self._find(id), self._state, time.time(), whole=True)

    def acknowledge(self, id: str, by: str, note: str) -> AlertView:
        """Note that an operator cares (404; 409, it is over)."""
        if not self._find(id).active:
            raise Refusal(409, f"{id} is over already", f"fleet alerts show {id}")
        now = time.time()
        after = alerts.acknowledge(self._state, id, by, note, now)
        text = f"{id} acknowledged by {after.alerts[id].acked_by}" + (f": {note}" if note else "")
        subject = after.alerts[id].subject.name
        self._keep(after, [EventView(at=now, kind="alert", subject=subject, text=text)])
        return self.view(id)

    def silences(self) -> list[SilenceView]:
        """Return the silences that hold, the next to end first."""
        now = time.time()
        holding = [each for each in self._state.silences.values() if now < each.until]
        return [silence_view(each) for each in sorted(holding, key=lambda each: each.until)]

    def silence(self, wanted: SilenceRequest) -> SilenceView:
        """Hear nothing of a rule or a subject for a while (422; 409, too many)."""
        rules = [each.name for each in self._file.policy.all_rules()]
        if wanted.rule and wanted.rule not in rules:
            text = f"no rule {wanted.rule!r}{nearest(wanted.rule, rules)}"
            raise Refusal(422, f"rule: {text}", "fleet alerts rules")
        if len(self.silences()) >= MAX_SILENCES:
            text = f"expected at most {MAX_SILENCES} silences"
            raise Refusal(409, text, "fleet alerts silences; fleet alerts unsilence ID")
        now = time.time()
        after, made = alerts.silence(
            self._state, until=now + wanted.for_s, reason=wanted.reason, by=wanted.by,
            rule=wanted.rule, subject=wanted.subject, now=now,
        )  # fmt: skip
        what = " of ".join(filter(None, [wanted.rule, wanted.subject])) or "everything"
        text = f"{made.id}: {what} for {wanted.for_s:.0f} s by {made.by}; {wanted.reason}"
        event = EventView(at=now, kind="silence", subject=made.id, text=text.rstrip("; "))
        self._keep(after, [event])
        self._show(now)
        return silence_view(made)

    def unsilence(self, id: str) -> SilenceView:
        """Take a silence back (404)."""
        silence = self._state.silences.get(id)
        if silence is None:
            text = f"no silence {id[:40]!r}{nearest(id, self._state.silences)}"
            raise Refusal(404, text, "fleet alerts silences")
        now = time.time()
        event = EventView(at=now, kind="silence", subject=id, text="taken back")
        self._keep(alerts.unsilence(self._state, id), [event])
        self._show(now)
        return silence_view(silence)

    def policy_view(self) -> AlertPolicyView:
        """Return the rules that hold, and whom alerts are told to."""
        return policy_view(self._file.policy, self._file.origin, self._file.error)

    def _find(self, id: str) -> Alert:
        alert = self._state.alerts.get(id)
        if alert is None:
            text = f"no alert {id[:40]!r}{nearest(id, self._state.alerts)}"
            raise Refusal(404, text, "fleet alerts list --all")
        return alert


def _number(id: str) -> int:
    return int(id.partition("-")[2])


N = TypeVar("N", Alert, Silence, Act)


def _numbered(values: Iterable[N]) -> list[N]:
    return sorted(values, key=lambda each: _number(each.id))


def _encoded(key: tuple[str, str], value: object, state: State) -> bytes:
    kind, id = key
    match kind:
        case "alert":
            # With its reason of now, though a new reason alone is not worth a write.
            return _ALERT.dump_json(state.alerts[id])
        case "silence":
            return _SILENCE.dump_json(state.silences[id])
        case "act":
            return _ACT.dump_json(state.acts[id])
        case "latch":
            return _LATCH.dump_json(value)  # type: ignore[arg-type]
        case _:
            return str(state.last).encode()


def _firing(alert: Alert) -> FiringAlert:
    about = alert.subject
    return FiringAlert.model_validate(
        {
            "id": alert.id,
            "rule": alert.rule,
            "severity": alert.severity,
            "subject": about.name[:200],
            "reason": alert.reason[:600],
            "since": int(alert.fired_at or alert.began_at),
            "model": about.model or None,
            "version": about.version,
            "device": about.device or None,
        }
    )


def _event(effect: Tell | Act, now: float) -> EventView | None:
    if isinstance(effect, Act):
        if effect.outcome != "planned":
            return _ended(effect, now)
        if not effect.action.startswith("hook:"):
            return None
        text = f"{effect.id} {effect.action} is called; {effect.reason}"
        return EventView(at=now, kind="action", subject=effect.subject.name, text=text)
    alert = effect.alert
    word = "fires" if alert.state == "firing" else "is over"
    text = f"{alert.id} {alert.rule} {word} ({alert.severity}): {alert.reason}"
    return EventView(at=now, kind="alert", subject=alert.subject.name, text=text)


def _ended(act: Act, now: float) -> EventView:
    words = " ".join(act.detail.split())
    detail = f": {words[:500]}" if words else ""
    text = f"{act.id} {act.action} {act.outcome.replace('_', ' ')}{detail}; {act.reason}"
    return EventView(at=now, kind="action", subject=act.subject.name, text=text)
