"""What alerts read of the fleet and do to it: the desk of `fleet.shell.alerting`.

On the controller's loop, but for what says otherwise.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson

from fleet.core.alert_policy import Policy
from fleet.core.alert_rules import Scene
from fleet.core.alert_views import AlertPolicyView, AlertView, SilenceRequest, SilenceView
from fleet.core.alerts import Act, Outcome
from fleet.core.books import Books
from fleet.core.query import DeviceCounts, Query, Slice, Step
from fleet.core.rollout import Rollout, abort, pause
from fleet.core.views import (
    CommandView,
    EventView,
    Refusal,
    ReleaseView,
    RolloutRequest,
    RolloutView,
)
from fleet.shell.alerting import Alerting, Done, Outputs, PolicyFile, Values
from fleet.shell.store import Store
from fleet.shell.telemetry import Telemetry
from wire.alert import Alerts
from wire.codec import encode
from wire.ids import ReleaseRef
from wire.topics import Kind, Topic
from wire.twin import Probation

T = TypeVar("T")

MAX_GAPS = 100_000
"""Counted at one look."""

POLICY_FILE = "alerts.toml"
"""In the data directory, unless `fleet serve --alerts` names another."""


class Figures:
    """Telemetry as the rules of alerts read it: from any thread, each answer of one moment."""

    def __init__(self, telemetry: Telemetry) -> None:
        """Nothing is read yet."""
        self._telemetry = telemetry

    def slices(self, query: Query, step: Step | None = None) -> list[Slice]:
        """Return sums by release, variant, group and step."""
        return self._telemetry.slices(query, step)

    def devices(self, query: Query) -> list[DeviceCounts]:
        """Return counts by device, release and variant."""
        return self._telemetry.devices(query)

    def gaps(self, since: int) -> Mapping[str, int]:
        """Return how many gaps each device told of."""
        found = self._telemetry.events(since=since, kind="gap", limit=MAX_GAPS)
        return Counter(row.event.device for row in found)


@dataclass(frozen=True, slots=True)
class Levers:
    """What the controller does when it is told to; all but `ask` on its loop."""

    ask: Callable[[Callable[[], Any]], Any]
    """Runs something on the loop."""
    publish: Callable[[Topic, bytes], bool]
    start_rollout: Callable[[RolloutRequest], RolloutView]
    turn: Callable[[str, Callable[[Rollout], Rollout], float], RolloutView]
    """Changes a rollout, or refuses where that makes no sense."""
    send_command: Callable[[str, str], CommandView]


class Upkeep:
    """Alerts and what they do, as the controller keeps them."""

    def __init__(  # noqa: PLR0917
        self,
        books: Books,
        store: Store,
        telemetry: Telemetry,
        levers: Levers,
        outputs: Callable[[Policy, Done], Outputs],
        data_dir: Path,
        policy: Path | None,
    ) -> None:
        """Go on where the last controller stood.

        Raises:
            FleetError: the policy makes no sense, or the one that was named is not there.
        """
        self._books = books
        self._store = store
        self._levers = levers
        self._hearing_since: float | None = None
        for name, value in store.alert_values("quarantine"):
            books.quarantined[name] = orjson.loads(value)["reason"]
        file = PolicyFile(policy or data_dir / POLICY_FILE, needed=policy is not None)
        self.alerts = Alerting(file, self, Figures(telemetry), outputs, store.alert_values)
        self.port = UpkeepPort(self, books)

    def start(self) -> None:
        """Start to look; from any thread, once the loop runs."""
        self._levers.ask(self.alerts.settle)
        self.alerts.start()

    def stop(self) -> None:
        """End; from any thread, while the loop still runs."""
        self.alerts.stop()

    def link_up(self, now: float) -> None:
        """Hear devices from now on, and say what fires."""
        self._hearing_since = now
        self.alerts.connected()

    def link_down(self) -> None:
        """Hear nobody from now on."""
        self._hearing_since = None

    # ---- the desk

    def ask(self, run: Callable[[], T]) -> T:
        """Run something on the loop; from any other thread."""
        answer: T = self._levers.ask(run)
        return answer

    def scene(self, known: frozenset[str]) -> Scene:
        """Return what is known at this moment."""
        books = self._books
        return Scene(
            devices=tuple(books.census),
            manifests={digest: each.manifest for digest, each in books.releases.items()},
            hearing_since=self._hearing_since,
            known=known,
        )

    def keep(self, values: Values, events: Sequence[EventView]) -> None:
        """Store values and events, all or nothing."""
        self._store.save_alert_values(values, events)

    def publish(self, document: Alerts) -> bool:
        """Publish what fires; False without a broker."""
        return self._levers.publish(Topic(Kind.ALERTS, ""), encode(document))

    def act(self, act: Act) -> tuple[Outcome, str]:
        """Pause, roll back, quarantine or send a command; say what came of it."""
        if act.action == "pause":
            return self._pause(act)
        if act.action == "rollback":
            return self._roll_back(act)
        if act.action == "quarantine":
            self.quarantine(act.subject.model, act.subject.version or 0, act.reason)
            return "done", f"no new rollout brings {act.subject.release}"
        verb = act.action.removeprefix("command:")
        command = self._levers.send_command(act.subject.device, verb)
        return "done", f"sent as {command.id}"

    def _pause(self, act: Act) -> tuple[Outcome, str]:
        about = act.subject
        for rollout in self._books.active():
            if rollout.model != about.model:
                continue
            if about.release not in ("", rollout.release):
                # What is on its way may be the very remedy.
                text = f"{rollout.id} brings {rollout.release}, which this alert is not about"
                return "refused", text
            self._levers.turn(rollout.id, lambda it: pause(it, f"by {act.reason}"), time.time())
            return "done", f"{rollout.id} is paused; fleet rollout resume {rollout.id}"
        return "refused", f"no rollout of {about.release or about.model} is under way"

    def _roll_back(self, act: Act) -> tuple[Outcome, str]:
        about, now = act.subject, time.time()
        for rollout in self._books.active():
            if rollout.release == about.release:
                self._levers.turn(rollout.id, lambda it: abort(it, f"by {act.reason}", now), now)
                return "done", f"{rollout.id} is called off; its devices go back"
            if rollout.model == about.model:
                text = f"{rollout.id} brings {rollout.release} to these devices already"
                return "refused", text
        brought = [r for r in self._books.rollouts.values() if r.release == about.release]
        if not brought:
            return "refused", f"no rollout brought {about.release}; fleet rollout start"
        last = brought[-1]
        before = self._before(last)
        if before is None:
            return "refused", f"there is no release before {about.release} to go back to"
        narrower = f"device={about.device}" if about.device else about.label
        parts = [each for each in (last.to, narrower) if each not in ("", "all")]
        to = " and ".join(f"({each})" for each in parts) if len(parts) > 1 else "".join(parts)
        # It served there before: nothing is to be proven.
        request = RolloutRequest(
            release=before, to=to or "all", probation=Probation(labelled_pairs=0)
        )
        view = self._levers.start_rollout(request)
        return "done", f"{view.id} brings {before} back to {view.to}"

    def _before(self, rollout: Rollout) -> str | None:
        """Return the release that most devices of a rollout had before."""
        books = self._books
        had = Counter(
            str(ReleaseRef(each.model, each.version))
            for each in rollout.previous.values()
            if each is not None and each.manifest in books.releases
        )
        fit = [name for name, _ in had.most_common() if name not in books.quarantined]
        return next((name for name in fit if name != rollout.release), None)

    # ---- quarantine

    def quarantine(self, model: str, version: int, reason: str) -> None:
        """Let no new rollout bring a release, and pause one that does (404; 409, it is so)."""
        books, now = self._books, time.time()
        name = str(books.find_release(model, version).manifest.ref)
        if name in books.quarantined:
            raise Refusal(
                409, f"{name} is in quarantine already: {books.quarantined[name]}",
                f"fleet model release {name}",
            )  # fmt: skip
        value, event = quarantined(name, reason, now)
        self._store.save_alert_values([value], [event])
        books.quarantined[name] = reason
        for rollout in books.active():
            if rollout.release == name and rollout.status == "running":
                because = f"{name} is in quarantine: {reason}"
                self._levers.turn(rollout.id, partial(pause, reason=because), now)

    def release(self, model: str, version: int) -> None:
        """Let rollouts bring a release again (404; 409, nothing keeps them)."""
        books = self._books
        name = str(books.find_release(model, version).manifest.ref)
        if name not in books.quarantined:
            raise Refusal(409, f"{name} is not in quarantine", f"fleet model show {name}")
        event = EventView(at=time.time(), kind="release", subject=name, text="out of quarantine")
        self._store.save_alert_values([("quarantine", name, None)], [event])
        del books.quarantined[name]


def quarantined(name: str, reason: str, now: float) -> tuple[tuple[str, str, bytes], EventView]:
    """Return what is stored of a release that goes into quarantine, and told of it."""
    value = orjson.dumps({"reason": reason, "at": now})
    text = f"in quarantine: {reason}"
    return ("quarantine", name, value), EventView(at=now, kind="release", subject=name, text=text)


class UpkeepPort:
    """An AlertsPort: asks on the controller's loop, from any thread."""

    def __init__(self, upkeep: Upkeep, books: Books) -> None:
        """Nothing is asked yet."""
        self._upkeep = upkeep
        self._alerts = upkeep.alerts
        self._ask = upkeep.ask
        self._books = books

    def alerts(self, *, resolved: bool) -> list[AlertView]:
        """Return alerts, those that fire first; those that are over only when `resolved`."""
        return self._ask(lambda: self._alerts.views(resolved))

    def alert(self, id: str) -> AlertView:
        """Return one alert with its actions."""
        return self._ask(lambda: self._alerts.view(id))

    def acknowledge(self, id: str, by: str, note: str) -> AlertView:
        """Note that an operator cares."""
        return self._ask(lambda: self._alerts.acknowledge(id, by, note))

    def silences(self) -> list[SilenceView]:
        """Return the silences that hold."""
        return self._ask(self._alerts.silences)

    def silence(self, wanted: SilenceRequest) -> SilenceView:
        """Hear nothing of a rule or a subject for a while."""
        return self._ask(lambda: self._alerts.silence(wanted))

    def unsilence(self, id: str) -> SilenceView:
        """Take a silence back."""
        return self._ask(lambda: self._alerts.unsilence(id))

    def policy(self) -> AlertPolicyView:
        """Return the rules that hold, and whom alerts are told to."""
        return self._ask(self._alerts.policy_view)

    def quarantine(self, model: str, version: int, reason: str) -> ReleaseView:
        """Let no new rollout bring a release."""
        return self._ask(lambda: self._turn(self._upkeep.quarantine, model, version, reason))

    def release(self, model: str, version: int) -> ReleaseView:
        """Take a release out of quarantine."""
        return self._ask(lambda: self._turn(self._upkeep.release, model, version))

    def _turn(
        self, turn: Callable[..., None], model: str, version: int, *reason: str
    ) -> ReleaseView:
        turn(model, version, *reason)
        view = self._books.release_view(model, version)
        return view.model_copy(update={"manifest": None})
