"""What holds over the whole history of a rollout that is stored, crashed, paused and taken back.

Of a rollout only what `notable` asks for is stored: a crash falls back to that.
"""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import TypeAdapter

from fleet.core.census import Census
from fleet.core.rollout import (
    Assign,
    Assignment,
    Rollout,
    abort,
    approve,
    is_back,
    notable,
    pause,
    resume,
    roll_back,
    step,
)
from fleet.core.views import RolloutStatus
from tests.fleet.core.worlds import NEW, OLD, T0, deployment, report, rollout_of, status
from wire.twin import DeploymentReport, Finding, Phase, Reason, Reported

_ROLLOUT = TypeAdapter(Rollout)
_IDS = tuple(f"cam-{n:02}" for n in range(40))
_BAD = (Phase.REJECTED, Phase.FAILED, Phase.TIMED_OUT, Phase.ROLLED_BACK)
_FOREVER_S = 30 * 86_400.0

some = st.lists(st.sampled_from(_IDS), min_size=1, max_size=40, unique=True)


class _Thing:
    """A device as it really is, whatever the controller heard of it."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.serving = OLD
        self.latest: DeploymentReport | None = None
        self.sequence = 0

    def read(self, order: Assignment | None) -> None:
        """Take up the retained order, once."""
        if order is None or order.manners.held:
            return
        latest = self.latest
        key = (order.rollout, order.purpose, order.manifest)
        if latest is not None and key == (latest.rollout, latest.purpose, latest.manifest):
            return
        if order.manifest != self.serving:
            self.latest = deployment(
                Phase.FETCHING, rollout=key[0], purpose=order.purpose, manifest=key[2]
            )
        elif latest is not None and not latest.phase.final:
            self.latest = latest.model_copy(update={"phase": Phase.SUPERSEDED})

    def end(self, phase: Phase, finding: Finding | None = None) -> None:
        if self.latest is None or self.latest.phase.final:
            return
        reason = Reason.WORSE_THAN_CHAMPION if phase is Phase.ROLLED_BACK else None
        news = {"phase": phase, "finding": finding, "reason": reason}
        self.latest = self.latest.model_copy(update=news)
        if phase is Phase.COMMITTED:
            self.serving = self.latest.manifest

    def report(self) -> Reported:
        self.sequence += 1
        return report(self.id, self.sequence, self.serving, self.latest)


def _lasting(rollout: Rollout) -> tuple[Rollout, object]:
    """Return all but the progress of devices, which is heard again."""
    told = {id: (t.answer, t.recall, t.held, t.finding) for id, t in rollout.told.items()}
    return replace(rollout, told={}), told


class RolloutHistory(RuleBasedStateMachine):
    """A controller with a store, its devices, and an operator who changes his mind."""

    @initialize(first=st.integers(1, 38), limit=st.sampled_from([None, 20, 100]))
    def begin(self, first: int, limit: int | None) -> None:
        self.now = T0
        self.census = Census()
        self.things = {id: _Thing(id) for id in _IDS}
        self.late: list[Reported] = []
        self.rollout = rollout_of(_IDS[:first], _IDS[first:39], _IDS[39:], limit=limit)
        self.stored = _ROLLOUT.dump_json(self.rollout)
        self.orders: dict[str, Assignment | None] = {}
        self.retained: dict[str, Assignment | None] = {}
        for id in _IDS:
            self.census.hear_status(status(id), self.now, retained=False)

    @rule(devices=some)
    def devices_read_their_orders(self, devices: list[str]) -> None:
        for id in devices:
            self.things[id].read(self.retained.get(id))
            self.hear(self.things[id].report())

    @rule(
        devices=some,
        phase=st.sampled_from([Phase.COMMITTED, *_BAD, Phase.SUPERSEDED]),
        worse=st.integers(0, 9),
        better=st.integers(0, 9),
    )
    def devices_end(self, devices: list[str], phase: Phase, worse: int, better: int) -> None:
        for id in devices:
            self.things[id].end(phase, Finding(pairs=20, worse=worse, better=better))
            self.hear(self.things[id].report())

    @rule(devices=some)
    def devices_end_and_nobody_hears_it_yet(self, devices: list[str]) -> None:
        for id in devices:
            self.things[id].end(Phase.COMMITTED)
            self.late.append(self.things[id].report())

    @rule(place=st.integers(0, 99))
    def what_was_late_arrives_and_may_again(self, place: int) -> None:
        if self.late:
            self.hear(self.late[place % len(self.late)])

    @rule(devices=some)
    def devices_go_silent(self, devices: list[str]) -> None:
        for id in devices:
            self.census.hear_status(status(id, online=False), self.now, retained=False)

    @rule(seconds=st.sampled_from([1.0, 400.0, 9000.0, 200_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def steps(self) -> None:
        self.turn(self.rollout)

    @rule()
    def pauses(self) -> None:
        self.turn(pause(self.rollout, "by the operator"))

    @rule()
    def resumes(self) -> None:
        known = {id: (told.answer, told.finding) for id, told in self.rollout.told.items()}

        after = resume(self.rollout, self.now)

        assert {id: (told.answer, told.finding) for id, told in after.told.items()} == known
        self.turn(after)

    @rule()
    def approves(self) -> None:
        self.turn(approve(self.rollout, "by the operator", self.now))

    @rule()
    def aborts(self) -> None:
        self.turn(abort(self.rollout, "by the operator", self.now))

    @rule()
    def rolls_back(self) -> None:
        ordered = {id for id, order in self.orders.items() if order and order.manifest == NEW}
        self.turn(roll_back(self.rollout, ordered, "by the operator", self.now))

    @rule()
    def crashes_before_it_stored(self) -> None:
        step(self.rollout, self.census, self.now)
        self.restart()

    @rule()
    def crashes_before_it_sent(self) -> None:
        self.turn(self.rollout, sent=False)
        self.restart()

    def hear(self, reported: Reported) -> None:
        self.census.hear_reported(reported, self.now, retained=False)

    def turn(self, changed: Rollout, *, sent: bool = True) -> None:
        """Step, store what is notable with its orders, and send them."""
        after, orders = step(changed, self.census, self.now)
        self.check(after, orders)
        if notable(self.rollout, after) or orders:
            self.stored = _ROLLOUT.dump_json(after)
        self.rollout = after
        for order in orders:
            self.orders[order.device] = order.assignment
        if sent:
            self.retained = dict(self.orders)

    def restart(self) -> None:
        """Come up with what was stored, and send every stored order once more."""
        live = self.rollout
        self.rollout = _ROLLOUT.validate_json(self.stored)
        self.retained = dict(self.orders)
        assert _lasting(live) == _lasting(self.rollout), "a crash loses nothing that counts"

    def check(self, after: Rollout, orders: list[Assign]) -> None:
        opened = {id for wave in after.waves[: after.open] for id in wave}
        back = after.status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED)
        for order in orders:
            assert order.device in opened, "nobody outside the open waves is told"
            takes = order.assignment is not None and order.assignment.manifest == NEW
            assert not (takes and back), "nobody is told to take it after the abort"
        assert len(orders) == len({order.device for order in orders}), "nobody is told twice"

    @invariant()
    def no_device_is_lost_or_in_two_waves(self) -> None:
        planned = [id for wave in self.rollout.waves for id in wave]
        assert sorted(planned) == sorted(_IDS)

    @invariant()
    def whoever_is_told_has_the_order_that_the_books_say(self) -> None:
        for id, told in self.rollout.told.items():
            order = self.orders[id]
            assert order is not None
            assert (order.manifest == NEW) == (told.recall in ("", "left"))

    @invariant()
    def nobody_took_it_who_was_not_told(self) -> None:
        took = {id for id, thing in self.things.items() if thing.serving == NEW}
        assert took <= self.rollout.told.keys()

    def teardown(self) -> None:
        """Everybody comes back and does as told: the rollout ends, and each device is final."""
        if not hasattr(self, "rollout"):
            return
        self.restart()
        self.turn(abort(self.rollout, "for good", self.now))
        for thing in self.things.values():
            thing.read(self.retained.get(thing.id))
            thing.end(Phase.COMMITTED)
            self.hear(thing.report())
        self.turn(self.rollout)
        self.now += _FOREVER_S
        self.turn(self.rollout)
        assert self.rollout.status.final, self.rollout.because
        if self.rollout.status is not RolloutStatus.ABORTED:
            return
        for id in self.rollout.told:
            thing = self.things[id]
            cannot = thing.latest is not None and (
                thing.latest.purpose == "rollback" and thing.latest.phase is not Phase.COMMITTED
            )
            assert thing.serving == OLD or cannot, "rollback reaches all who took it"
            assert cannot or is_back(self.rollout, self.census.get(id))


RolloutHistory.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
test_whatever_the_history_nothing_is_lost_and_all_can_be_taken_back = RolloutHistory.TestCase
