"""What holds for every rollout, whatever is lost, late, repeated, or restarted."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import TypeAdapter

from fleet.core.census import Census, Device
from fleet.core.gate import Standing
from fleet.core.rollout import (
    SMALL_LIMIT_PERCENT,
    Assign,
    Assignment,
    Rollout,
    abort,
    pause,
    resume,
    step,
    supersede,
)
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import NEW, OLD, T0, deployment, report, rollout_of, status
from wire.twin import DeploymentReport, Finding, Phase, Reported

_DEVICE = TypeAdapter(Device)
_ROLLOUT = TypeAdapter(Rollout)
_IDS = [f"cam-{n}" for n in range(5)]
_ENDS = [Phase.COMMITTED, Phase.REJECTED, Phase.FAILED, Phase.TIMED_OUT, Phase.ROLLED_BACK]

ids = st.sampled_from(_IDS)


class _Edge:
    """The truth on one device."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.serving = OLD
        self.latest: DeploymentReport | None = None
        self.order: Assignment | None = None
        self.sequence = 0
        self.boot = 0

    def take_up(self) -> None:
        """Read the retained order."""
        order = self.order
        if order is None:
            return
        key = (order.rollout, order.purpose, order.manifest)
        known = self.latest and (self.latest.rollout, self.latest.purpose, self.latest.manifest)
        fell_back = self.latest and (self.latest.purpose, self.latest.rollout) == (
            "fallback",
            order.rollout,
        )
        if (
            key == known
            or order.manifest == self.serving
            or (fell_back and order.purpose == "rollout")
        ):
            return
        self.latest = deployment(
            Phase.QUEUED, rollout=order.rollout, purpose=order.purpose, manifest=order.manifest
        )

    def freeze(self, finding: Finding) -> None:
        if self.latest is not None and not self.latest.phase.final:
            self.latest = self.latest.model_copy(update={"finding": finding})

    def end(self, phase: Phase) -> None:
        if self.latest is None or self.latest.phase.final:
            return
        self.latest = self.latest.model_copy(update={"phase": phase})
        if phase is Phase.COMMITTED:
            self.serving = self.latest.manifest

    def fall_back(self) -> None:
        if self.serving == NEW and self.latest is not None and self.latest.phase.final:
            self.serving = OLD
            self.latest = deployment(Phase.COMMITTED, purpose="fallback", manifest=OLD)

    def report(self) -> Reported:
        self.sequence += 1
        return report(self.id, self.sequence, self.serving, self.latest, boot=f"b-{self.boot}")


class RolloutLife(RuleBasedStateMachine):
    """A controller, its devices, and a network that does what it likes."""

    @initialize(
        cut=st.lists(st.integers(0, 5), max_size=3), limit=st.sampled_from([0, 20, 50, 100, None])
    )
    def begin(self, cut: list[int], limit: int | None) -> None:
        marks = [0, *sorted(cut), 5]
        waves = [tuple(_IDS[a:b]) for a, b in pairwise(marks)]
        self.now = T0
        self.rollout = rollout_of(*waves, limit=limit)
        self.census = Census()
        self.edges = {id: _Edge(id) for id in _IDS}
        self.wire: list[Reported] = []
        self.refused: set[str] = set()
        self.found: dict[str, Finding] = {}
        self.gone_back = False
        self.ended: Rollout | None = None

    @rule(id=ids)
    def connects(self, id: str) -> None:
        edge = self.edges[id]
        self.census.hear_status(status(id, nonce=f"b-{edge.boot}"), self.now, retained=False)
        self.wire.append(edge.report())

    @rule(id=ids)
    def vanishes(self, id: str) -> None:
        edge = self.edges[id]
        will = status(id, online=False, nonce=f"b-{edge.boot}")
        self.census.hear_status(will, self.now, retained=False)

    @rule(id=ids)
    def agent_restarts(self, id: str) -> None:
        self.edges[id].boot += 1
        self.edges[id].sequence = 0

    @rule(id=ids)
    def order_arrives(self, id: str) -> None:
        self.edges[id].take_up()

    @rule(
        id=ids, phase=st.sampled_from([Phase.FETCHING, Phase.PROBATION, *_ENDS, Phase.SUPERSEDED])
    )
    def deployment_moves(self, id: str, phase: Phase) -> None:
        self.edges[id].end(phase)
        self.wire.append(self.edges[id].report())

    @rule(id=ids, worse=st.integers(0, 12), better=st.integers(0, 12))
    def a_finding_is_frozen(self, id: str, worse: int, better: int) -> None:
        self.edges[id].freeze(Finding(pairs=20, worse=worse, better=better))
        self.wire.append(self.edges[id].report())

    @rule(id=ids)
    def crashes_after_commit(self, id: str) -> None:
        self.edges[id].fall_back()
        self.wire.append(self.edges[id].report())

    @rule(place=st.integers(0, 200), keep=st.booleans())
    def a_report_arrives(self, place: int, keep: bool) -> None:
        """Any of those on the way, however old; perhaps once more later."""
        if self.wire:
            at = place % len(self.wire)
            heard = self.wire[at] if keep else self.wire.pop(at)
            self.census.hear_reported(heard, self.now, retained=False)

    @rule(place=st.integers(0, 200))
    def a_report_is_lost(self, place: int) -> None:
        if self.wire:
            self.wire.pop(place % len(self.wire))

    @rule(seconds=st.sampled_from([0.1, 30.0, 400.0, 7200.0, 100_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def controller_restarts(self) -> None:
        self.rollout = _ROLLOUT.validate_json(_ROLLOUT.dump_json(self.rollout))
        devices = [_DEVICE.dump_json(device) for device in self.census]
        self.census = Census()
        for device in devices:
            self.census.restore(_DEVICE.validate_json(device))

    @rule()
    def operator_aborts(self) -> None:
        self.rollout = abort(self.rollout, "by the operator", self.now)

    @rule()
    def a_newer_rollout_begins(self) -> None:
        self.rollout, orders = supersede(self.rollout, self.census, "r-3", self.now)
        for order in orders:
            self.edges[order.device].order = order.assignment

    @rule()
    def operator_pauses(self) -> None:
        self.rollout = pause(self.rollout, "by the operator")

    @rule()
    def operator_resumes(self) -> None:
        self.rollout = resume(self.rollout, self.now)

    @rule()
    def steps(self) -> None:
        before = self.rollout
        self.rollout, orders = step(before, self.census, self.now)
        self.check_orders(before, orders)
        for order in orders:
            self.edges[order.device].order = order.assignment
        if self.rollout.status is RolloutStatus.PAUSED:
            assert set(self.rollout.told) == set(before.told), "no wave opens while paused"
        self.check_holds()
        again, more = step(self.rollout, self.census, self.now)
        assert again is self.rollout and more == [], "a step without news changes nothing"

    def check_holds(self) -> None:
        """Whoever is on its way is held while it is paused, and nobody is at any other time."""
        paused = self.rollout.status is RolloutStatus.PAUSED
        for id, told in self.rollout.told.items():
            order = self.edges[id].order
            if order is not None and told.answer.standing is Standing.WORKING:
                assert order.manners.held == paused
            elif order is not None and not paused:
                assert not order.manners.held

    def check_orders(self, before: Rollout, orders: list[Assign]) -> None:
        opened = {id for wave in self.rollout.waves[: self.rollout.open] for id in wave}
        for order in orders:
            assert order.device in opened, "nobody outside the open waves is told anything"
            if order.assignment is not None and order.assignment.manifest == NEW:
                assert not self.gone_back, "nobody is told to take it after the abort"
                held = before.told[order.device].held if order.device in before.told else None
                assert held is not order.assignment.manners.held, "nobody is told twice"
        if before.status.final:
            assert orders == []

    @invariant()
    def told_are_in_open_waves(self) -> None:
        opened = {id for wave in self.rollout.waves[: self.rollout.open] for id in wave}
        assert set(self.rollout.told) == opened

    @invariant()
    def a_refusal_stands(self) -> None:
        refused = {
            id for id, told in self.rollout.told.items() if told.answer.standing is Standing.REFUSED
        }
        assert refused >= self.refused
        self.refused = refused

    @invariant()
    def what_was_found_stands_and_counts_once(self) -> None:
        found = {id: told.finding for id, told in self.rollout.told.items() if told.finding}
        assert found.items() >= self.found.items()
        assert self.rollout.evidence.bets.values == len(found)
        self.found = found

    @invariant()
    def final_is_final(self) -> None:
        status = self.rollout.status
        self.gone_back |= status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED)
        if self.ended is not None:
            assert self.rollout == self.ended
        if status.final:
            self.ended = self.rollout
            assert self.rollout.ended_at is not None
        assert self.rollout.because or not self.rollout.told

    @invariant()
    def what_completed_was_bearable_and_answered(self) -> None:
        rollout = self.rollout
        if rollout.status is not RolloutStatus.COMPLETED:
            return
        limit = rollout.max_refused_percent
        limit = SMALL_LIMIT_PERCENT if limit is None else limit
        assert 100 * len(self.refused) <= limit * len(rollout.told)
        assert set(rollout.told) == set(_IDS)
        last = [rollout.told[id].answer.standing for id in rollout.waves[-1]]
        assert not last or Standing.COMMITTED in last or Standing.REFUSED in last

    def teardown(self) -> None:
        """Whatever happened: without any more news it ends by itself."""
        if not hasattr(self, "rollout"):
            return
        rollout, now = resume(self.rollout, self.now), self.now
        for _ in range(len(rollout.waves) + 4):
            rollout, _ = step(rollout, self.census, now)
            now += 8 * 86_400
        assert rollout.status.final, rollout


RolloutLife.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_whatever_happens_a_rollout_keeps_its_promises = RolloutLife.TestCase


def test_a_silent_fleet_sees_every_order_replaced_by_the_last_one() -> None:
    """A device that was away from the first order to the recall finds the recall alone."""
    rollout, orders = step(rollout_of(("a",)), Census(), T0)
    rollout, recall = step(abort(rollout, "stop", T0), Census(), T0)

    assert [order.assignment and order.assignment.manifest for order in orders] == [NEW]
    assert [order.assignment and order.assignment.manifest for order in recall] == [OLD]
    assert replace(rollout, because="").status is RolloutStatus.ROLLING_BACK
