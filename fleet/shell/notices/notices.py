"""Webhooks, an Alertmanager and hooks, as a policy names them. No method waits for any of them."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import httpx

from fleet.core.alert_policy import AlertmanagerOutput, Hook, Policy, WebhookOutput
from fleet.core.alerts import Act, Alert, Outcome
from fleet.shell.notices.hooks import Hooks
from fleet.shell.notices.outlet import Answer, Counts, Outlet, Post, post

SCHEMA = 1
CLOSE_S = 8.0
_RANK = {"info": 0, "warning": 1, "critical": 2}
_RESENDS = 3
"""An Alertmanager forgets an alert that was not sent again so many times."""


class Notices:
    """All outputs of a policy. Alerts come in from one thread; hooks answer from others."""

    def __init__(self, policy: Policy, done: Callable[[str, Outcome, str], None]) -> None:
        """`done` gets an action's id, and what came of it."""
        self._policy = policy
        self._hooks = Hooks(policy.hooks_at_once, done)
        self._webhooks: dict[str, _Webhook] = {}
        self._alertmanager: _Alertmanager | None = None
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Go by another policy; outputs that stay as they are keep what waits for them."""
        before, self._webhooks = self._webhooks, {}
        for output in policy.webhook:
            known = before.get(output.name)
            if known is not None and known.output == output:
                self._webhooks[output.name] = before.pop(output.name)
            else:
                self._webhooks[output.name] = _Webhook(output)
        old = self._alertmanager
        wanted = policy.alertmanager
        if old is None or old.output != wanted:
            self._alertmanager = _Alertmanager(wanted) if wanted is not None else None
            if old is not None:
                old.outlet.close(0.0)
        for each in before.values():
            each.outlet.close(0.0)
        self._hooks.at_once = policy.hooks_at_once
        self._policy = policy

    def tell(self, alert: Alert) -> None:
        """Tell of an alert that fires, or is over."""
        for webhook in self._webhooks.values():
            webhook.tell(alert)
        if self._alertmanager is not None:
            self._alertmanager.tell(alert)

    def firing(self, alerts: Iterable[Alert]) -> None:
        """Say which alerts fire now; they are told again where the policy says so."""
        loud = list(alerts)
        for webhook in self._webhooks.values():
            webhook.firing(loud)
        if self._alertmanager is not None:
            self._alertmanager.firing(loud)

    def run(self, act: Act, hook: Hook, summary: dict[str, Any]) -> None:
        """Call a hook with a summary."""
        self._hooks.run(act, hook, summary)

    def counts(self) -> list[tuple[str, str, int]]:
        """Return output, outcome (delivered, failed or dropped), and how often since start."""
        return [
            (name, outcome, count)
            for name, counts in self.outlets().items()
            for outcome, count in asdict(counts).items()
        ]

    def outlets(self) -> Mapping[str, Counts]:
        """Return what became of posts, by output."""
        found = {f"webhook {name}": each.outlet.counts for name, each in self._webhooks.items()}
        if self._alertmanager is not None:
            found["alertmanager"] = self._alertmanager.outlet.counts
        return found

    def close(self) -> None:
        """End what is under way."""
        deadline = time.monotonic() + CLOSE_S
        outlets = [each.outlet for each in self._webhooks.values()]
        if self._alertmanager is not None:
            outlets.append(self._alertmanager.outlet)
        for outlet in outlets:  # all at once: each waits for one answer at the most
            outlet.close(0.0)
        self._hooks.close(CLOSE_S)
        for outlet in outlets:
            outlet.close(max(0.0, deadline - time.monotonic()))


class _Webhook:
    """One address that every alert is posted to."""

    def __init__(self, output: WebhookOutput) -> None:
        self.output = output
        self.outlet = Outlet(f"webhook {output.name}", self._post, output.timeout)
        self._told: dict[str, float] = {}
        """When each alert that fires was told last."""

    def tell(self, alert: Alert) -> None:
        if _RANK[alert.severity] < _RANK[self.output.severity]:
            return
        if alert.active:
            self._told[alert.id] = time.monotonic()
        else:
            self._told.pop(alert.id, None)
        text = json.dumps({"schema": SCHEMA, "alert": alert_fields(alert)})
        self.outlet.put(Post(f"{alert.id}-{alert.state}-{time.time_ns():x}", text.encode()))

    def firing(self, alerts: list[Alert]) -> None:
        repeat = self.output.repeat
        if repeat is None:
            return
        now = time.monotonic()
        for alert in alerts:
            if now - self._told.setdefault(alert.id, now) >= repeat:
                self.tell(alert)
        ids = {alert.id for alert in alerts}
        self._told = {id: at for id, at in self._told.items() if id in ids}

    def _post(self, http: httpx.Client, each: Post) -> Answer:
        return post(http, self.output.url, each.body, each.id, self.output.secret_file)


class _Alertmanager:
    """A Prometheus Alertmanager, which wants to hear again and again of what still fires."""

    def __init__(self, output: AlertmanagerOutput) -> None:
        self.output = output
        self.outlet = Outlet("alertmanager", self._post, output.timeout)
        self._url = f"{output.url.rstrip('/')}/api/v2/alerts"
        self._sent: frozenset[str] = frozenset()
        self._sent_at = 0.0

    def tell(self, alert: Alert) -> None:
        if not alert.active:
            self._put([alert])

    def firing(self, alerts: list[Alert]) -> None:
        ids = frozenset(alert.id for alert in alerts)
        now = time.monotonic()
        if not alerts or (ids <= self._sent and now - self._sent_at < self.output.resend):
            return
        self._sent, self._sent_at = ids, now
        if not self.outlet.waiting:  # or it would get the same twice when it is there again
            self._put(alerts)

    def _put(self, alerts: list[Alert]) -> None:
        ends = time.time() + _RESENDS * max(self.output.resend, 60.0)
        body = json.dumps([self._fields(alert, ends) for alert in alerts]).encode()
        self.outlet.put(Post(f"{time.time_ns():x}", body))

    def _fields(self, alert: Alert, ends: float) -> dict[str, Any]:
        about = alert.subject
        key, _, value = about.label.partition("=")
        labels = {
            "alertname": alert.rule,
            "severity": alert.severity,
            "subject": about.name,
            "model": about.model,
            "version": str(about.version) if about.version is not None else "",
            "device": about.device,
            **({f"label_{key.replace('-', '_')}": value} if about.label else {}),
            **self.output.labels,
        }
        return {
            "labels": {name: text for name, text in labels.items() if text},
            "annotations": {"summary": alert.reason, "alert": alert.id},
            "startsAt": _rfc3339(alert.fired_at or alert.began_at),
            "endsAt": _rfc3339(ends if alert.active else alert.ended_at or time.time()),
        }

    def _post(self, http: httpx.Client, each: Post) -> Answer:
        return post(http, self._url, each.body, each.id, None)


def alert_fields(alert: Alert) -> dict[str, Any]:
    """Return what a webhook is told of an alert; fields are only ever added."""
    about = alert.subject
    return {
        "id": alert.id,
        "rule": alert.rule,
        "severity": alert.severity,
        "state": alert.state,
        "subject": about.name,
        "model": about.model or None,
        "version": about.version,
        "device": about.device or None,
        "label": about.label or None,
        "reason": alert.reason,
        "began_at": alert.began_at,
        "fired_at": alert.fired_at,
        "ended_at": alert.ended_at,
    }


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
