"""What leaves a device of the classes of its answers, where it is to leave with noise."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from agent.engine.noise import discrete_laplace
from wire.features import CONFIDENCE
from wire.manifest import Manifest

DAY_S = 86_400
MAX_CLASSES = 2048
"""Of more the noise would take too long, and too many bytes."""

TOLD = frozenset(("listened_s", "labelled_s", "within", "beyond"))
"""Outcomes that tell nothing of classes: how many boxes or accepts there were does."""

HIDDEN = ("predicted", "confusion", "confidence", "confidence_sum", "calibration", "estimate")
"""Counts of classes, and of scores, which resemble each other where classes do."""


@dataclass(frozen=True, slots=True)
class Privacy:
    """What class counts may cost: a draw of noise, and a day of them (None: no bound)."""

    epsilon: str
    epsilon_day: str | None = None

    @classmethod
    def of_text(cls, text: str) -> "Privacy":
        """Return what the daemon wrote: both as decimal numbers, a comma between them."""
        epsilon, _, day = text.partition(",")
        return cls(epsilon, day or None)

    @property
    def draws_a_day(self) -> int | None:
        """How often noise may be drawn, None: for every window."""
        if self.epsilon_day is None:
            return None
        return max(1, int(Fraction(self.epsilon_day) / Fraction(self.epsilon)))


class ClassCounts:
    """Class counts of one model until they leave with noise, drawn once and never again.

    With a budget the day, in UTC, has as many equal parts as the budget has draws; counts wait for
    the first window of a part that began after they did. So there is no more than one draw a part,
    whatever engines come and go, and nothing to remember beyond them.
    """

    def __init__(self, privacy: Privacy, manifest: Manifest, classes: int | None) -> None:
        self._privacy = privacy
        self._epsilon = Fraction(privacy.epsilon)
        self._classes = classes
        self._held: dict[int, int] = {}
        self._held_since = 0
        baseline = manifest.baseline
        features = baseline.features if baseline is not None else ()
        self._outputs = {n for n, each in enumerate(features) if each.name == CONFIDENCE}
        self.notes: list[str] = []
        if classes is not None and not 0 < classes <= MAX_CLASSES:
            got = "any number" if classes < 0 else str(classes)
            self.notes = [
                f"{manifest.ref}: privacy: expected up to {MAX_CLASSES} classes, got {got}; "
                "nothing is told of them"
            ]

    def hide(self, counts: dict[str, Any], now: int, *, last: bool) -> dict[str, Any]:
        """Take what tells of classes out of `counts`; return what is to be told in its place.

        `last`: this engine ends.
        """
        if self._classes is None:
            return {}
        predicted: dict[int, int] = counts["predicted"]
        for name in HIDDEN:
            if name in counts:
                counts[name] = 0 if isinstance(counts[name], int) else {}
        if counts.get("estimate") == {}:
            counts["estimate"] = None
        outcomes, drift = counts.get("outcomes", {}), counts.get("drift", {})
        counts["outcomes"] = {name: n for name, n in outcomes.items() if name in TOLD}
        counts["drift"] = {place: row for place, row in drift.items() if place not in self._outputs}
        if not self._held and predicted:
            self._held_since = now
        for winner, count in predicted.items():
            self._held[winner] = self._held.get(winner, 0) + count
        told: dict[str, Any] = {"epsilon": float(self._epsilon)}
        if not self._held or not self._may_draw(now, last=last):
            return told
        held, self._held = self._held, {}
        if not 0 < self._classes <= MAX_CLASSES:
            return told
        # Windows tell exactly how many requests there were, so what is hidden is which class an
        # answer had. Another one changes two counts by 1: sensitivity 2.
        numerator, denominator = self._epsilon.numerator, 2 * self._epsilon.denominator
        noised = {
            place: held.get(place, 0) + discrete_laplace(numerator, denominator)
            for place in range(self._classes)
        }
        return {**told, "epsilon_windows": 1, "noised": noised}

    def _may_draw(self, now: int, *, last: bool) -> bool:
        draws = self._privacy.draws_a_day
        if draws is None:
            return True
        # The next engine may have begun to count: its draw in this part is the one.
        return not last and now * draws // DAY_S > self._held_since * draws // DAY_S
