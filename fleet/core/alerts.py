"""When an alert fires, when it resolves, and what is done about it. Decides, and touches nothing.

    (none) --bad--> pending --bad for `for`--> firing --good for `clear_for`--> resolved
    pending --anything else that is known--> (none)

What a rule saw of one subject is a *reading*: bad, good, or between the two bounds. No reading
changes nothing, for no data neither fires an alert nor resolves one. How long something holds is
added up from look to look, and a step of the clock adds no more than two looks would: neither a
clock that jumps nor a controller that was away fires anything.

One rule and one subject are one alert at a time (the *key*). When more devices than a rule's
`group_over` turn bad, those that are new become one alert together.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fleet.core.alert_policy import DeviceRule, DriftRule, Policy, Rule
from fleet.core.target import parse_target

AlertState = Literal["pending", "firing", "resolved"]
Grade = Literal["bad", "good", "between", "gone"]
Outcome = Literal["planned", "done", "failed", "refused", "held_back", "dry_run", "lost"]

MAX_RESOLVED = 1000
MAX_ACTIONS = 1000
MAX_SILENCES = 200
MAX_REASON = 600
_EXAMPLES = 3
_HALVED = 2


@dataclass(frozen=True, slots=True)
class Subject:
    """What an alert is about."""

    name: str
    """As people read it: `cam-1`, `digits@2`, `digits@2 site=berlin`, `digits@2 on cam-1`."""
    model: str = ""
    version: int | None = None
    device: str = ""
    label: str = ""
    """`site=berlin`, where it is about the devices of one label."""

    @property
    def release(self) -> str:
        """NAME@VERSION, or nothing."""
        return f"{self.model}@{self.version}" if self.version is not None else ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a rule saw of a subject at one look; `gone`: there is no such subject any more."""

    rule: str
    subject: Subject
    grade: Grade
    text: str
    every_s: float
    """How often the rule is looked at."""

    @property
    def key(self) -> str:
        """What tells one alert from another."""
        return key_of(self.rule, self.subject)


def key_of(rule: str, subject: Subject) -> str:
    """Return what tells one alert from another, the same after a restart."""
    return f"{rule}|{subject.name}"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert, from its first bad reading on."""

    id: str
    key: str
    rule: str
    severity: str
    subject: Subject
    reason: str
    """The latest bad reading in words; of a resolved one why it is over."""
    began_at: float
    last_at: float
    """When it was last seen to be bad."""
    state: AlertState = "pending"
    fired_at: float | None = None
    ended_at: float | None = None
    bad_s: float = 0.0
    good_s: float | None = None
    """How long it has been good; None: the latest reading was not."""
    looked_at: float = 0.0
    told: bool = False
    """Its firing was told, so its end will be too."""
    acted_at: float | None = None
    acked_by: str = ""
    acked_at: float | None = None
    note: str = ""

    @property
    def active(self) -> bool:
        """Whether it is not over."""
        return self.state != "resolved"


@dataclass(frozen=True, slots=True)
class Silence:
    """What an operator does not want to hear of, nor see acted upon, for a while."""

    id: str
    until: float
    reason: str
    by: str
    since: float
    rule: str = ""
    subject: str = ""
    """A device, a release, a model or a subject's whole name; empty: any."""

    def covers(self, alert: Alert, now: float) -> bool:
        """Return whether it holds for this alert now."""
        if now >= self.until or self.rule not in ("", alert.rule):
            return False
        about = alert.subject
        names = {about.name, about.device, about.release, about.model, alert.id}
        return not self.subject or self.subject in names - {""}


@dataclass(frozen=True, slots=True)
class Act:
    """One action upon one alert, with its reason and what came of it."""

    id: str
    alert: str
    """The alert's id."""
    action: str
    """pause, rollback, quarantine, command:VERB or hook:NAME."""
    subject: Subject
    reason: str
    at: float
    outcome: Outcome = "planned"
    detail: str = ""
    ended_at: float | None = None

    @property
    def target(self) -> str:
        """Upon what it acts, for the limit of one in an hour."""
        if self.action.startswith("command:"):
            return self.subject.device
        if self.action == "pause":
            return self.subject.model
        return self.subject.release or self.subject.model or self.subject.name


@dataclass(frozen=True, slots=True)
class State:
    """All there is to know of alerts. A value; what matters of every new one is stored."""

    alerts: Mapping[str, Alert] = field(default_factory=dict)
    """By id, the oldest first."""
    silences: Mapping[str, Silence] = field(default_factory=dict)
    acts: Mapping[str, Act] = field(default_factory=dict)
    last: int = 0
    """The highest number given to any of them."""
    refused: int = 0
    """Readings that became no alert, for there were too many, at the latest look."""

    def active(self) -> list[Alert]:
        """Return those that are not over."""
        return [each for each in self.alerts.values() if each.active]

    def firing(self) -> list[Alert]:
        """Return those that fire."""
        return [each for each in self.alerts.values() if each.state == "firing"]

    def silence_of(self, alert: Alert, now: float) -> Silence | None:
        """Return the silence that holds for an alert."""
        return next((each for each in self.silences.values() if each.covers(alert, now)), None)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules saw at one look."""

    readings: tuple[Reading, ...]
    looked: frozenset[str]
    """Rules that could look at all; without data a rule is not among them."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Let everybody know that this alert fires, or is over."""

    alert: Alert


Effect = Tell | Act


def step(state: State, facts: Facts, policy: Policy, now: float) -> tuple[State, list[Effect]]:
    """Return the alerts after one look, and what is to be told and done.

    Alerts of rules that are no more end with that as their reason.
    """
    machine = _Machine(state, policy, now)
    machine.take(facts)
    return machine.finish()


def acknowledge(state: State, id: str, by: str, note: str, now: float) -> State:
    """Note that an operator cares: nothing is repeated and nothing more is done by itself."""
    alert = state.alerts[id]
    after = replace(alert, acked_by=by or "operator", acked_at=now, note=note)
    return replace(state, alerts={**state.alerts, id: after})


def silence(
    state: State, *, until: float, reason: str, by: str, rule: str, subject: str, now: float
) -> tuple[State, Silence]:
    """Add a silence."""
    number = state.last + 1
    made = Silence(f"s-{number}", until, reason, by or "operator", now, rule, subject)
    kept = {id: each for id, each in state.silences.items() if now < each.until}
    return replace(state, silences={**kept, made.id: made}, last=number), made


def unsilence(state: State, id: str) -> State:
    """Take a silence back."""
    kept = {other: each for other, each in state.silences.items() if other != id}
    return replace(state, silences=kept)


def concluded(state: State, id: str, outcome: Outcome, detail: str, now: float) -> State:
    """Note what came of an action."""
    act = state.acts.get(id)
    if act is None:
        return state
    after = replace(act, outcome=outcome, detail=detail[:2000], ended_at=now)
    return replace(state, acts={**state.acts, id: after})


def lasting(alert: Alert) -> Alert:
    """Return what of an alert is worth writing to a disk: how long it held is seen again."""
    return replace(alert, bad_s=0.0, good_s=None, looked_at=0.0, last_at=0.0, reason="")


class _Machine:
    """One step: readings in, the next state and effects out."""

    def __init__(self, state: State, policy: Policy, now: float) -> None:
        self._state = state
        self._policy = policy
        self._now = now
        self._rules: dict[str, Rule] = {each.name: each for each in policy.rules()}
        self._alerts = dict(state.alerts)
        self._acts = dict(state.acts)
        self._by_key = {each.key: each for each in state.alerts.values() if each.active}
        self._last = state.last
        self._refused = 0
        self._effects: list[Effect] = []

    def take(self, facts: Facts) -> None:
        for alert in list(self._by_key.values()):
            if alert.rule not in self._rules:
                self._over(alert, "the rule is no more")
        for rule, readings in _by_rule(facts.readings).items():
            if rule in self._rules:
                self._take_of(self._rules[rule], readings)
        for rule in facts.looked & self._rules.keys():
            self._settle_group(self._rules[rule], facts)

    def finish(self) -> tuple[State, list[Effect]]:
        now = self._now
        silences = {id: s for id, s in self._state.silences.items() if now < s.until}
        shown = replace(self._state, silences=silences)
        for alert in [each for each in self._alerts.values() if each.state == "firing"]:
            if shown.silence_of(alert, now) is None:
                self._speak(alert)
        for effect in self._effects:
            if isinstance(effect, Act):
                self._acts[effect.id] = effect
        state = State(
            alerts=_without_old(self._alerts),
            silences=silences,
            acts=dict(list(self._acts.items())[-MAX_ACTIONS:]),
            last=self._last,
            refused=self._refused,
        )
        return state, self._effects

    # ---- readings

    def _take_of(self, rule: Rule, readings: list[Reading]) -> None:
        fresh = []
        for reading in readings:
            alert = self._by_key.get(reading.key)
            if alert is not None:
                self._advance(rule, alert, reading)
            elif reading.grade == "bad":
                fresh.append(reading)
        if isinstance(rule, DeviceRule) and self._grouped(rule, readings, fresh):
            return
        for reading in fresh:
            self._begin(rule, reading)

    def _grouped(self, rule: DeviceRule, readings: list[Reading], fresh: list[Reading]) -> bool:
        """Take what is new as one alert when it is too much; return whether it was."""
        bad = [each for each in readings if each.grade == "bad"]
        there = key_of(rule.name, _GROUP) in self._by_key
        if len(bad) <= (rule.group_over // _HALVED if there else rule.group_over):
            return False
        names = ", ".join(each.subject.name for each in bad[:_EXAMPLES])
        more = f" and {len(bad) - _EXAMPLES} more" if len(bad) > _EXAMPLES else ""
        text = f"{len(bad)} devices at once ({names}{more}): {bad[0].text}"
        self._one(rule, Reading(rule.name, _GROUP, "bad", text, bad[0].every_s))
        return True

    def _settle_group(self, rule: Rule, facts: Facts) -> None:
        alert = self._by_key.get(key_of(rule.name, _GROUP))
        if alert is None or not isinstance(rule, DeviceRule):
            return
        mine = [each for each in facts.readings if each.rule == rule.name]
        bad = sum(each.grade == "bad" for each in mine)
        if bad <= rule.group_over // _HALVED:
            every = mine[0].every_s if mine else self._policy.every
            text = f"{bad} devices: no more than {rule.group_over // _HALVED} at once"
            self._one(rule, Reading(rule.name, _GROUP, "good", text, every))

    def _one(self, rule: Rule, reading: Reading) -> None:
        alert = self._by_key.get(reading.key)
        if alert is not None:
            self._advance(rule, alert, reading)
        else:
            self._begin(rule, reading)

    def _begin(self, rule: Rule, reading: Reading) -> None:
        if len(self._by_key) >= self._policy.max_alerts:
            self._refused += 1
            return
        self._last += 1
        alert = Alert(
            id=f"a-{self._last}",
            key=reading.key,
            rule=rule.name,
            severity=rule.severity,
            subject=reading.subject,
            reason=reading.text[:MAX_REASON],
            began_at=self._now,
            last_at=self._now,
            looked_at=self._now,
        )
        self._keep(_fired(alert, self._now) if rule.for_s <= 0 else alert)

    def _advance(self, rule: Rule, alert: Alert, reading: Reading) -> None:
        now = self._now
        # A clock that was set, or a controller that was away, is worth two looks at most.
        passed = min(max(0.0, now - alert.looked_at), 2 * reading.every_s)
        alert = replace(alert, looked_at=now, severity=rule.severity)
        match reading.grade:
            case "gone":
                self._over(alert, reading.text)
            case "bad":
                bad_s = alert.bad_s + (passed if alert.good_s is None else 0.0)
                alert = replace(
                    alert, bad_s=bad_s, good_s=None, last_at=now, reason=reading.text[:MAX_REASON]
                )
                if alert.state == "pending" and bad_s >= rule.for_s:
                    alert = _fired(alert, now)
                self._keep(alert)
            case _ if alert.state == "pending":
                self._forget(alert)
            case "between":
                self._keep(replace(alert, good_s=None))
            case "good":
                good_s = 0.0 if alert.good_s is None else alert.good_s + passed
                if good_s >= rule.clear_for_s:
                    self._over(alert, reading.text)
                else:
                    self._keep(replace(alert, good_s=good_s))

    def _over(self, alert: Alert, why: str) -> None:
        if alert.state == "pending":
            self._forget(alert)
            return
        ended = replace(
            alert, state="resolved", ended_at=self._now, good_s=None, reason=why[:MAX_REASON]
        )
        del self._by_key[alert.key]
        self._alerts[alert.id] = ended
        if alert.told:
            self._effects.append(Tell(ended))

    def _keep(self, alert: Alert) -> None:
        self._by_key[alert.key] = alert
        self._alerts[alert.id] = alert

    def _forget(self, alert: Alert) -> None:
        del self._by_key[alert.key]
        del self._alerts[alert.id]

    # ---- what follows

    def _speak(self, alert: Alert) -> None:
        """Tell a firing alert once, and act upon it as its rule says."""
        rule = self._rules[alert.rule]
        if not alert.told:
            alert = replace(alert, told=True)
            self._effects.append(Tell(alert))
        due = alert.acted_at is None or (
            rule.act_again is not None and self._now - alert.acted_at >= rule.act_again
        )
        if due and rule.actions and alert.acked_at is None:
            alert = replace(alert, acted_at=self._now)
            for action in rule.actions:
                self._act(rule, alert, action)
        self._keep(alert)

    def _act(self, rule: Rule, alert: Alert, action: str) -> None:
        if isinstance(rule, DriftRule) and action == "rollback":
            # The policy refuses it; nothing that slipped past it may do it.
            return
        if alert.subject == _GROUP and not action.startswith("hook:"):
            return
        self._last += 1
        act = Act(
            id=f"x-{self._last}",
            alert=alert.id,
            action=action,
            subject=alert.subject,
            reason=f"alert {alert.id} ({alert.rule}): {alert.reason}",
            at=self._now,
        )
        earlier = self._lately(act)
        if self._policy.dry_run or rule.dry_run:
            act = replace(act, outcome="dry_run", ended_at=self._now, detail="would be done")
        elif earlier is not None:
            act = replace(
                act,
                outcome="held_back",
                ended_at=self._now,
                detail=f"{earlier.id} did the same to {act.target} lately",
            )
        self._acts[act.id] = act
        self._effects.append(act)

    def _lately(self, act: Act) -> Act | None:
        """Return the act of this kind upon this target that is too recent for another one."""
        for other in reversed(self._acts.values()):
            done = other.outcome not in ("held_back", "dry_run", "refused")
            same = (other.action, other.target) == (act.action, act.target)
            if done and same and 0 <= self._now - other.at < self._policy.act_once_in:
                return other
        return None


_GROUP = Subject("many devices")


def _fired(alert: Alert, now: float) -> Alert:
    return replace(alert, state="firing", fired_at=now)


def _by_rule(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    found: dict[str, list[Reading]] = {}
    for reading in readings:
        found.setdefault(reading.rule, []).append(reading)
    return found


def _without_old(alerts: dict[str, Alert]) -> dict[str, Alert]:
    over = [id for id, alert in alerts.items() if not alert.active]
    gone = set(over[: max(0, len(over) - MAX_RESOLVED)])
    return {id: alert for id, alert in alerts.items() if id not in gone} if gone else alerts


def count_by_severity(alerts: Iterable[Alert]) -> dict[str, int]:
    """Return how many fire, by severity."""
    return dict(Counter(each.severity for each in alerts if each.state == "firing"))


def meant(rule: Rule, facts: Mapping[str, str]) -> bool:
    """Return whether a rule looks at a device with these facts."""
    return parse_target(rule.to).matches(facts)
