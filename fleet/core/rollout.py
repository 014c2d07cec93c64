"""One release on its way to many devices: told wave by wave, and taken back when refused.

    running --(every wave settled)--> completed
    running --(too many refused, nobody answers, or the operator)--> rolling_back --> aborted
    running --(the operator)--> paused --(the operator)--> running
    completed, superseded --(fleet rollout rollback)--> rolling_back
    any that is not over --(a newer rollout of the same model)--> superseded

A wave is *settled* when each of its devices has answered (committed, refused or dropped) or is
given up as silent: unreachable for SILENCE_S, or reachable and without any progress for as long
as its own deadlines allow. Silence never passes and never fails: a wave of which nobody answered
holds the rollout, until ANSWER_S after its opening the rollout is aborted for want of answers. A
silent device keeps its retained order, and carries it out when it is back.

While paused, no wave opens and no device fetches: an order that holds goes out to every device
still on its way. What has arrived stays there, and devices that have it all go on to try and judge
it; too many refusals end a paused rollout as well. No patience runs out meanwhile.

`completed` ends by itself no more. A release that crashes on a device after that is the device's
own affair: it returns to its previous release by itself, reports a `fallback`, and never retries
the same (rollout, manifest). The controller leaves its order as it is, so the two do not fight; the
next rollout takes what the device then serves as the release to return to. `roll_back` takes
devices back even then, those that were told nothing else since.

What counts for and against the release is in `evidence`: tests over devices that may be looked
at any time end a rollout, and let it go on from one wave to the next. A wave that is settled and
undecided takes in devices of later ones until it is GROWTH times as large. Then it holds for the
operator's approval, and so does one of which no device has a finding, or of which too many are
silent past their deadline. Fewer devices than a test can decide from are judged by a share of
refusals.

While rolling back, a device that refused the release gets back the very order it had. Every
other device told is ordered to its previous release, without probation since it served there
already: it took the new one, or it still may before the recall reaches it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fleet.core.census import Census, Device
from fleet.core.evidence import (
    LEAST_DEVICES,
    MAX_SILENT_PERCENT,
    Evidence,
    Verdict,
    believable,
    blames,
    promotion,
    readings,
)
from fleet.core.gate import Answer, Standing, judge, plural, verdict
from fleet.core.views import RolloutStatus
from wire.ids import ReleaseRef
from wire.manners import DAY_S, Manners
from wire.twin import DeploymentReport, Finding, Phase, Probation, Reason

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

ENLARGE_BY = 10
"""Devices that an undecided wave takes in at a time."""

GROWTH = 4
"""How many times its size an undecided wave may have in the end."""

SMALL_LIMIT_PERCENT = 20
"""Refusals that devices too few for a test may show, unless the rollout says otherwise."""

MAX_VERDICTS = 200

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
    recall: Literal["", "previous", "rollback", "left"] = ""
    """By which order it was called back, if it was; left: it has another order since."""
    held: bool = False
    """Its order says to fetch nothing."""
    finding: Finding | None = None
    """What it froze, as it was first heard: counted once, and never changed."""


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
    max_refused_percent: int | None = None
    """None: SMALL_LIMIT_PERCENT while fewer than LEAST_DEVICES are told, then the tests alone."""
    judged_by: Literal["tests", "threshold"] = "tests"
    status: RolloutStatus = RolloutStatus.RUNNING
    because: str = ""
    ended_at: float | None = None
    open: int = 0
    """How many waves are open."""
    opened_at: float = 0.0
    """When the latest wave was opened."""
    recalled_at: float = 0.0
    told: Mapping[str, Told] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    verdicts: tuple[Verdict, ...] = ()
    """What was decided so far, and by which numbers; the oldest first."""
    promoted: bool = False
    """The devices showed it to be no worse than the margin: later waves need not show it again."""
    enlarged: int = 0
    """Devices that the open wave took in from later ones."""
    approved: int = 0
    """The last wave that the operator let pass, whatever the tests say."""
    hurried: bool = False
    """No wave waits for the one before."""

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
    pairs = ((told, after.told[id]) for id, told in before.told.items())
    return any(old is not new and _lasting(old) != _lasting(new) for old, new in pairs)


def _lasting(told: Told) -> tuple[Answer, str, bool, Finding | None]:
    return told.answer, told.recall, told.held, told.finding


def news(before: Rollout | None, after: Rollout) -> list[str]:
    """Return what is worth telling of a rollout's step, in words."""
    told = f"{after.release} to {after.to}"
    if before is None:
        return [f"{told}: {after.status}; {after.because}"]
    known = len(before.verdicts)
    words = [each.words for each in after.verdicts[known:] if each.ruling != "abort"]
    if (before.status, before.open) != (after.status, after.open):
        words.append(f"{after.status}; {after.because}")
    return [f"{told}: {each}" for each in words]


def abort(rollout: Rollout, reason: str, now: float) -> Rollout:
    """Call a rollout off; the next `step` takes its devices back."""
    if rollout.status not in (RolloutStatus.RUNNING, RolloutStatus.PAUSED):
        return rollout
    return replace(rollout, status=RolloutStatus.ROLLING_BACK, because=reason, recalled_at=now)


def roll_back(rollout: Rollout, ordered: Collection[str], reason: str, now: float) -> Rollout:
    """Take all its devices back, even when it is over; the next `step` tells them.

    `ordered` are the devices whose order is still this rollout's. Those that were told something
    else since are left alone.
    """
    if rollout.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED):
        return abort(rollout, reason, now)
    if rollout.status not in (RolloutStatus.COMPLETED, RolloutStatus.SUPERSEDED):
        return rollout
    told = {
        id: replace(each, recall="" if id in ordered else "left", held=False)
        for id, each in rollout.told.items()
    }
    return replace(
        rollout,
        status=RolloutStatus.ROLLING_BACK,
        because=reason,
        recalled_at=now,
        ended_at=None,
        told=told,
    )


def condemned(before: Rollout | None, after: Rollout) -> bool:
    """Return whether this change took a rollout back for what the release itself is.

    Not for a full disk or a line that is too slow: another device or day may have room.
    """
    went = before is not None and before.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)
    back = after.status in (RolloutStatus.ROLLING_BACK, RolloutStatus.ABORTED)
    if not went or not back or not after.verdicts or after.verdicts[-1].ruling != "abort":
        return False
    return blames(after.verdicts[-1].gate, (told.answer for told in after.told.values()))


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


def approve(rollout: Rollout, reason: str, now: float) -> Rollout:
    """Let the open wave pass once it is settled, although no test decided."""
    running = rollout.status in (RolloutStatus.RUNNING, RolloutStatus.PAUSED)
    if not running or not rollout.open or rollout.approved == rollout.open:
        return rollout
    after = replace(rollout, approved=rollout.open)
    words = f"wave {rollout.open} of {len(rollout.waves)}: approved {reason}"
    return _ruled(after, Verdict("operator", "approved", now, words, wave=rollout.open))


def promote(rollout: Rollout, reason: str, now: float) -> Rollout:
    """Let no wave wait any more: the next `step` opens all. What calls it off still may."""
    waves = len(rollout.waves)
    if rollout.status is not RolloutStatus.RUNNING or rollout.open >= waves:
        return rollout
    after = replace(rollout, hurried=True, promoted=True, approved=waves)
    words = f"promoted to all {waves} waves {reason}"
    return _ruled(after, Verdict("operator", "promote", now, words, wave=rollout.open))


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
    if rollout.status is RolloutStatus.ROLLING_BACK:
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
    evidence = rollout.evidence
    for id, told in rollout.told.items():
        device = census.get(id)
        answer = judge(told.answer, device, rollout.model, rollout.id, rollout.manifest)
        after = told if answer == told.answer else replace(told, answer=answer)
        report = device.deployment(rollout.model)
        progress = _progress(rollout, report)
        if progress > told.progress:
            after = replace(after, progress=progress, moved_at=now)
        finding = _finding(rollout, report) if told.finding is None else None
        if finding is not None and not _left_out(told.answer):
            after = replace(after, finding=finding)
            evidence = evidence.after(finding)
        elif told.finding is None and _left_out(answer) and not _left_out(told.answer):
            evidence = evidence.after_refusal(answer)
        if after is not told:
            changed[id] = after
    if not changed:
        return rollout
    return replace(rollout, told={**rollout.told, **changed}, evidence=evidence)


def _finding(rollout: Rollout, report: DeploymentReport | None) -> Finding | None:
    """Return what a device froze of this very deployment."""
    if report is None or report.finding is None or report.purpose != "rollout":
        return None
    if (report.rollout, report.manifest) != (rollout.id, rollout.manifest):
        return None
    return report.finding if believable(report.finding) else None


def _left_out(answer: Answer) -> bool:
    """Return whether a device found the release worse, and is counted as such for good."""
    return (
        answer.standing is Standing.REFUSED
        and answer.reason is Reason.WORSE_THAN_CHAMPION
        and answer.labelled > 0
    )


_PLACES = {phase: place for place, phase in enumerate(Phase, start=1)}


def _progress(rollout: Rollout, report: DeploymentReport | None) -> tuple[int, int, int]:
    if report is None or report.rollout != rollout.id:
        return (0, 0, 0)
    return (_PLACES[report.phase], report.bytes_done, report.labelled_pairs)


def _advance(rollout: Rollout, census: Census, now: float) -> Rollout:
    """Abort, hold, open the next wave, or complete."""
    rollout = _check(rollout, now)
    if rollout.status is not RolloutStatus.RUNNING:
        return rollout
    while rollout.hurried and rollout.open < len(rollout.waves):
        rollout = _tell(replace(rollout, enlarged=0), rollout.waves[rollout.open], now)
    while (held := _held(rollout, census, now)) is None:
        rollout, why = _pass(rollout, now)
        if why is not None:
            held = _held(rollout, census, now) or why
            break
        if rollout.open == len(rollout.waves):
            return replace(
                rollout, status=RolloutStatus.COMPLETED, because=_tally(rollout), ended_at=now
            )
        rollout = _tell(replace(rollout, enlarged=0), rollout.waves[rollout.open], now)
    if not _answered(rollout) and now - rollout.opened_at >= ANSWER_S:
        return abort(rollout, f"{held}, for {ANSWER_S / 86_400:.0f} days", now)
    return rollout if held == rollout.because else replace(rollout, because=held)


def _tell(rollout: Rollout, devices: tuple[str, ...], now: float) -> Rollout:
    """Open the next wave."""
    told = {id: Told(at=now, moved_at=now) for id in devices}
    return replace(rollout, open=rollout.open + 1, opened_at=now, told={**rollout.told, **told})


def _pass(rollout: Rollout, now: float) -> tuple[Rollout, str | None]:
    """Return the rollout after what the tests say of a settled wave, and why it holds if it does.

    A wave that they cannot decide takes in devices of the next one: it is not settled then.
    """
    wave = f"wave {rollout.open} of {len(rollout.waves)}"
    empty = not rollout.open or not rollout.waves[rollout.open - 1]
    if empty or not _decides(rollout) or rollout.approved == rollout.open:
        return rollout, None
    silent = sum(told.answer.standing is Standing.WORKING for told in rollout.told.values())
    last = rollout.open == len(rollout.waves)
    given_up = last and now - rollout.opened_at >= ANSWER_S
    if 100 * silent > MAX_SILENT_PERCENT * len(rollout.told) and not given_up:
        words = (
            f"{wave}: holding, {silent} of {len(rollout.told)} devices are silent past their "
            f"deadline, at most {MAX_SILENT_PERCENT}% may be"
        )
        verdict = Verdict(
            "silence", "hold", now, words, wave=rollout.open, devices=len(rollout.told),
            figures={"silent": float(silent), "told": float(len(rollout.told))},
        )  # fmt: skip
        return _ruled(rollout, verdict), words
    if last or rollout.promoted or not compared(rollout):
        return rollout, None
    found = promotion(rollout.evidence, now, rollout.open)
    if found.ruling == "promote":
        return replace(_ruled(rollout, found), promoted=True), None
    if not any(rollout.waves[rollout.open :]):
        return rollout, None
    began = len(rollout.told) - rollout.enlarged
    if found.devices and len(rollout.told) < GROWTH * began:
        return _enlarge(rollout, found, now)
    words = f"{wave}: holding, undecided; {found.words}; it goes on when it is approved"
    return _ruled(rollout, replace(found, words=words)), words


def _decides(rollout: Rollout) -> bool:
    return rollout.judged_by == "tests" and len(rollout.told) >= LEAST_DEVICES


def compared(rollout: Rollout) -> bool:
    """Return whether devices were asked to compare it with what they had."""
    policy = rollout.probation
    asked = policy.labelled_pairs > 0 and policy.finding_pairs > 0
    return asked and any(rollout.previous.get(id) is not None for id in rollout.told)


def _enlarge(rollout: Rollout, found: Verdict, now: float) -> tuple[Rollout, str]:
    """Take devices of a later wave into the open one, since it is undecided."""
    waves, number = list(rollout.waves), rollout.open
    later = next(at for at in range(number, len(waves)) if waves[at])
    more, waves[later] = waves[later][:ENLARGE_BY], waves[later][ENLARGE_BY:]
    waves[number - 1] += more
    words = (
        f"wave {number} of {len(waves)}: undecided after {found.devices} devices, takes in "
        f"{len(more)} of wave {later + 1}; {found.words}"
    )
    rollout = _ruled(rollout, replace(found, ruling="enlarge", words=words))
    rollout = _tell(replace(rollout, open=number - 1, waves=tuple(waves)), more, now)
    return replace(rollout, enlarged=rollout.enlarged + len(more)), words


def _ruled(rollout: Rollout, verdict: Verdict) -> Rollout:
    """Keep a verdict; of one that only repeats the last with other numbers the first counts."""
    last = rollout.verdicts[-1] if rollout.verdicts else None
    same = (verdict.gate, verdict.ruling, verdict.wave)
    if (
        last is not None
        and verdict.ruling == "hold"
        and (last.gate, last.ruling, last.wave) == same
    ):
        return rollout
    return replace(rollout, verdicts=(*rollout.verdicts, verdict)[-MAX_VERDICTS:])


def _check(rollout: Rollout, now: float) -> Rollout:
    """Abort when a test says so, or when too many refused."""
    answers = {id: told.answer for id, told in rollout.told.items()}
    limit = rollout.max_refused_percent
    if limit is None and (len(answers) < LEAST_DEVICES or rollout.judged_by == "threshold"):
        limit = SMALL_LIMIT_PERCENT
    too_many = None if limit is None else verdict(answers, rollout.release, limit)
    if too_many is not None:
        return _off(rollout, Verdict("threshold", "abort", now, too_many, devices=len(answers)))
    if rollout.judged_by == "threshold":
        return rollout
    for found in readings(rollout.evidence, answers.values(), now, rollout.open):
        if found.ruling == "abort":
            return _off(rollout, found)
    return rollout


def _off(rollout: Rollout, found: Verdict) -> Rollout:
    found = replace(found, wave=rollout.open)
    return abort(_ruled(rollout, found), found.words, found.at)


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
    called = [id for id, told in rollout.told.items() if told.recall != "left"]
    away = [id for id in called if not is_back(rollout, census.get(id))]
    patient = now - rollout.recalled_at < FETCH_DEADLINE_S + GRACE_S
    if patient and any(_may_come_back(rollout, census.get(id), now) for id in away):
        return rollout
    total = len(called)
    back = f"{total - len(away)} of {total} {plural(total, 'device')} on the release before"
    missing = f"; not {', '.join(sorted(away)[:5])}" if away else ""
    more = f" and {len(away) - 5} more" if len(away) > 5 else ""
    left = len(rollout.told) - total
    apart = f"; {left} left alone, told something else since" if left else ""
    return replace(
        rollout,
        status=RolloutStatus.ABORTED,
        because=f"{rollout.because}; {back}{missing}{more}{apart}" if total else rollout.because,
        ended_at=now,
    )


def is_back(rollout: Rollout, device: Device) -> bool:
    """Return whether a device that was called back runs what it ran before."""
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
