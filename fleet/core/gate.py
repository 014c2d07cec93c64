"""What a device's answer to a release is, and when too many refused it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet.core.census import Device
from wire.twin import DeploymentReport, Phase, Reason


class Standing(StrEnum):
    """How one device that was told stands to the release."""

    WORKING = "working"
    """Told, and not at an end; perhaps it has not even heard of it."""
    COMMITTED = "committed"
    REFUSED = "refused"
    """It ended badly, or was taken back after the commit. This stands, whatever comes later."""
    DROPPED = "dropped"
    """The device gave up for another order: evidence of nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A standing, with the device's own words for it."""

    standing: Standing
    phase: Phase | None = None
    reason: Reason | None = None
    detail: str = ""
    labelled: int = 0
    """Pairs that a refusal rests on, and how they went."""
    worse: int = 0
    better: int = 0


def judge(before: Answer, device: Device, model: str, rollout: str, manifest: str) -> Answer:
    """Return a device's answer from its latest report.

    A refusal is never unsaid, so that reports that are late or repeated, or a restart that
    forgets, change nothing. Only a refusal follows a commit: a crash after it, seen as the
    device's own fallback or as another release in service.
    """
    if before.standing is Standing.REFUSED:
        return before
    report = device.deployment(model)
    if report is not None and report.rollout == rollout:
        if report.purpose == "fallback":
            return _refused(report, report.detail or "it fell back after the commit")
        if report.purpose == "rollout" and report.manifest == manifest:
            return _judge_deployment(before, report, device, model)
    return before


def _judge_deployment(
    before: Answer, report: DeploymentReport, device: Device, model: str
) -> Answer:
    if report.phase in _BAD:
        return _refused(report, report.detail)
    if report.phase is Phase.COMMITTED:
        serving = device.serving(model)
        if serving is not None and serving.manifest != report.manifest:
            return _refused(report, f"committed, but {serving.model}@{serving.version} serves")
        return Answer(Standing.COMMITTED, report.phase, report.reason, report.detail)
    if before.standing is Standing.COMMITTED:
        return before
    standing = Standing.DROPPED if report.phase is Phase.SUPERSEDED else Standing.WORKING
    return Answer(standing, report.phase, report.reason, report.detail)


_BAD = frozenset({Phase.REJECTED, Phase.FAILED, Phase.TIMED_OUT, Phase.ROLLED_BACK})


def _refused(report: DeploymentReport, detail: str) -> Answer:
    return Answer(
        Standing.REFUSED,
        report.phase,
        report.reason,
        detail,
        report.labelled_pairs,
        report.worse,
        report.better,
    )


def verdict(answers: Mapping[str, Answer], release: str, limit_percent: int) -> str | None:
    """Return why to abort, in words and numbers, or None while it is bearable.

    `answers` are those of all devices told. Devices without an answer count among the told:
    silence is neither for nor against a release.
    """
    refused = {id: a for id, a in answers.items() if a.standing is Standing.REFUSED}
    if not refused or 100 * len(refused) <= limit_percent * len(answers):
        return None
    devices = f"{len(refused)} of {len(answers)} {plural(len(answers), 'device')}"
    return f"{devices} refused {release}: {_reasons(refused)}; limit {limit_percent}%"


def _reasons(refused: Mapping[str, Answer]) -> str:
    words = Counter(_word(answer) for answer in refused.values())
    text = ", ".join(
        word if len(words) == 1 else f"{word} {count}" for word, count in words.most_common()
    )
    common = words.most_common(1)[0][0]
    example = next(
        (f" ({id}: {a.detail})" for id, a in sorted(refused.items())
         if a.detail and _word(a) == common),
        "",
    )  # fmt: skip
    return text + example


def _word(answer: Answer) -> str:
    return str(answer.reason or answer.phase or "refused")


def plural(count: int, noun: str) -> str:
    """Return the noun as the count asks for."""
    return noun if count == 1 else noun + "s"
