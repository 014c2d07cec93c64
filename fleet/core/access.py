"""Who may say what on the embedded broker: read off the topic table, written as its rules.

A device has no wildcard of its own choosing: it writes exact leaves, never its orders, an
acknowledgement, or the bytes that all devices share.
"""

import re
from collections.abc import Mapping
from typing import Literal

from wire.topics import ROOT, RULES, Kind, controller_filters

Role = Literal["controller", "device", "observer"]
ROLES: tuple[Role, ...] = ("controller", "device", "observer")
"""An observer hears what fires, and says nothing."""

QUEUE_BYTES = 64 * 1024 * 1024
"""What may wait for one slow client."""
MESSAGE_BYTES = 1024 * 1024
"""Longest message a broker takes in."""


def may_publish(role: Role, root: str = ROOT) -> list[str]:
    """Return the filters of all topics that `role` writes."""
    return [_filter(rule.pattern, root) for rule in RULES.values() if rule.writer == role]


def may_subscribe(role: Role, root: str = ROOT) -> list[str]:
    """Return the filters that `role` may subscribe to."""
    if role == "controller":
        return controller_filters(root)
    alerts = _filter(RULES[Kind.ALERTS].pattern, root)
    if role == "observer":
        return [alerts]
    # Its own status shows a device another agent with its id.
    shared = f"{root}/a/+/+"
    orders = [each for each in may_publish("controller", root) if each != alerts]
    return [*orders, _filter(RULES[Kind.STATUS].pattern, root), shared]


def mosquitto_acl(root: str = ROOT) -> str:
    """Return the `acl_file` of mosquitto: what is not listed is denied."""
    lines: list[str] = []
    for role in ROLES:
        lines.append(f"user {role}")
        lines += [f"topic write {topic}" for topic in may_publish(role, root)]
        lines += [f"topic read {topic}" for topic in may_subscribe(role, root)]
    return "\n".join(lines) + "\n"


def nats_users(passwords: Mapping[Role, str], root: str = ROOT) -> str:
    """Return the `users` list of a NATS server: what is not listed is denied.

    So nobody publishes to `$JS.>`, `$MQTT.>` or `$SYS.>`, through which the stored state could
    be wiped.
    """
    return "".join(
        f"    {{ user: {role}, password: {_quoted(passwords[role])}, permissions: {{\n"
        f"      publish: {{ {_publishes(may_publish(role, root))} }}\n"
        f"      subscribe: {{ allow: [{_subjects(may_subscribe(role, root))}, {_INTERNAL}] }}\n"
        "    } }\n"
        for role in ROLES
    )


# How the server hands a QoS 1 subscriber its messages.
_INTERNAL = '"$MQTT.sub.>", "$MQTT.deliver.pubrel.>"'


def _filter(pattern: str, root: str) -> str:
    return f"{root}/" + re.sub(r"\{[^}]+\}", "+", pattern)


def _publishes(filters: list[str]) -> str:
    # An empty list would allow everything.
    return f"allow: [{_subjects(filters)}]" if filters else 'deny: [">"]'


def _subjects(filters: list[str]) -> str:
    return ", ".join(_quoted(each.replace("/", ".").replace("+", "*")) for each in filters)


def _quoted(text: str) -> str:
    return f'"{text}"'
