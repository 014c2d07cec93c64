"""One release on its way to many devices: told wave by wave, and taken back when refused.

    running --(every wave settled)--> completed
    running --(too many refused, nobody answers, or the operator)--> rolling_back --> aborted
    running --(the operator)--> paused --(the operator)--> running
    any of these --(a newer rollout of the same model)--> superseded

A wave is *settled* when each of its devices has answered (committed, refused or dropped) or is
given up as silent: unreachable for SILENCE_S, or reachable and without any progress for as long
as its own deadlines allow. Silence never passes and never fails: a wave of which nobody answered
holds the rollout, until ANSWER_S after its opening the rollout is aborted for want of answers. A
silent device keeps its retained order, and carries it out when it is back.

While paused, no wave opens and no device fetches: an order that holds goes out to every device
still on its way. What has arrived stays there, and devices that have it all go on to try and judge
it; too many refusals end a paused rollout as well. No patience runs out meanwhile.

`completed` is final. A release that crashes on a device after that is the device's own affair:
it returns to its previous release by itself, reports a `fallback`, and never retries the same
(rollout, manifest). The controller leaves its order as it is, so the two do not fight; the next
rollout takes what the device then serves as the release to return to.

While rolling back, a device that refused the release gets back the very order it had. Every
other device told is ordered to its previous release, without probation since it served there
already: it took the new one, or it still may before the recall reaches it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fleet.core.census import Census, Device
from fleet.core.gate import Answer, Standing, judge, plural, verdict
from fleet.core.views import RolloutStatus
from wire.ids import ReleaseRef
from wire.manners import DAY_S, Manners
from wire.twin import Phase, Probation

SILENCE_S = 300.0
"""How long a rollout waits for a device that cannot be reached."""

FETCH_DEADLINE_S = 1800
"""What DesiredRelease.fetch_deadline_s says: devices end a stalled fetch by themselves."""

GRACE_S = 1200.0
"""Beyond a device's own deadlines: room for its trial and for its report."""

ANSWER_S = 7 * 86_400.0
"""How long a wave of which nobody answers may hold a rollout."""

STARTS_PER_S = 200
"""Of the devices of a large wave, how many begin to fetch in a second."""

NO_PROBATION = Probation(labelled_pairs=0)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one device should run of one model, and by whose order."""

    model: str
    version: int
    manifest: str
    rollout: str
    purpose: Literal["rollout", "rollback"] = "rollout"
    probation: Probation = field(default_factory=Probation)
    manners: Manners = field(default_factory=Manners)


@dataclass(frozen=True, slots=True)
class Told:
    """A device that was told to take the release, and what became of it."""

    at: float
    answer: Answer = field(default_factory=lambda: Answer(Standing.WORKING))
    progress: tuple[int, int, int] = (0, 0, 0)
    """Place of the phase, bytes and labelled pairs, as far as they ever got."""
    moved_at: float = 0.0
    """When `progress` last grew."""
    recall: Literal["", "previous", "rollback"] = ""
    """By which order it was called back, if it was."""
    held: bool = False
    """Its order says to fetch nothing."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """All there is to know of a rollout. A value; the controller stores every new one."""

    id: str
    model: str
    version: int
    manifest: str
    to: str
    shares: tuple[str, ...]
    waves: tuple[tuple[str, ...], ...]
    """The devices that each wave adds."""
    previous: Mapping[str, Assignment | None]
    """What each device goes back to."""
    started_at: float
    probation: Probation = field(default_factory=Probation)
    manners: Manners = field(default_factory=Manners)
    manners_of: Mapping[str, Manners] = field(default_factory=dict)
    """Of the devices that a rule was made for."""
    spread_s: int | None = None
    """As asked for; None: after the size of each wave."""
    max_refused_percent: int = 20
    status: RolloutStatus = RolloutStatus.RUNNING
    because: str = ""
    ended_at: float | None = None
    open: int = 0
    """How many waves are open."""
    opened_at: float = 0.0
    """When the latest wave was opened."""
    recalled_at: float = 0.0
    told: Mapping[str, Told] = field(default_factory=dict)

    @property
    def release(self) -> str:
        """The release, as people write it."""
        return str(ReleaseRef(self.model, self.version))


@dataclass(frozen=True, slots=True)
class Assign:
    """Order a device to run this of `model`; None: nothing of it is ordered any more."""

    device: str
    model: str
    assignment: Assignment | None


def step(rollout: Rollout, census: Census, now: float) -> tuple[Rollout, list[Assign]]:
    """Return the rollout after what the census knows at `now`, and the orders that follow.

    Without news it answers with the same rollout and no orders.
    """
    if rollout.status.final:
        return rollout, []
    after = _observe(rollout, census, now)
    if after.status is RolloutStatus.RUNNING:
        after = _advance(after, census, now)
    elif after.status is RolloutStatus.PAUSED:
        after = _check(after, now)
    if after.status is RolloutStatus.ROLLING_BACK:
        after, orders = _recall(after, census)
        return _land(after, census, now), orders
    after, regarded = _hold_or_let_go(after)
    new = [id for id in after.told if id not in rollout.told]
    return after, _orders(after, [*new, *regarded])


def notable(before: Rollout, after: Rollout) -> bool:
    """Return whether more than the devices' progress differs, so that `after` must be stored.

    Progress is only there to see who stalls: a controller that restarts observes it again.
    """
    if before is after:
        return False
    if replace(before, told={}) != replace(after, told={}) or len(before.told) != len(after.told):
        return True
    return any(_lasting(told) != _lasting(after.told[id]) for id, told in before.told.items())


def _lasting(told: Told) -> tuple[Answer, str, bool]:
    return told.answer, told.recall, told.held


def abort(rollout: Rollout, reason: str, now: float) -> Rollout:
    """Call a rollout off; the next `step` takes its devices back."""
    if rollout.status not in (RolloutStatus.RUNNING, RolloutStatus.PAUSED):
        return rollout
    return replace(rollout, status=RolloutStatus.ROLLING_BACK, because=reason, recalled_at=now)


def pause(rollout: Rollout, reason: str) -> Rollout:
    """Open no wave and let nothing be fetched until `resume`; the next `step` tells the devices."""
    if rollout.status is not RolloutStatus.RUNNING:
        return rollout
    return replace(rollout, status=RolloutStatus.PAUSED, because=reason)


def resume(rollout: Rollout, now: float) -> Rollout:
    """Go on with a paused rollout; every patience begins anew."""
    if rollout.status is not RolloutStatus.PAUSED:
        return rollout
    told = {id: replace(each, moved_at=now) for id, each in rollout.told.items()}
    return replace(
        rollout, status=RolloutStatus.RUNNING, because="resumed", opened_at=now, told=told
    )


def supersede(
    rollout: Rollout, census: Census, by: str, now: float
) -> tuple[Rollout, list[Assign]]:
    """End a rollout because a newer one of the same model begins; whom it held is let go.

    A device that the newer one does not tell goes on with the order it has; one that was to be
    taken back is told so first.
    """
    if rollout.status.final:
        return rollout, []
    recalls: list[Assign] = []
    if rollout.status is RolloutStatus.ROLLING_BACK:
        rollout, recalls = _recall(rollout, census)
    after = replace(
        rollout,
        status=RolloutStatus.SUPERSEDED,
        because=f"superseded by {by}",
        ended_at=now,
    )
    if rollout.status is not RolloutStatus.PAUSED:
        return after, recalls
    after, regarded = _hold_or_let_go(after)
    return after, _orders(after, regarded)


def _hold_or_let_go(rollout: Rollout) -> tuple[Rollout, list[str]]:
    """Return whose orders change because the rollout was paused, or is no more."""
    paused = rollout.status is RolloutStatus.PAUSED
    changed = {
        id: replace(told, held=paused)
        for id, told in rollout.told.items()
        if told.held != paused and (told.held or told.answer.standing is Standing.WORKING)
    }
    if not changed:
        return rollout, []
    return replace(rollout, told={**rollout.told, **changed}), list(changed)


def fallback_for(
    device: Device, current: Assignment | None, past: Mapping[str, Rollout]
) -> Assignment | None:
    """Return what `device` should go back to if a new rollout fails on it.

    That is its current order; but where it does not serve what that order says (it refused it,
    fell back, or was still on its way), what that order's own rollout would have gone back to.
    """
    seen: set[str] = set()
    while current is not None and current.rollout in past and current.rollout not in seen:
        serving = device.serving(current.model)
        earlier = past[current.rollout].previous.get(device.id)
        if serving is None or serving.manifest == current.manifest or earlier is None:
            break
        seen.add(current.rollout)
        current = earlier
    return current


def _observe(rollout: Rollout, census: Census, now: float) -> Rollout:
    changed = {}
    for id, told in rollout.told.items():
        device = census.get(id)
        answer = judge(told.answer, device, rollout.model, rollout.id, rollout.manifest)
        after = replace(told, answer=answer)
        progress = _progress(rollout, device)
        if progress > told.progress:
            after = replace(after, progress=progress, moved_at=now)
        if after != told:
            changed[id] = after
    return replace(rollout, told={**rollout.told, **changed}) if changed else rollout


_PLACES = {phase: place for place, phase in enumerate(Phase, start=1)}


def _progress(rollout: Rollout, device: Device) -> tuple[int, int, int]:
    report = device.deployment(rollout.model)
    if report is None or report.rollout != rollout.id:
        return (0, 0, 0)
    return (_PLACES[report.phase], report.bytes_done, report.labelled_pairs)


def _advance(rollout: Rollout, census: Census, now: float) -> Rollout:
    """Abort, hold, open the next wave, or complete."""
    rollout = _check(rollout, now)
    if rollout.status is not RolloutStatus.RUNNING:
        return rollout
    while (held := _held(rollout, census, now)) is None:
        if rollout.open == len(rollout.waves):
            return replace(
                rollout, status=RolloutStatus.COMPLETED, because=_tally(rollout), ended_at=now
            )
        told = {id: Told(at=now, moved_at=now) for id in rollout.waves[rollout.open]}
        rollout = replace(
            rollout, open=rollout.open + 1, opened_at=now, told={**rollout.told, **told}
        )
    if not _answered(rollout) and now - rollout.opened_at >= ANSWER_S:
        return abort(rollout, f"{held}, for {ANSWER_S / 86_400:.0f} days", now)
    return rollout if held == rollout.because else replace(rollout, because=held)


def _check(rollout: Rollout, now: float) -> Rollout:
    """Abort when too many refused."""
    answers = {id: told.answer for id, told in rollout.told.items()}
    too_many = verdict(answers, rollout.release, rollout.max_refused_percent)
    return rollout if too_many is None else abort(rollout, too_many, now)


def _held(rollout: Rollout, census: Census, now: float) -> str | None:
    """Return what the open waves wait for, in words, or None when the next step may be taken."""
    if not rollout.open or not rollout.waves[rollout.open - 1]:
        return None
    wave = f"wave {rollout.open} of {len(rollout.waves)}"
    working = [id for id, told in rollout.told.items() if _waited_for(rollout, id, census, now)]
    if working:
        of = f"{len(rollout.told)} {plural(len(rollout.told), 'device')}"
        refused = sum(told.answer.standing is Standing.REFUSED for told in rollout.told.values())
        return f"{wave}: waiting for {len(working)} of {of}" + (
            f", {refused} refused" if refused else ""
        )
    if not _answered(rollout):
        return f"{wave}: holding, no device of it answers"
    return None


def _waited_for(rollout: Rollout, id: str, census: Census, now: float) -> bool:
    told, device = rollout.told[id], census.get(id)
    if told.answer.standing is not Standing.WORKING:
        return False
    if not device.online(now):
        return now - max(told.at, device.last_seen) < SILENCE_S
    patience = FETCH_DEADLINE_S + rollout.probation.deadline_s + GRACE_S
    report = device.deployment(rollout.model)
    if report is not None and report.rollout == rollout.id and report.waiting:
        # No window is closed for longer than a day, and no turn is later than the spread.
        patience += DAY_S + max(_spread_s(rollout, wave) for wave in rollout.waves)
    return now - told.moved_at < patience


def _answered(rollout: Rollout) -> bool:
    wave = rollout.waves[rollout.open - 1] if rollout.open else ()
    answers = (rollout.told[id].answer.standing for id in wave)
    return any(standing in (Standing.COMMITTED, Standing.REFUSED) for standing in answers)


def _tally(rollout: Rollout) -> str:
    """Return `4 of 5 devices committed, 1 refused`."""
    standings = [told.answer.standing for told in rollout.told.values()]
    committed = standings.count(Standing.COMMITTED)
    text = f"{committed} of {len(standings)} {plural(len(standings), 'device')} committed"
    rest = {
        "refused": standings.count(Standing.REFUSED),
        "without an answer": standings.count(Standing.WORKING) + standings.count(Standing.DROPPED),
    }
    return text + "".join(f", {count} {word}" for word, count in rest.items() if count)


def _orders(rollout: Rollout, devices: list[str]) -> list[Assign]:
    spreads = {id: _spread_s(rollout, wave) for wave in rollout.waves for id in wave}
    return [Assign(id, rollout.model, _order(rollout, id, spreads[id])) for id in devices]


def _order(rollout: Rollout, id: str, spread_s: int) -> Assignment:
    own = {"spread_s": spread_s, "held": rollout.told[id].held}
    return Assignment(
        rollout.model,
        rollout.version,
        rollout.manifest,
        rollout.id,
        probation=rollout.probation,
        manners=_manners(rollout, id).model_copy(update=own),
    )


def _manners(rollout: Rollout, id: str) -> Manners:
    return rollout.manners_of.get(id, rollout.manners)


def _spread_s(rollout: Rollout, wave: tuple[str, ...]) -> int:
    return len(wave) // STARTS_PER_S if rollout.spread_s is None else rollout.spread_s


def _recall(rollout: Rollout, census: Census) -> tuple[Rollout, list[Assign]]:
    orders = []
    recalled = {}
    for id, told in rollout.told.items():
        if told.recall:
            continue
        back = rollout.previous.get(id)
        serving = census.get(id).serving(rollout.model)
        took = serving is not None and serving.manifest == rollout.manifest
        if told.answer.standing is Standing.REFUSED and not took:
            recalled[id] = replace(told, recall="previous")
            if back is not None and back.manners.held:
                back = replace(back, manners=back.manners.model_copy(update={"held": False}))
        else:
            recalled[id] = replace(told, recall="rollback")
            if back is not None:
                back = replace(
                    back,
                    rollout=rollout.id,
                    purpose="rollback",
                    probation=NO_PROBATION,
                    # At once, but no faster than the line may carry.
                    manners=Manners(bytes_per_s=_manners(rollout, id).bytes_per_s),
                )
        orders.append(Assign(id, rollout.model, back))
    if not recalled:
        return rollout, []
    return replace(rollout, told={**rollout.told, **recalled}), orders


def _land(rollout: Rollout, census: Census, now: float) -> Rollout:
    """End as aborted when every device that can be reached is back, or at the deadline."""
    away = [id for id in rollout.told if not _is_back(rollout, census.get(id))]
    patient = now - rollout.recalled_at < FETCH_DEADLINE_S + GRACE_S
    if patient and any(_may_come_back(rollout, census.get(id), now) for id in away):
        return rollout
    total = len(rollout.told)
    back = f"{total - len(away)} of {total} {plural(total, 'device')} on the release before"
    missing = f"; not {', '.join(sorted(away)[:5])}" if away else ""
    more = f" and {len(away) - 5} more" if len(away) > 5 else ""
    return replace(
        rollout,
        status=RolloutStatus.ABORTED,
        because=f"{rollout.because}; {back}{missing}{more}" if total else rollout.because,
        ended_at=now,
    )


def _is_back(rollout: Rollout, device: Device) -> bool:
    report = device.deployment(rollout.model)
    if report is not None and report.manifest == rollout.manifest and not report.phase.final:
        return False
    serving = device.serving(rollout.model)
    previous = rollout.previous.get(device.id)
    if previous is None:
        # There is nothing to go back to: a device keeps the first release it ever had.
        return True
    return serving is not None and serving.manifest == previous.manifest


def _may_come_back(rollout: Rollout, device: Device, now: float) -> bool:
    report = device.deployment(rollout.model)
    if report is not None and (report.rollout, report.purpose) == (rollout.id, "rollback"):
        return not report.phase.final or report.phase is Phase.COMMITTED
    return device.online(now) or now - max(rollout.recalled_at, device.last_seen) < SILENCE_S
