"""Champion against challenger on the same inputs: a verdict that may be looked at any time.

The e-process bets against "the challenger is at most `margin` worse". Each labelled pair gives
z = 1 - margin when only the champion was right, -margin when both or neither were, and
-1 - margin when only the challenger was. Under the null E[z] <= 0, so the product of
1 + bet * z is a non-negative supermartingale, and by Ville's inequality it ever reaches
`evidence` with probability at most 1 / evidence: looking often costs nothing.

Source: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting".
"""

import math
from dataclasses import dataclass

from agent.control import Tally
from wire.twin import Finding, Phase, Probation, Reason

MIN_ROWS = 20
"""Inputs on either side before their cost says anything."""
FLOOR_US = 1000.0
"""Of processor time an input: who takes less than this beyond the champion may take any share."""

_BETS = tuple((i + 0.5) / 20 for i in range(20))
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a probation ends: its phase, and why."""

    phase: Phase
    reason: Reason | None
    detail: str
    unlabelled: bool = False
    """Committed for how seldom the two differ, whatever is right."""


def evidence(worse: int, better: int, ties: int, margin: float) -> float:
    """Return the e-value against "at most `margin` worse", at most 1e300.

    It is a mixture over twenty bets, each a share of the largest that cannot go broke.
    """
    largest = 1 / (1 + margin)
    logs = [
        worse * math.log1p(bet * largest * (1 - margin))
        + ties * math.log1p(-bet * largest * margin)
        + better * math.log1p(-bet * largest * (1 + margin))
        for bet in _BETS
    ]
    peak = max(logs)
    total = peak + math.log(sum(math.exp(log - peak) for log in logs) / len(logs))
    return math.exp(min(total, 690.0))


def upper_rate(count: int, total: int) -> float:
    """Return the upper end of the 95% Wilson interval of a rate; 1 when there is no data."""
    if total == 0:
        return 1.0
    p = count / total
    centre = p + _Z95**2 / (2 * total)
    spread = _Z95 * math.sqrt(p * (1 - p) / total + _Z95**2 / (4 * total**2))
    return (centre + spread) / (1 + _Z95**2 / total)


def _too_costly(policy: Probation, tally: Tally) -> str:
    """Return why a challenger costs too much, with the figures; empty when it does not."""
    if policy.cpu_percent == 0 or min(tally.champion_rows, tally.challenger_rows) < MIN_ROWS:
        return ""
    ours = tally.champion_cpu_us / tally.champion_rows
    theirs = tally.challenger_cpu_us / tally.challenger_rows
    limit = ours * policy.cpu_percent / 100
    if theirs <= max(limit, ours + FLOOR_US):
        return ""
    return (
        f"{theirs / 1000:.2f} ms of processor time an input, the champion takes "
        f"{ours / 1000:.2f} ms: {100 * theirs / max(ours, 1.0):.0f}%, "
        f"refused above {policy.cpu_percent}%"
    )


def finding(policy: Probation, tally: Tally) -> Finding | None:
    """Return what a fleet may count of this device, once there are pairs enough.

    When depends on the number of labels alone, never on what they say: a finding that were
    looked at before it is taken would lean to whatever made one stop.
    """
    wanted = min(policy.finding_pairs, policy.labelled_pairs)
    if wanted == 0 or tally.labelled < wanted:
        return None
    return Finding(pairs=tally.labelled, worse=tally.worse, better=tally.better)


def finding_unlabelled(policy: Probation, tally: Tally) -> Finding | None:
    """Return the worst that can be behind a commit without labels: every disagreement is wrong."""
    if policy.finding_pairs == 0 or tally.pairs == 0:
        return None
    return Finding(pairs=tally.pairs, worse=tally.disagreements, labelled=False)


def judge(policy: Probation, tally: Tally, elapsed_s: float) -> Verdict | None:
    """Return the verdict, or None while there is not enough to decide."""
    margin = policy.margin_bp / 10_000
    e = evidence(tally.worse, tally.better, tally.labelled - tally.worse - tally.better, margin)
    said = (
        f"{tally.worse} worse, {tally.better} better of {tally.labelled} labelled, "
        f"E = {e:.3g} (refused at {policy.evidence})"
    )
    if e >= policy.evidence:
        return Verdict(Phase.ROLLED_BACK, Reason.WORSE_THAN_CHAMPION, said)
    costly = _too_costly(policy, tally)
    if costly:
        return Verdict(Phase.ROLLED_BACK, Reason.TOO_SLOW, costly)
    answered = tally.pairs + tally.errors
    if tally.errors >= max(3, answered // 100):
        return Verdict(
            Phase.ROLLED_BACK, Reason.CRASHED, f"{tally.errors} of {answered} inputs failed"
        )
    if tally.labelled >= policy.labelled_pairs:
        return Verdict(Phase.COMMITTED, None, said)
    disagreement = upper_rate(tally.disagreements, tally.pairs)
    if tally.pairs >= policy.labelled_pairs and disagreement <= margin:
        # Accuracy cannot differ by more than the share of inputs answered differently.
        return Verdict(
            Phase.COMMITTED,
            None,
            f"{tally.disagreements} of {tally.pairs} answers differ, at most "
            f"{100 * disagreement:.2f}%: within the margin without a label",
            unlabelled=True,
        )
    if elapsed_s >= policy.deadline_s:
        short = f"{said}; expected {policy.labelled_pairs} labelled within {policy.deadline_s} s"
        if policy.at_deadline == "commit":
            return Verdict(Phase.COMMITTED, None, short)
        return Verdict(Phase.TIMED_OUT, Reason.NO_EVIDENCE, short)
    return None
