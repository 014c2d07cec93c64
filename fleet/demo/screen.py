"""What the demo says: headed steps, a table that moves on a terminal, plain lines without one."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fleet.cli.render import console
from fleet.cli.session import Session
from fleet.demo.drawing import half_blocks, shades

if TYPE_CHECKING:
    from rich.console import OverflowMethod, RenderableType

WIDTH = 78


class Board(Protocol):
    """Shows how something stands, again and again."""

    def show(self, lines: Sequence[str], summary: str) -> None:
        """Show the state as a table, and in one line where there is no terminal."""


class Screen:
    """Standard output."""

    def __init__(self, session: Session) -> None:
        """Find out what standard output can show."""
        self._console = console(session, error=False)
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin a step of the story."""
        self._steps += 1
        self._print(f"\n{self._steps}. {title}", style="bold")

    def head(self, title: str) -> None:
        """Begin something that is no step."""
        self._print(f"\n{title}", style="bold")

    def say(self, text: str) -> None:
        """Say a sentence or two."""
        self.lines(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))

    def lines(self, lines: Sequence[str]) -> None:
        """Print lines as they are."""
        for line in lines:
            self._print(line)

    def command(self, words: str, answer: str = "") -> None:
        """Show a command that was run, and what it answered, cut where the terminal ends."""
        self._print(f"$ {words}", style="cyan")
        overflow: OverflowMethod = "ellipsis" if self._console.is_terminal else "ignore"
        for line in answer.splitlines():
            self._console.print(line, no_wrap=True, overflow=overflow, crop=False)

    def picture(self, pixels: Sequence[float], beside: Sequence[str]) -> None:
        """Draw a digit with words beside it."""
        drawn: Sequence[RenderableType]
        if self._console.color_system in ("256", "truecolor") and not self._console.no_color:
            drawn = half_blocks(pixels)
        else:
            drawn = shades(pixels, self._console.encoding)
        top = (len(drawn) - len(beside)) // 2
        for number, line in enumerate(drawn):
            words = beside[number - top] if 0 <= number - top < len(beside) else ""
            self._console.print("  ", line, f"   {words}" if words else "", sep="", soft_wrap=True)

    @contextmanager
    def board(self) -> Iterator[Board]:
        """Give a place to show moving figures in; it is gone afterwards."""
        if not self._console.is_terminal:
            yield _Log(self)
            return
        from rich.live import Live

        screen = self._console
        with Live(console=screen, transient=True, auto_refresh=False) as live:

            class Table:
                def show(self, lines: Sequence[str], summary: str) -> None:
                    text = screen.render_str("\n".join([*lines, "", summary]), overflow="ellipsis")
                    text.no_wrap = True
                    live.update(text, refresh=True)

            yield Table()

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, soft_wrap=True)


class _Log:
    """Without a terminal: a line whenever the summary changed."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._last = ""

    def show(self, lines: Sequence[str], summary: str) -> None:
        if summary != self._last:
            self._screen.lines([f"  {summary}"])
            self._last = summary
