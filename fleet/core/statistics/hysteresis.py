"""Windows into alerts: several must agree before one is raised, and again before it ends."""

from dataclasses import dataclass

_TURNS = 100_000
_SETTLED = 1e-15


@dataclass(frozen=True, slots=True)
class Latch:
    """Where an alert stands: raised or not, and what the latest windows said."""

    raised: bool = False
    recent: tuple[bool, ...] = ()
    """The latest last."""


@dataclass(frozen=True, slots=True)
class Hysteresis:
    """Raised when `needed` of the latest `of` windows alarm, ended by `quiet` silent in a row."""

    needed: int = 3
    of: int = 3
    quiet: int = 3

    def __post_init__(self) -> None:
        if not (1 <= self.needed <= self.of <= 8 and 1 <= self.quiet <= 8):
            raise ValueError(
                "hysteresis: expected 1 <= needed <= of <= 8 and 1 <= quiet <= 8, "
                f"got {self.needed}, {self.of} and {self.quiet}"
            )

    def after(self, latch: Latch, alarm: bool | None) -> Latch:
        """Return where the alert stands after one more window.

        None is a window that cannot tell, for want of samples: it changes nothing, for no
        data neither raises an alert nor ends one.
        """
        if alarm is None:
            return latch
        recent = (*latch.recent, alarm)[-max(self.of, self.quiet) :]
        if latch.raised:
            ended = len(recent) >= self.quiet and not any(recent[-self.quiet :])
            return Latch(raised=not ended, recent=() if ended else recent)
        return Latch(raised=sum(recent[-self.of :]) >= self.needed, recent=recent)

    def raises_per_window(self, rate: float) -> float:
        """Return how many alerts a window raises in the long run, if windows are independent.

        `rate` is the share of windows that alarm. Exact: the latch is a Markov chain, and this
        is what it does once it has settled.
        """
        states = {Latch(): 1.0}
        raises = -1.0
        for _ in range(_TURNS):
            later: dict[Latch, float] = {}
            now = 0.0
            for latch, share in states.items():
                for alarm, chance in ((True, rate), (False, 1 - rate)):
                    then = self.after(latch, alarm)
                    later[then] = later.get(then, 0.0) + share * chance
                    now += share * chance * (then.raised and not latch.raised)
            moved = sum(abs(later[latch] - states.get(latch, 0.0)) for latch in later)
            states, raises = later, now
            if moved < _SETTLED:
                break
        return raises

    def most_raises_per_window(self, rate: float) -> float:
        """Return a bound that holds however windows depend on each other.

        Each alert takes `needed` alarming windows of its own, as the latch forgets when it ends.
        """
        return rate / self.needed
