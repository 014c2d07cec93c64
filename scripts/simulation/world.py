"""The clock, the network and the controller of a simulated fleet.

The controller's side is what `fleet.controller` decides with: Books, Census and `rollout.step`.
Orders and reports arrive as over MQTT with QoS 1 and retained orders: late, never garbled, and
again after a line was lost. Chunks may be lost. Signatures and bytes on disks are left out.
"""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent.core import events as ev
from agent.core.state import Installed, Journal
from fleet.core.books import Books, Release
from fleet.core.gate import Standing
from fleet.core.rollout import Assign, Assignment, Rollout, approve, step
from fleet.core.views import RolloutRequest, RolloutStatus
from scripts.simulation.device import Device
from scripts.simulation.parts import MODEL, T0, Plan, make
from wire.twin import Desired, Probation, Reported, Status

KEEPALIVE_S = 45.0
"""After which a broker tells that a device is gone."""
START_S = 240.0
DEAD_S = 120.0
MOST_S = 30 * 86_400.0
AGAIN_S = 2.0
PARTITION_S = 600.0
REPORTED_EVERY = 25_000
"""Events between two words to whoever watches."""


@dataclass
class Course:
    """How one simulated rollout went. Times are seconds since it started."""

    status: str
    because: str
    took_s: float
    told: int
    counts: dict[str, int]
    harmed: int
    """Devices on which a bad release ever served."""
    harmed_hours: float
    decided_s: float | None
    """When it was called off."""
    gate: str
    waves_s: list[float]
    silent: list[str]
    """Told, and without an answer at the end."""
    violations: list[str]
    events: int
    story: list[tuple[float, str]] = field(default_factory=list)


class World:
    """Everything of one run."""

    def __init__(self, plan: Plan) -> None:
        """Lay out the devices, all of them on the release before."""
        self.plan, self.now, self.events = plan, 0.0, 0
        self.chance = random.Random(plan.seed)
        self._numpy = np.random.default_rng(plan.seed)
        self.old, self.new = make(1), make(2)
        self.made = {each.digest: each for each in (self.old, self.new)}
        self.by_index = {index: each for each in self.made.values() for index in each.frames}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.books = Books()
        for made in (self.old, self.new):
            release = Release(made.digest, made.manifest, T0)
            self.books.keep_release(release, tuple((offer,) for offer in made.offers))
        before = Assignment(MODEL, 1, self.old.digest, "r-0")
        files = tuple(sorted(self.old.files))
        champion = Installed(MODEL, 1, self.old.digest, "v", files, "r-0", int(T0))
        self.devices: dict[str, Device] = {}
        for number in range(plan.devices):
            id = f"d-{number}"
            self.books.assignments[id] = {MODEL: before}
            desired = self.books.desired(id, self.books.assignments[id])
            self.books.revisions[id] = desired.revision
            journal = Journal(desired=desired, champions={MODEL: champion})
            self.devices[id] = Device(self, id, desired, journal)
        self.rollout: Rollout | None = None
        self._news = False
        self._look_s = max(1.0, plan.devices / 4000)
        self._violations: list[str] = []
        self._waves_at: list[float] = []
        self._decided_at: float | None = None
        self.story: list[tuple[float, str]] = []

    # ---- the clock and the network

    def later(self, seconds: float, run: Callable[..., None], *arguments: Any) -> None:
        """Run something when so much time has passed."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), run, arguments))

    def delay(self) -> float:
        """Return how long a message takes: sent again after a loss, as TCP does."""
        took = self.chance.expovariate(1 / self.plan.latency_s)
        while self.chance.random() < self.plan.loss:
            took += AGAIN_S
        return took

    def binomial(self, count: int, share: float) -> int:
        """Draw how many of `count` are so."""
        return int(self._numpy.binomial(count, share)) if count else 0

    def up(self, device: Device, reported: Reported) -> None:
        """Carry a report to the controller."""
        self.later(self.delay(), self._reported, device, reported)

    def _reported(self, device: Device, reported: Reported) -> None:
        if device.alive and device.connected:  # what was on a lost line is said anew
            if self.books.census.hear_reported(reported, T0 + self.now, retained=False):
                self._news = True
            device.give(ev.ReportHeard())

    def online(self, device: Device) -> None:
        """Tell the controller that a device is there."""
        self.later(self.delay(), self._status, device, True)

    def _status(self, device: Device, online: bool) -> None:
        if online is not (device.connected and device.alive):
            return
        nonce = device.state.settings.boot
        status = Status(device=device.id, online=online, nonce=nonce, since=int(T0))
        self.books.census.hear_status(status, T0 + self.now, retained=False)
        self._news = True

    def down(self, device: Device) -> None:
        """Carry the latest order to a device."""
        self.later(self.delay(), self._ordered, device, device.desired)

    def _ordered(self, device: Device, desired: Desired) -> None:
        if device.alive and device.connected:
            device.give(ev.DesiredCame(desired))

    def _lose(self, device: Device, seconds: float) -> None:
        if not device.alive or not device.connected:
            return
        device.disconnect()
        self.later(KEEPALIVE_S, self._status, device, False)
        self.later(seconds, device.connect)

    def _churn(self, device: Device) -> None:
        self._lose(device, self.chance.expovariate(1 / 120))
        self.later(self.chance.expovariate(1 / self.plan.churn_s), self._churn, device)

    def _partition(self) -> None:
        for device in self.devices.values():
            if self.chance.random() < 0.1:
                self._lose(device, PARTITION_S)

    def _die(self, device: Device) -> None:
        device.alive = device.connected = False
        self.later(KEEPALIVE_S, self._status, device, False)

    # ---- the course

    def run(self) -> Iterator[Rollout | None]:
        """Take the rollout to its end, and say now and then where it stands."""
        for device in self.devices.values():
            self.later(self.chance.uniform(0, 60), self._begin, device)
            if self.chance.random() < self.plan.dead:
                self.later(self.chance.uniform(DEAD_S, DEAD_S + 60), self._die, device)
            elif self.plan.churn_s:
                at = START_S + self.chance.expovariate(1 / self.plan.churn_s)
                self.later(at, self._churn, device)
        self.later(START_S, self._start)
        while self._heap:
            at, _, run, arguments = heapq.heappop(self._heap)
            self.now = at
            self.events += 1
            run(*arguments)
            if self.events % REPORTED_EVERY == 0:
                yield self.rollout
            if self.now > MOST_S or (self.rollout is not None and self._over()):
                break
        yield self.rollout

    def _begin(self, device: Device) -> None:
        device.boot()
        device.connect()

    def _start(self) -> None:
        plan = self.plan
        request = RolloutRequest(
            release=f"{MODEL}@2",
            waves=plan.waves,
            probation=Probation(labelled_pairs=plan.labelled_pairs),
            max_refused_percent=plan.max_refused_percent,
            judged_by=plan.judged_by,
            approve_small_waves=True,
        )
        self.rollout = self.books.plan(request, T0 + self.now)
        self.books.rollouts[self.rollout.id] = self.rollout
        for _ in range(plan.partitions):
            self.later(self.chance.uniform(0, 4 * 3600), self._partition)
        self._look()

    def _look(self) -> None:
        rollout = self.rollout
        assert rollout is not None
        now = T0 + self.now
        after, orders = step(rollout, self.books.census, now)
        if self.plan.approve and "approved" in after.because and after.approved != after.open:
            after = approve(after, "by the operator: simulated", now)
        self._check(rollout, after, orders)
        if after.open > rollout.open:
            self._waves_at += [self.now - START_S] * (after.open - rollout.open)
        told = len(after.verdicts) > len(rollout.verdicts)
        if (after.status, after.open) != (rollout.status, rollout.open) or told:
            self.story.append((self.now - START_S, f"{after.status}; {after.because}"))
        if after.status is RolloutStatus.ROLLING_BACK and self._decided_at is None:
            self._decided_at = self.now
        self.rollout = self.books.rollouts[after.id] = after
        ordered = self.books.ordered(orders)
        self.books.assignments.update(ordered)
        for id, assignments in ordered.items():
            desired = self.books.desired(id, assignments)
            self.books.revisions[id] = desired.revision
            device = self.devices[id]
            device.desired = desired
            if device.connected:
                self.down(device)
        if not self._over():
            self.later(self._look_s if self._news else max(self._look_s, 5.0), self._look)
        self._news = False

    def _over(self) -> bool:
        rollout = self.rollout
        if rollout is None:
            return False
        return rollout.status.final or (
            not self.plan.approve and rollout.because.endswith("goes on when it is approved")
        )

    # ---- what must hold

    def _check(self, before: Rollout, after: Rollout, orders: list[Assign]) -> None:
        opened = {id for wave in after.waves[: after.open] for id in wave}
        if set(after.told) - opened:
            self._violations.append("a device outside the open waves was told")
        fresh = set(after.told) - set(before.told)
        for order in orders:
            new = order.assignment is not None and order.assignment.manifest == self.new.digest
            if new and order.device not in opened:
                self._violations.append(f"{order.device} was ordered before its wave opened")
            if new and after.status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED):
                self._violations.append(f"{order.device} was ordered after the abort")
        if fresh and after.status is not RolloutStatus.RUNNING:
            self._violations.append("a device was told by a rollout that does not run")

    def _check_end(self, rollout: Rollout) -> None:
        aborted = rollout.status is RolloutStatus.ABORTED
        for id, device in self.devices.items():
            serves = device.serves
            if serves not in self.made:
                self._violations.append(f"{id} serves nothing at the end")
            elif serves == self.new.digest and id not in rollout.told:
                self._violations.append(f"{id} serves what it was never told to take")
            elif aborted and serves == self.new.digest and device.alive and device.connected:
                named = id in rollout.because or "more" in rollout.because
                if not named:
                    self._violations.append(f"{id} was not taken back, and nobody says so")

    def course(self) -> Course:
        """Return how it went."""
        rollout = self.rollout
        assert rollout is not None
        self._check_end(rollout)
        standings = Counter(str(told.answer.standing) for told in rollout.told.values())
        took = [d for d in self.devices.values() if d.took_at is not None]
        hours = sum(((d.back_at or self.now) - (d.took_at or 0.0)) / 3600 for d in took)
        last = rollout.verdicts[-1] if rollout.verdicts else None
        bad = self.plan.bad
        return Course(
            status=str(rollout.status) if rollout.status.final else "held",
            because=rollout.because,
            took_s=self.now - START_S,
            told=len(rollout.told),
            counts=dict(sorted(standings.items())),
            harmed=len(took) if bad else 0,
            harmed_hours=hours if bad else 0.0,
            decided_s=None if self._decided_at is None else self._decided_at - START_S,
            gate=last.gate if last is not None and last.ruling == "abort" else "",
            waves_s=self._waves_at,
            silent=[id for id, t in rollout.told.items() if t.answer.standing is Standing.WORKING],
            violations=self._violations,
            events=self.events,
            story=self.story,
        )
