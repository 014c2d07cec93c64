"""What the controller's HTTP API says of alerts, as types; as in fleet.core.views."""

from typing import Annotated, Any

from pydantic import Field

from fleet.core.alert_policy import Policy
from fleet.core.alerts import Act, Alert, Silence, State
from fleet.core.views import View

_SEVERITIES = ("critical", "warning", "info")
_STATES = ("firing", "pending", "resolved")


class AlertActionView(View):
    """One action upon an alert, and what came of it."""

    id: str
    alert: str
    action: str
    """pause, rollback, quarantine, command:VERB or hook:NAME."""
    subject: str
    reason: str
    at: float
    outcome: str
    """planned, done, failed, refused, held_back, dry_run or lost."""
    detail: str = ""
    ended_at: float | None = None


class AlertView(View):
    """One alert. `actions` comes with the single one alone."""

    id: str
    rule: str
    severity: str
    state: str
    """pending, firing or resolved."""
    subject: str
    model: str | None = None
    version: int | None = None
    device: str | None = None
    label: str | None = None
    reason: str
    """In words, the same wherever it is told."""
    began_at: float
    """When it was first bad."""
    fired_at: float | None = None
    last_at: float
    """When it was last seen to be bad."""
    ended_at: float | None = None
    acknowledged_by: str | None = None
    acknowledged_at: float | None = None
    note: str = ""
    silenced_until: float | None = None
    actions: tuple[AlertActionView, ...] = ()


class AcknowledgeRequest(View):
    """What `POST /v1/alerts/{id}/ack` takes."""

    by: Annotated[str, Field(max_length=100)] = ""
    note: Annotated[str, Field(max_length=500)] = ""


class SilenceRequest(View):
    """What `POST /v1/silences` takes: a rule, a subject, or both; neither means everything."""

    for_s: Annotated[float, Field(gt=0, le=366 * 86_400)]
    rule: Annotated[str, Field(max_length=40)] = ""
    subject: Annotated[str, Field(max_length=200)] = ""
    """A device, a model, a release, an alert's id or its whole subject."""
    reason: Annotated[str, Field(max_length=500)] = ""
    by: Annotated[str, Field(max_length=100)] = ""


class SilenceView(View):
    """What nobody hears of, and nothing acts upon, until then."""

    id: str
    rule: str
    subject: str
    since: float
    until: float
    reason: str
    by: str


class AlertRuleView(View):
    """One rule as it holds."""

    name: str
    kind: str
    severity: str
    about: str
    """What it looks at, in words."""
    scope: str
    enabled: bool
    for_s: float
    clear_for_s: float
    actions: tuple[str, ...]
    origin: str
    """`default`, or the file."""
    settings: dict[str, Any]
    """All of it, as it would be written in alerts.toml."""


class AlertPolicyView(View):
    """What is worth an alert, and whom it is told to."""

    origin: str
    """The file, or `default`."""
    error: str = ""
    """Why the file as it is now is not followed; the rules are those of before."""
    every_s: float
    dry_run: bool
    rules: tuple[AlertRuleView, ...]
    outputs: tuple[str, ...]
    """In words; no secrets."""
    hooks: tuple[str, ...]


class QuarantineRequest(View):
    """What `POST /v1/releases/{model}/{version}/quarantine` takes."""

    reason: Annotated[str, Field(max_length=500)] = "put there by an operator"


def alert_view(alert: Alert, state: State, now: float, *, whole: bool = False) -> AlertView:
    """Return what people read of an alert."""
    quiet = state.silence_of(alert, now) if alert.active else None
    about = alert.subject
    acts = [each for each in state.acts.values() if each.alert == alert.id] if whole else []
    return AlertView(
        id=alert.id,
        rule=alert.rule,
        severity=alert.severity,
        state=alert.state,
        subject=about.name,
        model=about.model or None,
        version=about.version,
        device=about.device or None,
        label=about.label or None,
        reason=alert.reason,
        began_at=alert.began_at,
        fired_at=alert.fired_at,
        last_at=alert.last_at,
        ended_at=alert.ended_at,
        acknowledged_by=alert.acked_by or None,
        acknowledged_at=alert.acked_at,
        note=alert.note,
        silenced_until=quiet.until if quiet else None,
        actions=tuple(action_view(each) for each in acts),
    )


def alert_views(state: State, now: float, *, resolved: bool) -> list[AlertView]:
    """Return alerts, those that fire first, then the more severe, then the later."""
    chosen = [each for each in state.alerts.values() if resolved or each.active]
    chosen.sort(key=_place)
    return [alert_view(each, state, now) for each in chosen]


def _place(alert: Alert) -> tuple[int, int, float]:
    when = alert.ended_at or alert.fired_at or alert.began_at
    return _STATES.index(alert.state), _SEVERITIES.index(alert.severity), -when


def by_severity(alerts: list[Alert]) -> list[Alert]:
    """Return the more severe first, then the later."""
    return sorted(alerts, key=_place)


def action_view(act: Act) -> AlertActionView:
    """Return what people read of an action."""
    return AlertActionView(
        id=act.id,
        alert=act.alert,
        action=act.action,
        subject=act.subject.name,
        reason=act.reason,
        at=act.at,
        outcome=act.outcome,
        detail=act.detail,
        ended_at=act.ended_at,
    )


def silence_view(silence: Silence) -> SilenceView:
    """Return what people read of a silence."""
    return SilenceView(
        id=silence.id,
        rule=silence.rule,
        subject=silence.subject,
        since=silence.since,
        until=silence.until,
        reason=silence.reason,
        by=silence.by,
    )


def policy_view(policy: Policy, origin: str, error: str = "") -> AlertPolicyView:
    """Return a policy as people read it."""
    own = {each.name for each in policy.rule}
    rules = tuple(
        AlertRuleView(
            name=rule.name,
            kind=rule.kind,
            severity=rule.severity,
            about=rule.about,
            scope=_scope(rule),
            enabled=rule.enabled,
            for_s=rule.for_s,
            clear_for_s=rule.clear_for_s,
            actions=rule.actions,
            origin=origin if rule.name in own else "default",
            settings=rule.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
        for rule in policy.all_rules()
    )
    outputs = [f"webhook {each.name}: {each.url}" for each in policy.webhook]
    if policy.alertmanager is not None:
        outputs.append(f"alertmanager: {policy.alertmanager.url}")
    if policy.mqtt:
        outputs.append("mqtt: the topic alerts below the fleet's root")
    hooks = [f"{each.name}: {each.url or ' '.join(each.command or ())}" for each in policy.hook]
    return AlertPolicyView(
        origin=origin,
        error=error,
        every_s=policy.every,
        dry_run=policy.dry_run,
        rules=rules,
        outputs=tuple(outputs),
        hooks=tuple(hooks),
    )


def _scope(rule: Any) -> str:
    where = "" if rule.to == "all" else f" where {rule.to}"
    per = getattr(rule, "per", "device")
    model = getattr(rule, "model", None)
    return f"each {per}{f' of {model}' if model and per != 'model' else ''}{where}"
