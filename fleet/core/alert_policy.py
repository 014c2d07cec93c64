"""What is worth an alert, whom it is told to and what is done about it: `alerts.toml`, checked.

A file adds to the rules that come with the controller; one of the same name takes its place.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from fleet.core.errors import FleetError
from fleet.core.target import parse_target
from fleet.core.views import Refusal
from wire.command import VERBS
from wire.ids import ModelName, check_id

MAX_POLICY_RULES = 200
MAX_OUTPUTS = 8
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_LONGEST_S = 366 * 86_400.0


def _seconds(value: object) -> object:
    """Read `90`, `90s`, `15m`, `2h` or `1d`."""
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,9})(ms|[smhd]?)", value)
        if match is None:
            raise ValueError(f"expected a duration such as 90s, 15m, 2h or 1d, got {value[:40]!r}")
        return int(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a duration such as 90s, 15m, 2h or 1d")
    return value


def words_of(seconds: float) -> str:
    """Return a duration as it is written in a policy: `90s`, `15m`, `2h`, `1d`."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{int(seconds // _UNITS[unit])}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


Duration = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, le=_LONGEST_S),
    PlainSerializer(words_of, return_type=str),
]
Span = Annotated[Duration, Field(gt=0)]
ShareOf1 = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, AfterValidator(check_id)]
Severity = Literal["info", "warning", "critical"]


def _target(text: str) -> str:
    try:
        parse_target(text)
    except Refusal as refusal:
        raise ValueError(refusal.error.removeprefix("--to: ")) from None
    return text


TargetText = Annotated[str, Field(max_length=300), AfterValidator(_target)]


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected http://HOST/PATH or https://HOST/PATH, got {text[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected no name or password in it")
    return text


HttpUrl = Annotated[str, Field(max_length=2000), AfterValidator(_http_url)]


def _action(text: str) -> str:
    word, colon, rest = text.partition(":")
    if word in ("pause", "rollback", "quarantine") and not colon:
        return text
    if word == "command" and rest in VERBS:
        return text
    if word == "hook" and rest:
        check_id(rest)
        return text
    verbs = ", ".join(f"command:{verb}" for verb in VERBS)
    raise ValueError(
        f"expected pause, rollback, quarantine, hook:NAME or one of {verbs}, got {text[:60]!r}"
    )


Action = Annotated[str, AfterValidator(_action)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Rule(_Table):
    """What all rules have."""

    name: Name
    severity: Severity = "warning"
    enabled: bool = True
    to: TargetText = "all"
    """The devices that are looked at."""
    for_s: Annotated[Duration, Field(alias="for")] = 300.0
    """How long it must hold, look after look, before the alert fires."""
    clear_for: Duration | None = None
    """How long it must be over before the alert resolves; None: as long as `for`."""
    every: Span | None = None
    """How often it is looked at; None: as often as the policy says."""
    actions: Annotated[tuple[Action, ...], Field(max_length=8)] = ()
    act_again: Span | None = None
    """While it fires and nobody has acknowledged it, act again after this long."""
    dry_run: bool = False
    """Only say what would be done."""

    @property
    def clear_for_s(self) -> float:
        """How long it must be over."""
        return self.for_s if self.clear_for is None else self.clear_for

    def hooks(self) -> list[str]:
        """Return the names of the hooks among the actions."""
        return [each.partition(":")[2] for each in self.actions if each.startswith("hook:")]

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        raise NotImplementedError


class _ModelRule(_Rule):
    """A rule about what a model does."""

    model: ModelName | None = None
    """None: every model."""
    per: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")] = "release"
    """What one alert is about: a `release`, a `model`, a `device`, or devices of a release that
    have one value of the label named here."""
    window: Span = 3600.0
    """How far back it looks."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for action in self.actions:
            if action in ("rollback", "quarantine") and self.per == "model":
                raise ValueError(f'{action} needs per = "release", not a whole model')
            if action.startswith("command:") and self.per != "device":
                raise ValueError(f'{action} needs per = "device"')
        return self


class _DeviceRule(_Rule):
    """A rule about how a device fares."""

    group_over: Annotated[int, Field(ge=1, le=1000)] = 20
    """More devices than this at once are one alert."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for action in self.actions:
            if action in ("pause", "rollback", "quarantine"):
                raise ValueError(f"{action} needs a rule about a model")
        return self


STATED = ("accuracy", "held_out_accuracy", "validation_accuracy")
"""Metrics of a manifest that state its accuracy."""


class AccuracyRule(_ModelRule):
    """Accuracy of one kind is below a bound, with confidence."""

    kind: Literal["accuracy"]
    evidence: Literal["labelled", "golden", "estimated"] = "labelled"
    below: ShareOf1 | None = None
    drop: ShareOf1 | None = None
    """Instead of `below`: this much below what the release's manifest states. Golden accuracy:
    below what half of the devices reach, since they all answer the same samples."""
    metric: Annotated[str, Field(max_length=100)] | None = None
    """The metric that states it; None: the first there is of STATED."""
    clear: ShareOf1 | None = None
    """Over when the share is at least this (with `drop`: within this of the metric)."""
    window: Span = 86_400.0
    min_samples: Annotated[int, Field(ge=1)] = 30
    false_alarms_a_year: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.below is None) == (self.drop is None):
            raise ValueError("expected either below or drop")
        if self.evidence == "estimated" and "rollback" in self.actions:
            raise ValueError(
                "estimated accuracy alone never rolls back: it follows the inputs, and is blind to"
                " what became of their labels; let a rule about labelled or golden accuracy do it"
            )
        if self.evidence == "golden" and self.drop is not None and self.per != "device":
            raise ValueError('golden accuracy with drop needs per = "device"')
        if self.clear is not None and self.below is not None and self.clear < self.below:
            raise ValueError(f"expected clear to be at least below, {self.below:g}")
        if self.clear is not None and self.drop is not None and self.clear > self.drop:
            raise ValueError(f"expected clear to be at most drop, {self.drop:g}")
        return self

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        bound = (
            f"{100 * self.below:g}%"
            if self.below is not None
            else f"what it should be by {100 * (self.drop or 0):g} points"
        )
        return f"{self.evidence} accuracy below {bound} in {words_of(self.window)}"


_BAD_ENDS = {"errors": "errors", "slo": "answers over budget", "drops": "refused for want of room"}


class RateRule(_ModelRule):
    """Too large a share of requests ends badly, with confidence."""

    kind: Literal["errors", "slo", "drops"]
    above: ShareOf1
    clear: Annotated[float, Field(ge=0, lt=1)] | None = None
    min_samples: Annotated[int, Field(ge=1)] = 100
    false_alarms_a_year: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.clear is not None and self.clear > self.above:
            raise ValueError(f"expected clear to be at most above, {self.above:g}")
        return self

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        return f"{_BAD_ENDS[self.kind]} above {100 * self.above:g}% in {words_of(self.window)}"


def _one_label(rule: "LatencyRule | DriftRule") -> None:
    """Refuse a target that sums by one label cannot tell apart."""
    terms = parse_target(rule.to).terms
    if terms is None or len(terms) > 1 or any(key in ("device", "arch") for key, _ in terms):
        raise ValueError(f'expected to = "all" or one LABEL=VALUE, got {rule.to!r}')
    if terms and rule.per not in ("release", "model"):
        raise ValueError("expected either a label in per, or one in to")


class LatencyRule(_ModelRule):
    """A quantile of the latency is above a bound, with confidence."""

    kind: Literal["latency"]
    quantile: ShareOf1 = 0.95
    above_ms: Annotated[float, Field(gt=0)]
    clear_ms: Annotated[float, Field(gt=0)] | None = None
    min_samples: Annotated[int, Field(ge=1)] = 100

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.per == "device":
            raise ValueError('expected per = "release", "model" or a label')
        _one_label(self)
        if self.clear_ms is not None and self.clear_ms > self.above_ms:
            raise ValueError(f"expected clear_ms to be at most {self.above_ms:g}")
        return self

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        return (
            f"p{100 * self.quantile:g} latency above {self.above_ms:g} ms"
            f" in {words_of(self.window)}"
        )


class DriftRule(_ModelRule):
    """Inputs or answers look unlike the release's baseline. Alone it never rolls back."""

    kind: Literal["drift"]
    window: Annotated[Span, Field(ge=3600, le=7 * 86_400)] = 21_600.0
    """Whole hours that are judged together; each stretch once, when it is over."""
    min_effect: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Least Jensen-Shannon distance beyond chance; what is smaller is no drift, however sure."""
    false_discoveries: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Of windows without any drift this share alarms, at most."""
    min_samples: Annotated[int, Field(ge=1)] = 50
    needed: Annotated[int, Field(ge=1, le=8)] = 3
    of: Annotated[int, Field(ge=1, le=8)] = 3
    """Fires when `needed` of the latest `of` windows drifted; `for` comes on top."""
    quiet: Annotated[int, Field(ge=1, le=8)] = 3
    for_s: Annotated[Duration, Field(alias="for")] = 0.0

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if "rollback" in self.actions:
            raise ValueError(
                "drift alone never rolls back: inputs that changed do not show that"
                " answers are worse; let a rule about accuracy do it, or use hook, pause"
            )
        if self.per in ("device", "model"):
            raise ValueError('expected per = "release" or a label')
        _one_label(self)
        if self.needed > self.of:
            raise ValueError(f"expected needed to be at most of, {self.of}")
        if self.window % 3600:
            raise ValueError("expected a window of whole hours")
        return self

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        return (
            f"drift in {self.needed} of {self.of} windows of {words_of(self.window)},"
            f" effect {self.min_effect:g} or more"
        )


class CrashRule(_DeviceRule):
    """The agent or its engine begins again and again."""

    kind: Literal["crashes"]
    times: Annotated[int, Field(ge=1, le=64)] = 3
    window: Span = 900.0
    for_s: Annotated[Duration, Field(alias="for")] = 0.0

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        return f"{self.times} or more restarts in {words_of(self.window)}"


class LossRule(_DeviceRule):
    """Telemetry of a device is lost: thrown away for want of room, or open at an unclean end."""

    kind: Literal["outbox-drops", "gaps"]
    more_than: Annotated[int, Field(ge=0)] = 0
    window: Span = 3600.0
    for_s: Annotated[Duration, Field(alias="for")] = 0.0

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        what = "items dropped" if self.kind == "outbox-drops" else "gaps"
        return f"more than {self.more_than} {what} in {words_of(self.window)}"


class SilentRule(_DeviceRule):
    """A device says nothing."""

    kind: Literal["silent"]
    after: Span = 900.0
    for_s: Annotated[Duration, Field(alias="for")] = 0.0

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        return f"silent for {words_of(self.after)}"


class GaugeRule(_DeviceRule):
    """A gauge of a device's latest health report is beyond a bound."""

    kind: Literal["disk", "memory", "temperature", "throttled", "pressure", "clock", "battery"]
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    """Over when it is at least (at most) this; None: the bound itself."""
    resource: Literal["cpu", "memory", "io"] = "memory"
    """For `pressure`: who waits for what."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        falls = self.kind in ("disk", "memory", "battery")
        if self.kind == "throttled":
            if (self.above, self.below, self.clear) != (None, None, None):
                raise ValueError("expected no bound: it is so, or not")
            return self
        bound, other = (self.below, self.above) if falls else (self.above, self.below)
        word = "below" if falls else "above"
        if bound is None or other is not None:
            raise ValueError(f"expected {word} = {GAUGE_UNITS[self.kind]}")
        if self.clear is not None and (self.clear < bound if falls else self.clear > bound):
            raise ValueError(f"expected clear to be at {'least' if falls else 'most'} {bound:g}")
        return self

    @property
    def about(self) -> str:
        """What it looks at, in words."""
        match self.kind:
            case "throttled":
                return "processor slowed down by heat or low voltage"
            case "pressure":
                return f"{self.above:g}% of a minute waiting for {self.resource}"
            case "clock":
                return f"clock not synchronised, or off by more than {self.above:g} s"
            case "temperature":
                return f"temperature above {self.above:g} °C"
        what = {"disk": "free disk", "memory": "available memory", "battery": "battery"}[self.kind]
        return f"{what} below {self.below:g}%"


GAUGE_UNITS = {
    "disk": "percent free",
    "memory": "percent available",
    "battery": "percent",
    "temperature": "degrees Celsius",
    "pressure": "percent of a minute",
    "clock": "seconds off",
}

Rule = Annotated[
    AccuracyRule
    | RateRule
    | LatencyRule
    | DriftRule
    | CrashRule
    | LossRule
    | SilentRule
    | GaugeRule,
    Field(discriminator="kind"),
]
KINDS = (
    "accuracy", "errors", "slo", "drops", "latency", "drift", "crashes", "outbox-drops", "gaps",
    "silent", "disk", "memory", "temperature", "throttled", "pressure", "clock", "battery",
)  # fmt: skip
ModelRule = AccuracyRule | RateRule | LatencyRule | DriftRule
DeviceRule = CrashRule | LossRule | SilentRule | GaugeRule


class WebhookOutput(_Table):
    """An address that alerts are posted to."""

    name: Name
    url: HttpUrl
    secret_file: Annotated[str, Field(max_length=1000)] | None = None
    """Its one line signs what is posted; see docs/alerts.md."""
    severity: Severity = "info"
    """The least that is told."""
    repeat: Span | None = None
    """Tell a firing alert again after this long."""
    timeout: Annotated[Span, Field(le=60)] = 10.0


class AlertmanagerOutput(_Table):
    """A Prometheus Alertmanager."""

    url: HttpUrl
    labels: Annotated[dict[str, str], Field(max_length=16)] = {}
    """On top of those of every alert."""
    resend: Span = 60.0
    timeout: Annotated[Span, Field(le=60)] = 10.0


class Hook(_Table):
    """What is called with a summary of the data, to train anew or to repair."""

    name: Name
    command: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)] | None = None
    """A program and its arguments; the summary is its standard input."""
    url: HttpUrl | None = None
    """Instead of a command: an address the summary is posted to."""
    secret_file: Annotated[str, Field(max_length=1000)] | None = None
    timeout: Span = 3600.0
    """Then the command and its children are killed."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("expected either command or url")
        return self


class Policy(_Table):
    """All of `alerts.toml`."""

    every: Annotated[Span, Field(ge=0.1)] = 60.0
    dry_run: bool = False
    """Whatever a rule says, only say what would be done."""
    defaults: bool = True
    """Whether the rules that come with the controller hold beside those of the file."""
    mqtt: bool = True
    """Whether the alerts that fire are published on the fleet's broker."""
    max_alerts: Annotated[int, Field(ge=1, le=10_000)] = 1000
    act_once_in: Span = 3600.0
    """One kind of action is done to one subject at most once in this time."""
    hooks_at_once: Annotated[int, Field(ge=1, le=8)] = 2
    rule: Annotated[tuple[Rule, ...], Field(max_length=MAX_POLICY_RULES)] = ()
    webhook: Annotated[tuple[WebhookOutput, ...], Field(max_length=MAX_OUTPUTS)] = ()
    alertmanager: AlertmanagerOutput | None = None
    hook: Annotated[tuple[Hook, ...], Field(max_length=16)] = ()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for what, names in (
            ("rule", [each.name for each in self.rule]),
            ("webhook", [each.name for each in self.webhook]),
            ("hook", [each.name for each in self.hook]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: two of them are named {twice[0]!r}")
        known = {each.name for each in self.hook}
        for rule in self.rule:
            missing = [name for name in rule.hooks() if name not in known]
            if missing:
                raise ValueError(f"{rule.name}: no [[hook]] is named {missing[0]!r}")
        return self

    def rules(self) -> list[Rule]:
        """Return the rules that are looked at."""
        return [each for each in self.all_rules() if each.enabled]

    def all_rules(self) -> list[Rule]:
        """Return every rule, those that come with the controller first."""
        named = {each.name for each in self.rule}
        own = [each for each in DEFAULT_RULES if each.name not in named] if self.defaults else []
        return [*own, *self.rule]


def read_policy(values: Mapping[str, Any], where: str) -> Policy:
    """Return the policy that a TOML file holds.

    Raises:
        FleetError: it makes no sense; says where.
    """
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise FleetError(
            f"{where}: {_first(error, values)}", "docs/alerts.md lists what a policy may say"
        ) from None


def _first(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Return the first mistake as `rule "disk-full": below: what is wrong`."""
    first = error.errors(include_url=False)[0]
    place = list(first["loc"])
    words = []
    if len(place) > 1 and isinstance(place[1], int):
        table = place[0]
        entries = values.get(str(table))
        entry = entries[place[1]] if isinstance(entries, list) else {}
        name = entry.get("name") if isinstance(entry, dict) else None
        words.append(f"{table} {name!r}" if isinstance(name, str) else f"{table} {place[1] + 1}")
        # What stands between is the kind that the rule was read as.
        place = place[3:] if table == "rule" else place[2:]
    words += [str(each) for each in place]
    kind = first["type"]
    if kind == "union_tag_invalid":
        text = f"kind: expected one of {', '.join(KINDS)}, got {first['ctx']['tag'][:40]!r}"
    elif kind == "union_tag_not_found":
        text = f"expected a kind: one of {', '.join(KINDS)}"
    elif kind == "extra_forbidden":
        text = "no such key"
    elif kind == "missing":
        text = "missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
    return ": ".join([*words, text])


DEFAULT_RULES: tuple[Rule, ...] = (
    AccuracyRule.model_validate(
        {
            "name": "accuracy-labelled",
            "kind": "accuracy",
            "severity": "critical",
            "drop": 0.05,
            "clear": 0.03,
            "for": "30m",
            "every": "5m",
            "actions": ["pause"],
        }
    ),
    AccuracyRule.model_validate(
        {
            "name": "accuracy-golden",
            "kind": "accuracy",
            "evidence": "golden",
            "drop": 0.05,
            "clear": 0.03,
            "for": "30m",
            "every": "5m",
            "per": "device",
        }
    ),
    AccuracyRule.model_validate(
        {
            "name": "accuracy-estimated",
            "kind": "accuracy",
            "evidence": "estimated",
            "drop": 0.1,
            "clear": 0.07,
            "for": "1h",
            "every": "5m",
        }
    ),
    DriftRule.model_validate({"name": "drift", "kind": "drift", "every": "5m"}),
    RateRule.model_validate(
        {
            "name": "errors",
            "kind": "errors",
            "severity": "critical",
            "above": 0.05,
            "clear": 0.02,
            "for": "10m",
            "actions": ["pause"],
        }
    ),
    RateRule.model_validate({"name": "slo", "kind": "slo", "above": 0.05, "clear": 0.03,
                             "for": "10m"}),
    RateRule.model_validate({"name": "drops", "kind": "drops", "above": 0.01, "clear": 0.005,
                             "for": "10m"}),
    CrashRule.model_validate({"name": "crashes", "kind": "crashes"}),
    SilentRule.model_validate({"name": "silent", "kind": "silent", "after": "30m"}),
    GaugeRule.model_validate({"name": "disk", "kind": "disk", "below": 5, "clear": 8,
                              "for": "30m"}),
    GaugeRule.model_validate({"name": "memory", "kind": "memory", "below": 5, "clear": 8,
                              "for": "15m"}),
    GaugeRule.model_validate(
        {"name": "memory-pressure", "kind": "pressure", "above": 20, "clear": 10, "for": "15m"}
    ),
    GaugeRule.model_validate({"name": "temperature", "kind": "temperature", "above": 85,
                              "clear": 80, "for": "15m"}),
    GaugeRule.model_validate({"name": "throttled", "kind": "throttled", "severity": "info",
                              "for": "30m"}),
    GaugeRule.model_validate({"name": "clock", "kind": "clock", "above": 600, "for": "30m"}),
    GaugeRule.model_validate({"name": "battery", "kind": "battery", "below": 10, "clear": 20}),
    LossRule.model_validate({"name": "outbox-drops", "kind": "outbox-drops"}),
    LossRule.model_validate({"name": "gaps", "kind": "gaps", "more_than": 3, "severity": "info"}),
)  # fmt: skip
"""What holds without any file.

Calm on purpose: critical is only what goes wrong with a whole release, and shown with confidence;
one device among many wakes nobody.
"""
