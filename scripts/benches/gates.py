"""How often a rollout is decided wrongly: good releases called off, bad ones let by.

Whole rollouts of 200 devices in three waves (30, 50%, 100%) on a made-up clock, through the
controller's own `rollout.step` and census, and through what a device decides by: its finding is
frozen and its challenger judged after every ten labelled pairs, by the functions of the agent's
probation. What the pairs say is drawn at random.

A good release is a retrained twin: it disagrees with the one before on 6% of all inputs, and wins
as often as it loses over all devices. On single devices it does not: their shares of losses are
Beta(2, 2), or, skewed, 0.38 on four of five and 0.98 on the fifth. Half of the rollouts are of
each kind. Devices refuse by themselves what is worse for them, which is right; those refusals are
counted apart. The negative control is McNemar's test on the pairs of all devices of the first wave
together, looked at every 50 pairs at 5%, as canary tools do it.

Losses are planted with 100 labelled pairs a device, then again with the usual 300, of which the
first 100 are the finding: an abort then comes before the commit.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import mean, median
from typing import Any

import numpy as np

from agent.control import Tally
from agent.core import probation
from fleet.core.census import Census
from fleet.core.evidence import LEAST_DEVICES
from fleet.core.rollout import Assignment, Rollout, step
from fleet.core.statistics.intervals import clopper_pearson
from fleet.core.views import RolloutStatus
from scripts.benches._common import Bar, Result, main, note
from wire.twin import DeploymentReport, Finding, Phase, Probation, Reported, Serving, Status

BARS = [
    Bar("false_aborts", at_most=83),
    Bar("negative_control", at_least=0.15),
    Bar("good_completed", at_least=0.9),
    Bar("power_5pt_by_30", at_least=0.9),
    Bar("power_2pt", at_least=0.8),
    Bar("power_tail", at_least=0.9),
]
DEVICES, FIRST, DISAGREE, LOOK = 200, 30, 0.06, 10
OLD, NEW = "sha256:" + "01" * 32, "sha256:" + "02" * 32
T0 = 1_800_000_000.0
TICK_S = 4.0
START_TICKS = 12
"""The devices of a wave begin their probations at moments of their own within so many ticks."""

Draws = np.ndarray[Any, Any]
Kind = Callable[[np.random.Generator], tuple[Draws, Draws]]
"""Share of inputs that each device disagrees on, and the share of those that it loses."""


def leaning(points: float) -> Kind:
    """Devices of a release that loses so many points on the mean, each with a lean of its own."""
    lost = (1 + points / 100 / DISAGREE) / 2

    def draw(random: np.random.Generator) -> tuple[Draws, Draws]:
        return np.full(DEVICES, DISAGREE), random.beta(4 * lost, 4 * (1 - lost), DEVICES)

    return draw


def skewed(random: np.random.Generator) -> tuple[Draws, Draws]:
    return np.full(DEVICES, DISAGREE), np.where(random.random(DEVICES) < 0.2, 0.98, 0.38)


def _tail(random: np.random.Generator) -> tuple[Draws, Draws]:
    """Equal, but on a fifth of the devices 25 points worse."""
    disagree, lost = leaning(0)(random)
    hit = random.random(DEVICES) < 0.2
    return np.where(hit, 0.31, disagree), np.where(hit, 0.28 / 0.31, lost)


@dataclass
class Course:
    """How one rollout went."""

    status: RolloutStatus
    gate: str
    """That ended it; empty: none did."""
    told: int
    committed: int
    refused: int
    labels: int
    """Of all devices told."""
    pooled: tuple[tuple[int, int], ...]
    """(worse, better) of the first wave's devices together, after every 50 pairs."""


@cache
def _judged(pairs: int, labelled: int, worse: int, better: int) -> probation.Verdict | None:
    return probation.judge(_policy(pairs), _tally(labelled, worse, better), 1.0)


@cache
def _frozen(pairs: int, labelled: int, worse: int, better: int) -> Finding | None:
    return probation.finding(_policy(pairs), _tally(labelled, worse, better))


@cache
def _policy(pairs: int) -> Probation:
    return Probation(labelled_pairs=pairs)


def _tally(labelled: int, worse: int, better: int) -> Tally:
    differ = worse + better
    return Tally("digits", NEW, labelled, differ, labelled, worse, better)


def _rollout(pairs: int) -> Rollout:
    ids = tuple(f"cam-{n:03}" for n in range(DEVICES))
    half = DEVICES // 2
    return Rollout(
        id="r-2",
        model="digits",
        version=2,
        manifest=NEW,
        to="all",
        shares=(str(FIRST), "50%", "100%"),
        waves=(ids[:FIRST], ids[FIRST:half], ids[half:]),
        previous=dict.fromkeys(ids, Assignment("digits", 1, OLD, "r-1")),
        started_at=T0,
        probation=_policy(pairs),
    )


class _Device:
    """One device on probation: its pairs, and what it reports."""

    def __init__(self, id: str, pairs: int, worse: Draws, better: Draws, starts: int) -> None:
        self.id, self._pairs = id, pairs
        self._worse, self._better = worse.tolist(), better.tolist()
        self._at = -starts
        self._finding: Finding | None = None
        self._sequence = 1
        self.labelled = 0
        self.ended: Phase | None = None

    def tick(self) -> Reported | None:
        """Let ten pairs pass; return a report where there is news."""
        self._at += 1
        if self.ended is not None or self._at <= 0:
            return None
        self.labelled += LOOK
        worse, better = self._worse[self._at - 1], self._better[self._at - 1]
        said = (self._pairs, self.labelled, worse, better)
        news = False
        if self._finding is None:
            self._finding = _frozen(*said)
            news = self._finding is not None
        verdict = _judged(*said)
        if verdict is not None:
            self.ended = verdict.phase
        elif not news:
            return None
        self._sequence += 1
        took = self.ended is Phase.COMMITTED
        return _report(
            self.id,
            self._sequence,
            NEW if took else OLD,
            DeploymentReport.model_construct(
                model="digits",
                version=2,
                rollout="r-2",
                purpose="rollout",
                manifest=NEW,
                phase=self.ended or Phase.PROBATION,
                since=1,
                reason=verdict.reason if verdict else None,
                detail=verdict.detail if verdict else "",
                labelled_pairs=self.labelled,
                worse=worse,
                better=better,
                finding=self._finding,
            ),
        )


def _report(id: str, sequence: int, manifest: str, latest: DeploymentReport | None) -> Reported:
    return Reported.model_construct(
        device=id,
        desired_revision=1,
        agent="bench",
        boot="b",
        sequence=sequence,
        serving=(_serving(manifest),),
        deployments=(latest,) if latest else (),
    )


@cache
def _serving(manifest: str) -> Serving:
    version = 1 if manifest == OLD else 2
    return Serving(
        model="digits", version=version, manifest=manifest, variant="v", runtime="r", since=1
    )


def run(kind: Kind, pairs: int, seed: int) -> Course:
    """Take one rollout to its end."""
    random = np.random.default_rng(seed)
    disagree, lost = kind(random)
    looks = pairs // LOOK
    differ = random.binomial(LOOK, disagree[:, None], (DEVICES, looks))
    losses = random.binomial(differ, lost[:, None])
    worse, better = losses.cumsum(axis=1), (differ - losses).cumsum(axis=1)
    starts = random.integers(0, START_TICKS, DEVICES)
    rollout, census, now = _rollout(pairs), Census(), T0
    place = {id: n for n, id in enumerate(id for wave in rollout.waves for id in wave)}
    for id in place:
        census.hear_status(Status(device=id, online=True, nonce="b", since=1), now, retained=False)
        census.hear_reported(_report(id, 1, OLD, None), now, retained=False)
    devices: dict[str, _Device] = {}
    rollout, orders = step(rollout, census, now)
    while True:
        for order in orders:
            n = place[order.device]
            devices[order.device] = _Device(
                order.device, pairs, worse[n], better[n], int(starts[n])
            )
        now += TICK_S
        heard = False
        for device in devices.values():
            report = device.tick()
            if report is not None:
                heard |= census.hear_reported(report, now, retained=False)
        # The controller looks when it heard something.
        rollout, orders = step(rollout, census, now) if heard else (rollout, [])
        over = rollout.status is not RolloutStatus.RUNNING
        if over or (all(device.ended is not None for device in devices.values()) and not orders):
            break
    ends = Counter(device.ended for device in devices.values())
    last = rollout.verdicts[-1] if rollout.verdicts else None
    first = slice(0, FIRST)
    by_50 = 50 // LOOK
    pooled = tuple(
        (int(b), int(c))
        for b, c in zip(_growing(worse[first], by_50), _growing(better[first], by_50), strict=True)
    )
    return Course(
        status=rollout.status,
        gate=last.gate if last is not None and last.ruling == "abort" else "",
        told=len(devices),
        committed=ends[Phase.COMMITTED],
        refused=ends[Phase.ROLLED_BACK],
        labels=sum(device.labelled for device in devices.values()),
        pooled=pooled,
    )


def _growing(counts: Draws, by: int) -> list[int]:
    """Return the sums over devices whose pairs come one device after the other."""
    steps = np.diff(counts[:, by - 1 :: by], axis=1, prepend=0)
    return [int(total) for total in steps.reshape(-1).cumsum()]


def peeked(course: Course) -> bool:
    """Whether McNemar's test, looked at every 50 pairs, ever calls the release worse or better."""
    return any(
        worse > better and (worse - better) ** 2 > 3.841 * (worse + better)
        for worse, better in course.pooled
    )


def _told(name: str, courses: list[Course], since: float) -> None:
    ends = Counter(f"{c.status}{' by ' + c.gate if c.gate else ''}" for c in courses)
    words = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    told = sum(c.told for c in courses)
    note(
        f"{name:34} {words}; of {told} devices {sum(c.refused for c in courses)} refused by "
        f"themselves, {sum(c.committed for c in courses)} committed; "
        f"{time.monotonic() - since:.0f} s"
    )


def _many(name: str, kind: Kind, pairs: int, runs: int, seed: int) -> list[Course]:
    since = time.monotonic()
    courses = [run(kind, pairs, seed + n) for n in range(runs)]
    _told(name, courses, since)
    return courses


def aborted(course: Course) -> bool:
    return course.status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED)


def _share(courses: list[Course], test: Callable[[Course], bool]) -> float:
    return mean(test(course) for course in courses)


def measure(quick: bool) -> Result:
    """How often good releases are called off and bad ones found, over whole rollouts."""
    runs, planted = (40, 20) if quick else (1000, 300)
    assert FIRST >= LEAST_DEVICES
    twins = _many("retrained twin", leaning(0), 300, runs, 1_000_000)
    uneven = _many("retrained twin, skewed effects", skewed, 300, runs, 2_000_000)
    better = _many("+1 point", leaning(-1), 300, planted, 3_000_000)
    five = _many("-5 points, 100 pairs", leaning(5), 100, planted, 4_000_000)
    two = _many("-2 points, 100 pairs", leaning(2), 100, planted, 5_000_000)
    tail = _many("a fifth at -25 points, 100 pairs", _tail, 100, planted, 6_000_000)
    later = _many("-5 points, 300 pairs", leaning(5), 300, planted, 7_000_000)
    null = [*twins, *uneven]
    aborts = sum(map(aborted, null))
    # So that a quick run is measured by the same bar: of as many as there are in a full one.
    of_2000 = round(aborts * 2000 / len(null))
    low, high = clopper_pearson(aborts, len(null), 0.9)
    note(
        f"false aborts: {aborts} of {len(null)} ({100 * low:.1f} to {100 * high:.1f}%), by gate: "
        f"{dict(Counter(c.gate for c in null if aborted(c)))}; refused by single devices: "
        f"{sum(c.refused for c in twins) / sum(c.told for c in twins):.1%} of a twin, "
        f"{sum(c.refused for c in uneven) / sum(c.told for c in uneven):.1%} of a skewed one"
    )
    return Result(
        figures={
            "false_aborts": of_2000,
            "rollouts": len(null),
            "negative_control": _share(twins, peeked),
            "good_completed": min(
                _share(each, lambda c: c.status is RolloutStatus.COMPLETED)
                for each in (twins, uneven, better)
            ),
            "labels_per_device": sum(c.labels for c in null) / sum(c.told for c in null),
            "power_5pt_by_30": _share(five, lambda c: aborted(c) and c.told <= FIRST),
            "power_2pt": _share(two, aborted),
            "power_tail": _share(tail, aborted),
            "harmed_median": median(c.committed for c in five),
            "harmed_median_2pt": median(c.committed for c in two),
            "harmed_median_tail": median(c.committed for c in tail),
            "harmed_median_5pt_of_300_pairs": median(c.committed for c in later),
        },
        runs={
            name: [[str(c.status), c.gate, c.told, c.committed, c.refused] for c in courses]
            for name, courses in {
                "twin": twins, "skewed": uneven, "better": better, "five": five, "two": two,
                "tail": tail, "five_of_300_pairs": later,
            }.items()
        },
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("gates", BARS, measure))
