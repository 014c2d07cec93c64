"""Alerts, as lines of text."""

from collections.abc import Sequence

from fleet.cli.views import NOTHING, Lines, facts_of, table
from fleet.cli.words import ago, lasting, spaced
from fleet.core.alert_views import AlertActionView, AlertPolicyView, AlertView, SilenceView


def alert_list(alerts: Sequence[AlertView], now: float) -> Lines:
    """Return `fleet alerts list`."""
    if not alerts:
        return ["no alerts"]
    return table(
        ("ALERT", "SEVERITY", "STATE", "SUBJECT", "SINCE", "WHY"),
        [
            (each.id, each.severity, _state(each), each.subject, _since(each, now), each.reason)
            for each in alerts
        ],
    )


def alert_show(alert: AlertView, now: float) -> Lines:
    """Return `fleet alerts show`."""
    fired, ended = alert.fired_at, alert.ended_at
    acked = alert.acknowledged_at
    told = [
        ("why", alert.reason),
        ("began", ago(now - alert.began_at)),
        ("fired", ago(now - fired) if fired else ""),
        ("over", ago(now - ended) if ended else ""),
        ("silenced", f"for {lasting(alert.silenced_until - now)}" if alert.silenced_until else ""),
        ("acked", f"{ago(now - acked)} by {alert.acknowledged_by}" if acked else ""),
        ("note", alert.note),
        *(("action", _action(each, now)) for each in alert.actions),
    ]
    head = f"{alert.id}  {alert.rule}  {alert.severity}  {alert.state}  {alert.subject}"
    return [head, *facts_of(told)]


def silence_list(silences: Sequence[SilenceView], now: float) -> Lines:
    """Return `fleet alerts silences`."""
    if not silences:
        return ["no silences"]
    return table(
        ("SILENCE", "RULE", "SUBJECT", "ENDS IN", "BY", "REASON"),
        [
            (
                each.id,
                each.rule or "any",
                each.subject or "any",
                lasting(each.until - now),
                each.by,
                each.reason or NOTHING,
            )
            for each in silences
        ],
    )


def policy(view: AlertPolicyView) -> Lines:
    """Return `fleet alerts rules`."""
    head = f"{view.origin}: looked at every {lasting(view.every_s)}"
    if view.dry_run:
        head += "; dry run: nothing is done, only said"
    rows = [
        (
            each.name,
            each.severity if each.enabled else "off",
            each.about,
            each.scope,
            lasting(each.for_s) if each.for_s else "at once",
            ", ".join(each.actions) or NOTHING,
            "default" if each.origin == "default" else "file",
        )
        for each in view.rules
    ]
    headers = ("RULE", "SEVERITY", "FIRES ON", "PER", "FOR", "ACTIONS", "FROM")
    lines = [head, *(table(headers, rows) if rows else ["no rules"])]
    lines += [f"tells {each}" for each in view.outputs]
    lines += [f"hook {each}" for each in view.hooks]
    if view.error:
        lines.append(f"error: {view.error}")
    return lines


def _state(alert: AlertView) -> str:
    if alert.silenced_until is not None:
        return f"{alert.state}, silenced"
    return f"{alert.state}, acked" if alert.acknowledged_by and not alert.ended_at else alert.state


def _since(alert: AlertView, now: float) -> str:
    return ago(now - (alert.ended_at or alert.fired_at or alert.began_at))


def _action(action: AlertActionView, now: float) -> str:
    detail = f": {action.detail}" if action.detail else ""
    return f"{action.id} {action.action} {spaced(action.outcome)} {ago(now - action.at)}{detail}"
