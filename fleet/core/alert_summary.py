"""What a maintenance hook is told: numbers of a model, never an input.

The summary is one JSON object; docs/alerts.md has its fields, which are only ever added.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fleet.core.alert_rules import Numbers, drift_verdict, stated_accuracy
from fleet.core.alerts import Act, Alert
from fleet.core.query import DeviceCounts, Query
from fleet.core.scores import Totals
from fleet.core.statistics.drift import DriftPolicy
from fleet.core.statistics.intervals import of_fleet
from fleet.core.suppression import MIN_DEVICES, fold
from wire.manifest import Manifest
from wire.telemetry import MILLION

SCHEMA = 1
_MAX_CLASSES = 1000
_MAX_COHORTS = 50
_MAX_LABELS = 8


def summary(
    act: Act,
    alert: Alert,
    manifests: Mapping[str, Manifest],
    labels: Mapping[str, Mapping[str, str]],
    numbers: Numbers,
    *,
    window_s: float,
    now: float,
) -> dict[str, Any]:
    """Return what is known of the release, or the model, that an alert is about."""
    model, version = act.subject.model, act.subject.version
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "action": act.id,
        "hook": act.action.removeprefix("hook:"),
        "alert": {
            "id": alert.id,
            "rule": alert.rule,
            "severity": alert.severity,
            "subject": alert.subject.name,
            "reason": alert.reason,
            "began_at": alert.began_at,
            "fired_at": alert.fired_at,
        },
        "device": act.subject.device or None,
        "model": model or None,
        "release": act.subject.release or None,
    }
    if not model:
        return told
    query = Query(model, version, since=max(0, int(now - window_s)))
    hours = [each.totals for each in numbers.slices(query, "hour")]
    counts = numbers.devices(query)
    releases = {each.manifest for each in hours}
    newest = [m for digest, m in manifests.items() if digest in releases]
    newest.sort(key=lambda manifest: manifest.version)
    manifest = newest[-1] if newest else None
    told["since"], told["until"] = query.since, int(now)
    told["requests"] = sum(each.requests for each in hours)
    told["errors"] = sum(each.errors for each in hours)
    told["devices"] = len({each.device for each in counts if each.requests})
    told["accuracy"] = accuracies(counts)
    told["stated_accuracy"] = stated_accuracy(manifest) if manifest else None
    told["classes"] = _classes(hours)
    told["drift"] = _drift(manifest, hours) if manifest else None
    told["cohorts"] = _cohorts(counts, labels)
    if manifest is not None:
        told["manifest"] = manifest.digest
        told["description"] = manifest.description
        told["parent"] = manifest.parent
    return told


def accuracies(counts: Sequence[DeviceCounts]) -> dict[str, Any]:
    """Return accuracy of each kind, none blended with another, each with its interval."""
    kinds = {
        "labelled": [(each.correct, each.labelled) for each in counts],
        "golden": [(each.golden_correct, each.golden_labelled) for each in counts],
        "estimated": [
            (round(each.estimate_sum_p / MILLION), each.estimate_samples) for each in counts
        ],
    }
    told: dict[str, Any] = {}
    for kind, pairs in kinds.items():
        share = of_fleet([(min(good, total), total) for good, total in pairs])
        told[kind] = (
            None
            if share is None
            else {
                "share": share.share,
                "low": share.low,
                "high": share.high,
                "samples": share.samples,
                "devices": share.devices,
            }
        )
    return told


def _classes(hours: Sequence[Totals]) -> dict[str, int]:
    counts: dict[int, int] = {}
    for each in hours:
        for place, count in each.predicted.items():
            counts[place] = counts.get(place, 0) + count
    return {str(place): counts[place] for place in sorted(counts)[:_MAX_CLASSES]}


def _drift(manifest: Manifest, hours: Sequence[Totals]) -> dict[str, Any] | None:
    mine = [each for each in hours if each.manifest == manifest.digest]
    verdict = drift_verdict(manifest, mine, DriftPolicy()) if mine else None
    if verdict is None:
        return None
    return {
        "drifted": verdict.alarm,
        "text": verdict.text,
        "features": [
            {
                "name": found.name,
                "drifted": found.alarm,
                "effect": found.drift.effect,
                "p": found.drift.p,
                "adjusted_p": found.adjusted_p,
                "psi": found.drift.psi,
                "where": found.drift.part,
                "samples": found.drift.samples,
                "text": found.drift.text,
            }
            for found in verdict.findings
        ],
    }


def _cohorts(
    counts: Sequence[DeviceCounts], labels: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """Return requests and accuracy by label; small cohorts are told together, or not at all."""
    keys = sorted({key for each in labels.values() for key in each})[:_MAX_LABELS]
    told: dict[str, dict[str, Any]] = {}
    for key in keys:
        devices: dict[str, set[str]] = {}
        for each in counts:
            value = labels.get(each.device, {}).get(key)
            if value is not None:
                devices.setdefault(value, set()).add(each.device)
        shown = fold(devices, MIN_DEVICES)
        for name in sorted(set(shown.values()))[:_MAX_COHORTS]:
            members = {
                id for value, ids in devices.items() if shown.get(value) == name for id in ids
            }
            rows = [each for each in counts if each.device in members]
            told[f"{key}={name}"] = {
                "devices": len(members),
                "requests": sum(each.requests for each in rows),
                "accuracy": accuracies(rows),
            }
    return told
