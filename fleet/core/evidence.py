"""What the devices of a rollout say together: gates that stay valid however often one looks.

The chance to abort a release that is as good as the one before is at most `ALPHA` over all gates
and all looks together; `SPLIT` says how it is shared. Accuracy is judged by bets on the share of
disagreements that each device loses, frozen once on the device; all else by how many of the
devices told end in a certain way.

A device that refused the release before its finding was frozen is not in the bets: what it has is
what made it stop. It counts among the refusals, and in the mean that lets a rollout go on, where
it can only make that harder.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from fleet.core.gate import Answer, Standing, plural
from fleet.core.statistics.sequential import Bets, Mean, least_count, least_values, share_above
from wire.twin import Finding, Reason

ALPHA = 0.05
"""The chance of a false abort, over all gates."""

PROMOTE_ALPHA = 0.05
"""The chance to go on with a release that is worse than PROMOTE_MARGIN."""

PROMOTE_MARGIN = 0.02

LEAST_DEVICES = 30
"""With fewer devices told a wave cannot be relied on to decide: `fleet rollout plan` names it."""

HEAVY_LOSS = 0.15
"""Share of its labelled pairs that a device lost net when it refused: no spread between devices
of equal models that disagree on 6% comes near it."""

MAX_SILENT_PERCENT = 20

Ruling = Literal["abort", "promote", "enlarge", "hold", "approved"]


@dataclass(frozen=True, slots=True)
class Count:
    """A gate on how many of the devices told end in a certain way."""

    name: str
    alpha: float
    share: float
    """Of devices, that may end so without anything being wrong with the release."""
    words: str


ACCURACY = "accuracy"
ACCURACY_ALPHA = 0.03
COUNTS = (
    Count("refusals", 0.0025, 0.25, "found it worse than what they had"),
    Count("heavy-losses", 0.01, 0.03, f"refused it at a loss of {HEAVY_LOSS:.0%} or more"),
    Count("crashes", 0.005, 0.05, "could not run it, or not for long"),
    Count("cpu-time", 0.00125, 0.05, "found that it costs too much processor time"),
    Count("failures", 0.00125, 0.25, "failed otherwise"),
)
SPLIT: Mapping[str, float] = {ACCURACY: ACCURACY_ALPHA} | {c.name: c.alpha for c in COUNTS}
"""Gate -> its part of ALPHA."""

_CRASHES = frozenset(
    {
        Reason.CRASHED,
        Reason.HUNG,
        Reason.OUT_OF_MEMORY,
        Reason.LOAD_FAILED,
        Reason.GOLDEN_MISMATCH,
    }
)


_OWN = _CRASHES | {Reason.WORSE_THAN_CHAMPION, Reason.TOO_SLOW}
_OWN_GATES = frozenset({ACCURACY, "heavy-losses", "crashes", "refusals", "cpu-time"})


def blames(gate: str, answers: Iterable[Answer]) -> bool:
    """Return whether an abort by `gate` is the release's own fault.

    Where a share of refusals decided: whether most of them were.
    """
    if gate != "threshold":
        return gate in _OWN_GATES
    reasons = [each.reason for each in answers if each.standing is Standing.REFUSED]
    return 2 * sum(reason in _OWN for reason in reasons) > len(reasons)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was counted so far. Every device is in it once."""

    bets: Bets = field(default_factory=Bets)
    """On the net share of disagreements lost, of devices with a labelled finding."""
    share: float = 0.0
    """The sum of those shares."""
    mean: Mean = field(default_factory=Mean)
    """Of gained accuracy plus the margin, of devices with any finding or with a refusal."""
    pairs: int = 0
    worse: int = 0
    better: int = 0
    unlabelled: int = 0
    """Devices that committed without labels: in the mean alone, at their worst."""
    refused_before: int = 0
    """Devices that found it worse before their finding: in the mean alone."""

    def after(self, finding: Finding) -> "Evidence":
        """Return the evidence with the frozen finding of one more device."""
        mean = self.mean.after(_gain(finding.pairs, finding.worse, finding.better))
        if not finding.labelled:
            return replace(self, mean=mean, unlabelled=self.unlabelled + 1)
        differ = finding.worse + finding.better
        share = (finding.worse - finding.better) / differ if differ else 0.0
        return replace(
            self,
            bets=self.bets.after(share),
            share=self.share + share,
            mean=mean,
            pairs=self.pairs + finding.pairs,
            worse=self.worse + finding.worse,
            better=self.better + finding.better,
        )

    def after_refusal(self, answer: Answer) -> "Evidence":
        """Return the evidence with a device that found it worse before its finding."""
        gain = _gain(answer.labelled, answer.worse, answer.better)
        return replace(self, mean=self.mean.after(gain), refused_before=self.refused_before + 1)


def _gain(pairs: int, worse: int, better: int) -> float:
    # A device may say what it likes: nobody gains or loses more than everything.
    share = (better - worse) / pairs if pairs else 0.0
    return min(max(share, -1.0), 1.0) + PROMOTE_MARGIN


def believable(finding: Finding) -> bool:
    """Return whether a finding can be: no more decided than there were pairs."""
    return finding.worse + finding.better <= finding.pairs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided, by which gate, with the numbers it rests on. Stored with the rollout."""

    gate: str
    ruling: Ruling
    at: float
    words: str
    e: float | None = None
    """The e-value; None: the ruling rests on none."""
    limit: float | None = None
    """Where it decides: 1 / alpha."""
    alpha: float | None = None
    wave: int = 0
    devices: int = 0
    """That it rests on."""
    figures: Mapping[str, float] = field(default_factory=dict)


def readings(evidence: Evidence, answers: Iterable[Answer], at: float, wave: int) -> list[Verdict]:
    """Return how every gate that may abort stands: `abort`, or `hold` while it is undecided.

    `answers` are those of all devices told: who has not answered counts among them.
    """
    total, ends = _ends(answers)
    found = [_accuracy(evidence, at, wave)]
    for gate in COUNTS:
        count = ends[gate.name]
        e, limit = share_above(count, total, gate.share), 1 / gate.alpha
        words = (
            f"{gate.name}: {count} of {total} {plural(total, 'device')} told {gate.words}; "
            f"E = {e:.3g} that more than {gate.share:.0%} do, decides at {limit:.0f} "
            f"(alpha {gate.alpha:g} of {ALPHA:g})"
        )
        figures = {"count": float(count), "told": float(total), "share": gate.share}
        found.append(
            Verdict(
                gate.name,
                "abort" if e >= limit else "hold",
                at,
                words,
                e,
                limit,
                gate.alpha,
                wave,
                total,
                figures,
            )
        )
    return found


def _ends(answers: Iterable[Answer]) -> tuple[int, Counter[str]]:
    """Return how many answers there are, and how many count for each gate."""
    total, ends = 0, Counter[str]()
    for answer in answers:
        total += 1
        if answer.standing is not Standing.REFUSED:
            continue
        if answer.reason is Reason.WORSE_THAN_CHAMPION:
            ends["refusals"] += 1
            heavy = answer.worse - answer.better >= HEAVY_LOSS * max(answer.labelled, 1)
            ends["heavy-losses"] += heavy
        elif answer.reason is Reason.TOO_SLOW:
            ends["cpu-time"] += 1
        elif answer.reason in _CRASHES:
            ends["crashes"] += 1
        elif answer.reason is not Reason.NO_EVIDENCE:  # no data fails nothing
            ends["failures"] += 1
    return total, ends


def _accuracy(evidence: Evidence, at: float, wave: int) -> Verdict:
    devices, e, limit = evidence.bets.values, evidence.bets.e, 1 / ACCURACY_ALPHA
    share = evidence.share / devices if devices else 0.0
    apart = f", {evidence.refused_before} more refused before" if evidence.refused_before else ""
    words = (
        f"accuracy: {devices} {plural(devices, 'device')} froze {evidence.pairs} labelled pairs"
        f"{apart}; {evidence.worse} worse, {evidence.better} better, mean net share of "
        f"disagreements lost {share:+.2f}; E = {e:.3g} that it is above 0, decides at "
        f"{limit:.1f} (alpha {ACCURACY_ALPHA:g} of {ALPHA:g})"
    )
    figures = {
        "pairs": float(evidence.pairs),
        "worse": float(evidence.worse),
        "better": float(evidence.better),
        "mean_share_lost": share,
        "refused_before": float(evidence.refused_before),
    }
    ruling: Ruling = "abort" if e >= limit else "hold"
    return Verdict(ACCURACY, ruling, at, words, e, limit, ACCURACY_ALPHA, wave, devices, figures)


def promotion(evidence: Evidence, at: float, wave: int) -> Verdict:
    """Return whether the devices so far show it to be no worse than the margin, or `hold`."""
    mean, limit = evidence.mean, 1 / PROMOTE_ALPHA
    gain = mean.mean - PROMOTE_MARGIN if mean.values else 0.0
    points = 100 * PROMOTE_MARGIN
    if mean.values == 0:
        words = "promotion: no device has a finding; without data it is neither passed nor failed"
    else:
        words = (
            f"promotion: accuracy {100 * gain:+.2f} points on the mean of {mean.values} "
            f"{plural(mean.values, 'device')}; E = {mean.e:.3g} that it is above "
            f"-{points:g} points, decides at {limit:.0f}"
        )
    return Verdict(
        "promotion",
        "promote" if mean.e >= limit else "hold",
        at,
        words,
        mean.e,
        limit,
        PROMOTE_ALPHA,
        wave,
        mean.values,
        {"gain": gain, "margin": PROMOTE_MARGIN},
    )


def too_small(told: int) -> str:
    """Return why so many devices cannot decide, in words; empty when they can."""
    if told >= LEAST_DEVICES:
        return ""
    least = least_values(ACCURACY_ALPHA)
    if told < least:
        how = f"a loss on every disagreement is not seen with fewer than {least}"
    else:
        gate = next(gate for gate in COUNTS if gate.name == "crashes")
        count = least_count(told, gate.share, gate.alpha)
        how = f"{count} of them would have to break down before it is seen"
    return (
        f"{told} {plural(told, 'device')} told by then {'is' if told == 1 else 'are'} too few to "
        f"decide: {how}; {LEAST_DEVICES} with 100 labelled pairs each can"
    )
