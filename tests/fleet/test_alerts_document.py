"""docs/alerts.md and its example say what is so."""

import re
from pathlib import Path

from pydantic import BaseModel

from fleet.core.alert_policy import (
    DEFAULT_RULES,
    KINDS,
    AccuracyRule,
    AlertmanagerOutput,
    CrashRule,
    DriftRule,
    GaugeRule,
    Hook,
    LatencyRule,
    LossRule,
    Policy,
    RateRule,
    SilentRule,
    WebhookOutput,
    words_of,
)
from fleet.shell.alerting import read_file

DOCS = Path(__file__).parents[2] / "docs"
TABLES: tuple[type[BaseModel], ...] = (
    Policy, AccuracyRule, RateRule, LatencyRule, DriftRule, CrashRule, LossRule, SilentRule,
    GaugeRule, WebhookOutput, AlertmanagerOutput, Hook,
)  # fmt: skip
ARE_TABLES = {"rule", "webhook", "alertmanager", "hook"}


def test_the_example_is_a_policy_and_uses_every_kind_of_output() -> None:
    policy = read_file(DOCS / "alerts.example.toml")

    assert {each.name for each in policy.rule} > {"accuracy-labelled", "broken-release", "drift"}
    assert policy.hook and policy.webhook and policy.alertmanager is not None
    assert "battery" not in {each.name for each in policy.rules()}


def test_every_setting_kind_and_default_rule_is_documented() -> None:
    words = set(re.findall(r"`([a-z_-]+)`", (DOCS / "alerts.md").read_text()))

    settings = {
        field.alias or name for table in TABLES for name, field in table.model_fields.items()
    }
    assert settings - ARE_TABLES - words == set()
    assert set(KINDS) - words == set()
    assert {each.name for each in DEFAULT_RULES} - words == set()


def test_the_document_tells_severity_and_patience_of_the_default_rules() -> None:
    rows = {
        name.strip("` "): [cell.strip() for cell in row.split("|")]
        for row in (DOCS / "alerts.md").read_text().splitlines()
        if row.startswith("| `") and row.count("|") == 6
        for name in row.split("|")[1].split(",")
    }

    for rule in DEFAULT_RULES:
        _, names, severity, _, patience, does, _ = rows[rule.name]
        of_each = patience.split(", ")
        place = [each.strip("` ") for each in names.split(",")].index(rule.name)
        told = of_each[place] if len(of_each) > 1 else patience
        assert severity == rule.severity
        assert told == (words_of(rule.for_s) if rule.for_s else "")
        assert bool(does) == bool(rule.actions)
