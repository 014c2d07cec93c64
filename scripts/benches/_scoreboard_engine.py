"""An engine as the daemon starts it, whose scoreboard SIGUSR1 takes away and SIGUSR2 gives back.

Arguments are the engine's. Without a scoreboard nothing is counted of an answer, and no class or
confidence is made of its scores; all else is the same process, the same code and the same memory.
That scores are finite is looked at in either case: an app is answered 500 where they are not.
"""

import signal
from typing import Any

from agent.engine import served
from agent.engine.__main__ import main


class Nothing:
    """In a scoreboard's place."""

    def noted(self, *_: object) -> None:
        """Count nothing."""


class Switched(served.Served):
    """A model in service, with its scoreboard or without."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        board = self.board
        nothing = Nothing()

        def take_away(*_: object) -> None:
            self.board = nothing  # type: ignore[assignment]

        def give_back(*_: object) -> None:
            self.board = board

        signal.signal(signal.SIGUSR1, take_away)
        signal.signal(signal.SIGUSR2, give_back)

    def take_windows(self, now: int, *, last: bool = False) -> list[Any]:
        """Give back the scoreboard first: it is asked for what it counted."""
        signal.raise_signal(signal.SIGUSR2)
        return super().take_windows(now, last=last)


if __name__ == "__main__":
    served.Served = Switched  # type: ignore[misc]
    main()
